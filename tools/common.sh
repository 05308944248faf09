# shellcheck shell=bash
# What run.sh and test.sh share: the model directories, Python interpreters and environments.
# Sourced, never run. Python 3.7 (TF 1.15) lives in .venv-tf115, every newer one (TF 2.x) in .venv.

repo=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

fail() { # sentence, exit code (default 1)
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit "${2:-1}"
}

models() { # the model directories, one per line: those with a requirements.txt
  local requirements
  for requirements in "$repo"/*/requirements.txt; do
    [ ! -f "$requirements" ] || basename -- "$(dirname -- "$requirements")"
  done
}

model_key() { # a model's name in lower case, without its _ID number
  local name
  name=$(printf '%s' "${1%/}" | tr '[:upper:]' '[:lower:]')
  printf '%s\n' "${name%_id[0-9]*}"
}

find_model() { # a name as the user wrote it -> the directory's name
  local model
  for model in $(models); do
    if [ "$(model_key "$model")" = "$(model_key "$1")" ]; then
      printf '%s\n' "$model"
      return
    fi
  done
  fail "there is no model '$1'; the models are: $(models | paste -sd' ' -)" 2
}

python_between() { # interpreter, lowest, highest minor version of Python 3
  "$1" -c "import sys; sys.exit(not (3, $2) <= sys.version_info[:2] <= (3, $3))" 2>/dev/null
}

find_python() { # lowest, highest minor version of Python 3 -> path of an interpreter, or failure
  local minor candidate
  local candidates=(python3)
  for ((minor = $2; minor >= $1; minor--)); do
    candidates+=("python3.$minor" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/3.$minor."*/bin/python)
  done
  for candidate in "${candidates[@]}"; do
    # Running it is the only proof: a name on PATH may be a shim without an interpreter behind it.
    if python_between "$candidate" "$1" "$2"; then
      "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)'
      return
    fi
  done
  return 1
}

environment_works() { # folder
  "$1/bin/python" -m pip --version >/dev/null 2>&1
}

create_environment() { # folder, interpreter: by the first of the ways that the interpreter offers
  local folder=$1 python=$2
  if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv --clear "$folder"
  elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv --quiet --clear "$folder"
  elif command -v virtualenv >/dev/null 2>&1; then
    virtualenv --quiet --clear --python "$python" "$folder"
  elif "$python" -c 'import venv, pip' 2>/dev/null; then
    "$python" -m venv --clear --without-pip "$folder"
    "$python" -m pip install --quiet --disable-pip-version-check pip --target \
      "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  fi
}

make_environment() { # folder, interpreter: a virtual environment with pip; kept if it works
  if environment_works "$1"; then
    return
  fi
  echo "making $1 with $("$2" -V 2>&1)" >&2
  create_environment "$1" "$2" || true
  environment_works "$1" || fail "cannot make the virtual environment $1: $2 has neither venv with \
ensurepip, nor virtualenv, nor venv with pip. Install one of them (Debian and Ubuntu: apt-get \
install python3-venv) or set PYTHON to another interpreter."
}

pip_install() { # environment, arguments of pip install
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
}

install_requirements() { # environment, what for, requirements files: with pip, unless already done
  local folder=$1 purpose=$2 wanted
  local stamp="$folder/.installed-$purpose"
  shift 2
  wanted=$("$folder/bin/python" -VV && cat -- "$@")
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "installing the packages for $purpose into $folder; minutes the first time" >&2
  local file files=()
  for file in "$@"; do
    files+=(-r "$file")
  done
  # A pip older than 20.3 neither knows TensorFlow's wheels nor resolves the files together.
  if ! pip_install "$folder" 'pip>=20.3' || ! pip_install "$folder" "${files[@]}"; then
    fail "pip could not install $*; its message is above. Remove the cause and run this again."
  fi
  printf '%s\n' "$wanted" >"$stamp"
}
