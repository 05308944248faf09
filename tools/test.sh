#!/bin/bash
# Checks the copies and the style and runs all tests under TF 2.x and TF 1.15; see --help.
set -euo pipefail
# shellcheck source=tools/common.sh
. "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/common.sh"

usage() {
  cat <<TEXT
usage: tools/test.sh [MODEL...] [-- pytest arguments]

Makes .venv (Python 3.9 to 3.13, TF 2.x) and .venv-tf115 (Python 3.7, TF 1.15) in the repository if
needed, checks the shared copies (tools/sync), the style (ruff), that Python 3.7 can read the
sources and that the ModelZoo can take them (tools/check_submission), then runs the tests of every
model directory and of tools/ under both. All legs run even if one fails; the last line sums them
up, and the exit code is 1 if anything failed.
  MODEL      only these: $(models | paste -sd' ' -) tools
  --         what follows goes to pytest, for example: tools/test.sh CSGM -- -k golden

environment: PYTHON      interpreter to make .venv with
             CI=true     a missing Python 3.7 is a failure; otherwise its legs are skipped
             GOLDEN_DIR, REAL_DATA_DIR   other golden values, real data; see the models' tests
TEXT
}

# What a pytest run came to, from its report: passed, failed, skipped. A run that died or found no
# test where some were wanted is one failure more.
# shellcheck disable=SC2016
count_report='
import sys, xml.etree.ElementTree as xml
report, code, may_be_empty = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "yes"
try:
    suites = list(xml.parse(report).iter("testsuite"))
except (OSError, xml.ParseError):
    suites = []
total, failures, errors, skipped = (
    sum(int(suite.get(name, 0)) for suite in suites)
    for name in ("tests", "failures", "errors", "skipped"))
failed = failures + errors
if code and not failed and not (code == 5 and may_be_empty):
    failed, total = 1, total + 1
print(total - failed - skipped, failed, skipped)
'

record() { # leg, passed, failed, skipped, seconds: one row of the chain's table
  printf '%s %s %s %s %s\n' "$@" >>"$results/$chain.table"
  echo "$1: $2 passed, $3 failed, $4 skipped ($5 s)" >&2
}

check_leg() { # leg, command...: passes or fails as a whole
  local leg=$1 begin=$SECONDS failed=0
  shift
  ("$@") >"$results/$leg.log" 2>&1 || failed=1
  record "$leg" $((1 - failed)) "$failed" 0 $((SECONDS - begin))
}

pytest_leg() { # leg, interpreter, folder to stand in, folder of the tests
  local leg=$1 begin=$SECONDS code=0 counts
  local report=$results/$leg.xml
  (cd "$3" && exec "$2" -m pytest -q -rs -p no:cacheprovider --junitxml="$report" \
    -W ignore::DeprecationWarning -W ignore::FutureWarning "$4" \
    ${pytest_arguments[@]+"${pytest_arguments[@]}"}) >"$results/$leg.log" 2>&1 || code=$?
  read -r -a counts <<<"$("$2" -c "$count_report" "$report" "$code" "$may_be_empty")"
  record "$leg" "${counts[@]}" $((SECONDS - begin))
}

prepare() { # environment, lowest, highest minor version of Python 3, interpreter or ""
  local python=$4
  if environment_works "$1"; then
    python=$1/bin/python
  elif [ -z "$python" ]; then
    python=$(find_python "$2" "$3") || fail "found no Python 3.$2 to 3.$3; set PYTHON to one"
  fi
  python_between "$python" "$2" "$3" ||
    fail "$python is not Python 3.$2 to 3.$3; set PYTHON to one (or remove $1)"
  make_environment "$1" "$python"
  local files=() model
  for model in $(models); do
    files+=("$repo/$model/requirements.txt")
  done
  install_requirements "$1" tests "${files[@]}" "$repo/tools/requirements-test.txt"
}

source_folders() { # folders whose Python files are checked, one per line
  models
  echo tools
}

style() {
  local folders
  mapfile -t folders < <(source_folders)
  cd "$repo"
  "$1/bin/ruff" check --no-cache --config ruff.toml "${folders[@]}" tools/sync \
    tools/check_submission tools/bench
}

syntax() { # bytecode goes to the __pycache__ folders, as by an import
  local folders
  mapfile -t folders < <(source_folders)
  cd "$repo"
  "$1/bin/python" -m compileall -q "${folders[@]}" && "$1/bin/python" tools/sync --help >/dev/null
}

test_legs() { # environment, mark of the leg
  local name
  for name in "${names[@]}"; do
    if [ "$name" = tools ]; then
      pytest_leg "tools-$2" "$1/bin/python" "$repo" tools
    else
      pytest_leg "$name-$2" "$1/bin/python" "$repo/$name" test
    fi
  done
}

tf2_chain() {
  local environment=$repo/.venv
  check_leg environment-tf2 prepare "$environment" 9 13 "$chosen_python"
  grep -q '^environment-tf2 1 ' "$results/$chain.table" || return 0
  check_leg copies "$environment/bin/python" "$repo/tools/sync"
  check_leg style style "$environment"
  check_leg submission "$environment/bin/python" "$repo/tools/check_submission"
  test_legs "$environment" tf2
}

tf115_chain() {
  local environment=$repo/.venv-tf115
  if ! environment_works "$environment" && ! find_python 7 7 >/dev/null; then
    local sentence="no Python 3.7 on PATH or in pyenv: the TF 1.15 legs cannot run"
    echo "$sentence" >"$results/environment-tf115.log"
    if [ "${CI:-}" = true ]; then
      record environment-tf115 0 1 0 0
    else
      echo "$sentence and are skipped" >&2
      record environment-tf115 0 0 1 0
    fi
    return
  fi
  check_leg environment-tf115 prepare "$environment" 7 7 ""
  grep -q '^environment-tf115 1 ' "$results/$chain.table" || return 0
  check_leg syntax-py37 syntax "$environment"
  test_legs "$environment" tf115
}

print_logs() { # every leg's output, one after the other
  local leg
  cut -d' ' -f1 "$results"/*.table | while read -r leg; do
    printf '\n======== %s\n' "$leg"
    cat "$results/$leg.log"
  done
}

print_table() { # the legs, then the sum; failure if anything failed
  printf '\n%-28s %7s %7s %8s %8s\n' leg passed failed skipped seconds
  cat "$results"/*.table | awk '
    { printf "%-28s %7d %7d %8d %8d\n", $1, $2, $3, $4, $5
      passed += $2; failed += $3; skipped += $4 }
    END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped
          exit failed > 0 }'
}

chain_died() { # mark of its legs
  echo "the legs of $1 ended before their time" >"$results/all-legs-$1.log"
  record "all-legs-$1" 0 1 0 0
}

stop() { # exit code: ends the chains, which are process groups of their own
  kill -TERM -- "-$tf2_job" "-$tf115_job" 2>/dev/null || true
  exit "$1"
}

names=()
pytest_arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      pytest_arguments=("$@")
      break
      ;;
    -*) fail "unknown flag $1; flags for pytest go after --, see --help" 2 ;;
    tools | tools/) names+=(tools) ;;
    *)
      name=$(find_model "$1") || exit
      names+=("$name")
      ;;
  esac
  shift
done
if [ ${#names[@]} -eq 0 ]; then
  mapfile -t names < <(source_folders)
fi
may_be_empty=$([ ${#pytest_arguments[@]} -eq 0 ] && echo no || echo yes)
chosen_python=${PYTHON:-}

# The tests decide themselves about device, rank and interpreter.
unset NPU_SESSION_DEVICE RANK_SIZE RANK_ID ASCEND_DEVICE_ID JOB_ID PYTHON
# Two chains side by side: one thread each.
export OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
export MPLBACKEND=Agg TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
for variable in GOLDEN_DIR REAL_DATA_DIR; do # the tests stand in other folders
  if [ -n "${!variable:-}" ]; then
    export "$variable=$(realpath -- "${!variable}")"
  fi
done

results=$(mktemp -d)
trap 'rm -rf -- "$results"' EXIT
set -m # each chain a process group, so that stopping this script stops what it started
chain=1
tf2_chain </dev/null &
tf2_job=$!
chain=2
tf115_chain </dev/null &
tf115_job=$!
trap 'stop 143' TERM
trap 'stop 130' INT
wait "$tf2_job" || chain_died tf2
wait "$tf115_job" || chain_died tf115
print_logs
print_table
