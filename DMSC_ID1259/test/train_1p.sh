#!/bin/bash
# The body of train_full_1p.sh, train_performance_1p.sh and, where there are such, of their siblings
# for several devices: trains and writes the key file of the ModelZoo contract. Its first argument is
# the name of the script that was called; "performance" in it means the short run, "_8p" a job of
# eight processes, started by launch.py. What differs between models is in job.sh beside it.
# The master is tools/train_1p.sh; tools/sync copies it byte for byte into each test/ folder.
# shellcheck disable=SC2154 # job.sh sets what is not set here
set -euo pipefail

test_dir=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
model_dir=$(dirname -- "$test_dir")

usage() {
  cat <<TEXT
usage: $script [--data_path=FOLDER] [flags]

$(job_usage)
  --output_path=FOLDER     run folder: checkpoints, metrics, events (default: see below)
  --resume[=MODE]          continue an earlier run; MODE: auto, True or False
  --seed=N                 fixes all that is random
  --precision_mode=MODE    NPU: allow_fp32_to_fp16, force_fp16, force_fp32,
                           must_keep_origin_dtype or allow_mix_precision
  --over_dump=True|False, --data_dump_flag=True|False, --data_dump_step=STEPS,
  --profiling=True|False   NPU: overflow dump, tensor dump and its steps, profile
  --help, -h               this text

What is not given is left to the program: $program --help shows its defaults.
Written to test/output/\$ASCEND_DEVICE_ID/: the log train_\$ASCEND_DEVICE_ID.log and, only when the
training succeeded, CASE.log with the results and train_CASE_loss.txt, where CASE is
${network}_bs<batch>_1p_$kind; results of an earlier run are kept as *.previous.
The default run folder is that folder too or, when it holds a run already and --resume is not
given, a new one run_2, run_3, ... in it. --resume takes the newest of them.

environment: PYTHON (python3), ASCEND_DEVICE_ID (0), JOB_ID (10087), ASCEND_GLOBAL_LOG_LEVEL (3)
$(job_of_several_usage)exit code: the program's; 1 without results in the log or without a required folder, 2 for a wrong
flag
TEXT
}

job_of_several_usage() { # lines of --help that only such a script shows
  [ "$processes" -gt 1 ] || return 0
  cat <<TEXT
             RANK_SIZE ($processes)  processes of the whole job, one per device
             RANK_ID_START (0), LOCAL_RANK_SIZE (all from there on)  those of this host: run the
             script on every host; only the one with process 0 writes results and checkpoints
             RANK_TABLE_FILE  on Ascend: the devices of the job
             WORKER_HOSTS  elsewhere: host:port,host:port,.. of every process; needed on several
             hosts. Whoever reaches these ports can use them: keep them inside your network
             WORKER_PATIENCE (300)  seconds to wait for all processes at the start
--batch_size is of all processes together. Output of process N: train_N.log beside the log.
TEXT
}

fail() { # sentence, exit code
  printf '%s\n' "$1" >&2
  exit "$2"
}

whole_number() { # flag, value: ends the script unless the value is a whole number from 1
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "[Error] $1=$2: expected a whole number from 1" 2
}

parse_flags() { # the flags -> data_path, run_folder, resume and program_flags
  local flag value
  for flag in "$@"; do
    value=${flag#*=}
    case $flag in
      --help | -h)
        usage
        exit 0
        ;;
      --data_path=*) data_path=$value ;;
      --output_path=*) run_folder=$value ;;
      --resume | --resume=*)
        resume=${value/#--resume/True}
        program_flags+=("$flag")
        ;;
      --seed=* | --precision_mode=* | --over_dump=* | --data_dump_flag=* | --data_dump_step=* | \
        --profiling=*) program_flags+=("$flag") ;;
      *) job_flag "$flag" "$value" ||
        fail "[Error] unknown flag $flag; flags are --name=value, see $script --help" 2 ;;
    esac
  done
}

holds_run() { # folder: run_marker, a pattern, is in it
  # shellcheck disable=SC2206 # the pattern is meant to be expanded
  local found=("$1"/$run_marker)
  [ -e "${found[0]}" ]
}

choose_run_folder() { # folder -> it, or run_2, run_3, ... in it: the newest run, or a free place
  local free=$1 newest=$1 number=1
  while holds_run "$free"; do
    newest=$free
    number=$((number + 1))
    free=$1/run_$number
  done
  case $resume in
    False | false | 0) printf '%s\n' "$free" ;;
    *) printf '%s\n' "$newest" ;;
  esac
}

set_aside() { # file of an earlier run: it must not pass for a result of this one
  if [ -e "$1" ]; then
    mv -f -- "$1" "$1.previous"
  fi
}

forward() { # signal, exit code: to the trainer, which saves and ends; without one the script ends
  interrupted=yes
  [ -n "${!:-}" ] || exit "$2"
  kill -"$1" "$!" 2>/dev/null || true
}

choose_devices() { # -> RANK_SIZE, ASCEND_DEVICE_ID; of several processes: first, launch
  if [ "$processes" -eq 1 ]; then
    export RANK_SIZE=1 RANK_ID=0 ASCEND_DEVICE_ID="${ASCEND_DEVICE_ID:-0}"
    return
  fi
  RANK_SIZE=${RANK_SIZE:-$processes}
  ASCEND_DEVICE_ID=0 # of this script's files; launch.py tells every process its own
  first=${RANK_ID_START:-0}
  whole_number RANK_SIZE "$RANK_SIZE"
  [ "$first" = 0 ] || whole_number RANK_ID_START "$first"
  launch=("$test_dir/launch.py" "--processes=$RANK_SIZE" "--first=$first"
    "--log_folder=$test_dir/output/$ASCEND_DEVICE_ID")
  if [ -n "${LOCAL_RANK_SIZE:-}" ]; then
    whole_number LOCAL_RANK_SIZE "$LOCAL_RANK_SIZE"
    launch+=("--local=$LOCAL_RANK_SIZE")
  fi
}

train() { # runs the program, its output in the log -> its exit code in `code`
  # Job control: otherwise bash would start the program with SIGINT ignored.
  set -m
  trap 'forward TERM 143' TERM HUP
  trap 'forward INT 130' INT
  "${PYTHON:-python3}" "${launch[@]+"${launch[@]}"}" "$model_dir/$program" "${program_flags[@]}" \
    </dev/null >"$log" 2>&1 &
  interrupted=yes
  while [ "$interrupted" = yes ]; do # a signal ends `wait`, not the program
    interrupted=no
    code=0
    wait "$!" || code=$?
  done
  trap - TERM HUP INT
  set +m
}

log_values() { # pattern/replacement (extended sed) -> the replaced lines of the log that match
  tr '\r' '\n' <"$log" | sed -n -E "s/$1/p"
}

median() { # numbers, one per line -> their median after the first quarter, the warm-up
  awk '{ value[NR] = $1 } END { for (i = int(NR / 4) + 1; i <= NR; i++) print value[i] }' |
    sort -g | awk '{ value[NR] = $1 }
      END { if (NR) printf "%.10g\n", (value[int((NR + 1) / 2)] + value[int((NR + 2) / 2)]) / 2 }'
}

quotient() { # a, b, format -> a / b, nothing when b is not above 0
  awk -v a="${1:-0}" -v b="${2:-0}" -v format="${3:-%.6f}" \
    'BEGIN { if (b > 0) printf format, a / b }'
}

no_results() { # what the log lacks
  fail "[Error] $log holds no $1: nothing was trained (was the run in $run_folder complete \
already?), so there are no results" 1
}

publish() { # file: standard input becomes its content, whole or not at all
  if ! cat >"$1.part" || ! mv -f -- "$1.part" "$1"; then
    rm -f -- "$1.part"
    fail "[Error] could not write $1" 1
  fi
}

report() { # the results on standard output and in the files of the contract
  local console='' keys='' losses=''
  job_report
  printf '%s\n' "$losses" | publish "$output/train_${case_name}_loss.txt"
  printf '%s\n' '------------------ Final result ------------------' "$console"
  publish "$output/$case_name.log" <<TEXT
Network = $network
RankSize = $RANK_SIZE
BatchSize = $batch_size
DeviceType = $(uname -m)
CaseName = $case_name
$keys
E2ETrainingTime = $duration
TEXT
}

script=train_1p.sh
if [[ ${1:-} == *.sh ]]; then
  script=$1
  shift
fi
case $script in
  *performance*) kind=perf ;;
  *) kind=acc ;;
esac
processes=1
if [[ $script =~ _([0-9]+)p\.sh$ ]]; then
  processes=${BASH_REMATCH[1]}
fi
data_path='' run_folder='' resume=False first=0
program_flags=() launch=()
# shellcheck source=/dev/null
. "$test_dir/job.sh"
parse_flags "$@"
[ -n "$data_path" ] || [ "$data_required" = no ] ||
  fail '[Error] para "data_path" must be config' 1

choose_devices
export JOB_ID="${JOB_ID:-10087}"
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"
export PYTHONUNBUFFERED=1 # so that the log can be followed
case_name=${network}_bs${batch_size}_${RANK_SIZE}p_$kind
output=$test_dir/output/$ASCEND_DEVICE_ID
log=$output/train_$ASCEND_DEVICE_ID.log
mkdir -p -- "$output"
set_aside "$output/$case_name.log"
set_aside "$output/train_${case_name}_loss.txt"
run_folder=${run_folder:-$(choose_run_folder "$output")}
job_flags # puts the model's own flags in front of program_flags

echo "training: $job_length, log in $log"
begin=$SECONDS
code=0
train
duration=$((SECONDS - begin))
if [ "$code" -ne 0 ]; then
  tail -n 20 "$log" >&2
  fail "[Error] the training ended with exit code $code; the whole log is $log" "$code"
fi
if [ "$first" != 0 ]; then
  echo "process 0, on another host, writes the results"
  exit 0
fi
export LC_ALL=C # a decimal point in the results, whatever the user's language
report
