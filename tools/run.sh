#!/bin/bash
# Runs the main job of one model in the repository's own environment; see --help.
set -euo pipefail
# shellcheck source=tools/common.sh
. "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/common.sh"

main_job() { # model directory -> its main program, and flags that make it a job of minutes
  case $1 in
    AdaGAN) echo reproduce.py ;;
    CSGM) echo src/reproduce.py ;;
    DMSC_ID1259) echo pretrain_affinity_fusion.py --demo ;;
    Factorized_ID1301) echo reproduce.py ;;
    MASF_ID1191) echo main.py --preset=demo ;;
  esac
}

usage() {
  cat <<TEXT
usage: tools/run.sh [MODEL] [flags...]

Runs MODEL's main job, from any directory. Without data at hand it runs on stand-in data.
  MODEL      one of: $(models | paste -sd' ' -)
             in any case, with or without the _ID number; default CSGM
  flags      handed to the program; 'tools/run.sh MODEL --help' lists them
The first run makes .venv in the repository and installs the model's requirements.txt; later runs
use it as it is. Results go to results/MODEL in the repository unless --output_dir says otherwise.

environment: PYTHON   interpreter to make the environment with; default: a Python 3.9 to 3.13
                      found as python3, on PATH or in pyenv, else 3.7 (with TensorFlow 1.15)
TEXT
}

python_version() { # interpreter -> for example 3.11
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

choose_environment() { # sets `environment`, a folder with a working Python
  environment=$repo/.venv
  if [ -z "${PYTHON:-}" ] && environment_works "$environment"; then
    return
  fi
  local python=${PYTHON:-}
  if [ -z "$python" ]; then
    python=$(find_python 9 13 || find_python 7 7) ||
      fail "found no Python 3.9 to 3.13 (nor 3.7); install one, or set PYTHON to its path"
  fi
  local version made
  version=$(python_version "$python") || fail "$python does not run; set PYTHON to a Python 3"
  if [ "$version" = 3.7 ]; then
    environment=$repo/.venv-tf115
  fi
  make_environment "$environment" "$python"
  made=$(python_version "$environment/bin/python")
  [ "$made" = "$version" ] || fail "$environment was made with Python $made, but PYTHON is \
$version: unset PYTHON, or remove that folder"
}

case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
esac
name=CSGM
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  name=$1
  shift
fi
model=$(find_model "$name") || exit
read -r -a job <<<"$(main_job "$model")"
[ "${#job[@]}" -gt 0 ] || fail "$model has no main job yet; see its README.md" 2

choose_environment
install_requirements "$environment" "$model" "$repo/$model/requirements.txt"
# exec: the program itself gets the signals, and its exit code is this command's.
exec "$environment/bin/python" "$repo/$model/${job[0]}" "${job[@]:1}" \
  --output_dir "$repo/results/$model" "$@"
