#!/bin/bash
# The body of train_full_1p.sh and train_performance_1p.sh: trains on one device and writes the key
# file of the ModelZoo contract. Its first argument is the name of the script that was called; one
# with "performance" in it means the short run.
set -euo pipefail

network=CSGM_ID2109_for_TensorFlow
test_dir=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
model_dir=$(dirname -- "$test_dir")

usage() {
  cat <<TEXT
usage: $script --data_path=FOLDER [flags]

Trains the VAE on one device: $epochs epochs unless --train_epochs says otherwise.
  --data_path=FOLDER       required: folder of the four MNIST .gz files, or of MNIST-data/ with them
  --output_path=FOLDER     run folder: checkpoints, metrics, events (default: see below)
  --ckpt_path=FOLDER       folder for the checkpoints instead of the run folder's own
  --train_epochs=N         epochs
  --train_steps=N          stop after N steps
  --batch_size=N           images in a batch (default $batch_size)
  --resume[=MODE]          continue an earlier run; MODE: auto, True or False
  --seed=N                 fixes all that is random
  --precision_mode=MODE    NPU: allow_fp32_to_fp16, force_fp16, force_fp32,
                           must_keep_origin_dtype or allow_mix_precision
  --over_dump=True|False, --data_dump_flag=True|False, --data_dump_step=STEPS,
  --profiling=True|False   NPU: overflow dump, tensor dump and its steps, profile
  --help, -h               this text

What is not given is left to the program: mnist_vae/src/main.py --help shows its defaults.
Written to test/output/\$ASCEND_DEVICE_ID/: the log train_\$ASCEND_DEVICE_ID.log and, only when the
training succeeded, CASE.log with the results and train_CASE_loss.txt, where CASE is
${network}_bs<batch>_1p_$kind; results of an earlier run are kept as *.previous.
The default run folder is that folder too or, when it holds a run already and --resume is not
given, a new one run_2, run_3, ... in it. --resume takes the newest of them.

environment: PYTHON (python3), ASCEND_DEVICE_ID (0), JOB_ID (10087), ASCEND_GLOBAL_LOG_LEVEL (3)
exit code: the program's; 1 without --data_path or without results in the log, 2 for a wrong flag
TEXT
}

fail() { # sentence, exit code
  printf '%s\n' "$1" >&2
  exit "$2"
}

parse_flags() { # the flags -> data_path, run_folder, resume, batch_size, epochs and program_flags
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
      --train_epochs=*) epochs=$value ;;
      --batch_size=*)
        [[ $value =~ ^[1-9][0-9]*$ ]] ||
          fail "[Error] --batch_size=$value: expected a whole number from 1" 2
        batch_size=$value
        program_flags+=("$flag")
        ;;
      --resume | --resume=*)
        resume=${value/#--resume/True}
        program_flags+=("$flag")
        ;;
      --ckpt_path=*) program_flags+=("--ckpt_dir=$value") ;;
      --train_steps=*) program_flags+=("--max_steps=$value") ;;
      --seed=* | --precision_mode=* | --over_dump=* | --data_dump_flag=* | --data_dump_step=* | \
        --profiling=*) program_flags+=("$flag") ;;
      *) fail "[Error] unknown flag $flag; flags are --name=value, see $script --help" 2 ;;
    esac
  done
}

choose_run_folder() { # folder -> it, or run_2, run_3, ... in it: the newest run, or a free place
  local free=$1 newest=$1 number=1
  while [ -e "$free/models/mnist-vae/config.json" ]; do
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

train() { # runs the program, its output in the log -> its exit code in `code`
  # Job control: otherwise bash would start the program with SIGINT ignored.
  set -m
  trap 'forward TERM 143' TERM HUP
  trap 'forward INT 130' INT
  "${PYTHON:-python3}" "$model_dir/mnist_vae/src/main.py" "${program_flags[@]}" \
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

step_values() { # the log's step lines -> loss and examples/sec, one pair per line
  tr '\r' '\n' <"$log" | sed -n -E \
    's/.*step [0-9]+, loss = ([0-9.eE+-]+) \(([0-9.]+) examples\/sec; [0-9.]+ sec\/batch\).*/\1 \2/p'
}

median_speed() { # step values -> median of examples/sec after the first quarter, the warm-up
  awk '{ speed[NR] = $2 } END { for (i = int(NR / 4) + 1; i <= NR; i++) print speed[i] }' |
    sort -g | awk '{ speed[NR] = $1 }
      END { if (NR) printf "%.2f\n", (speed[int((NR + 1) / 2)] + speed[int((NR + 2) / 2)]) / 2 }'
}

train_accuracy() { # the last line's smallest reconstruction error; None where no epoch had one
  local error=
  if [ "$kind" = acc ]; then
    # The program starts with 10000 for "none yet".
    error=$(sed -n -E 's/.*min_reconstruct_error_in_epoch:[0-9]+,reis([0-9.]+)=+.*/\1/p' "$log" |
      tail -n 1 | sed '/^10000\.0*$/d')
  fi
  printf '%s\n' "${error:-None}"
}

publish() { # file: standard input becomes its content, whole or not at all
  if ! cat >"$1.part" || ! mv -f -- "$1.part" "$1"; then
    rm -f -- "$1.part"
    fail "[Error] could not write $1" 1
  fi
}

report() { # the results on standard output and in the files of the contract
  local speed seconds_per_batch accuracy
  speed=$(step_values | median_speed)
  seconds_per_batch=$(awk -v n="$batch_size" -v v="${speed:-0}" \
    'BEGIN { if (v > 0) printf "%.6f", n / v }')
  [ -n "$seconds_per_batch" ] || fail "[Error] $log holds no step line with a speed: nothing was \
trained (was the run in $run_folder complete already?), so there are no results" 1
  step_values | cut -d' ' -f1 | publish "$output/train_${case_name}_loss.txt"
  accuracy=$(train_accuracy)
  cat <<TEXT
------------------ Final result ------------------
Final Performance images/sec : $speed
Final Performance sec/step : $seconds_per_batch
Final Training Duration sec : $duration
Final Train Accuracy : $accuracy
TEXT
  publish "$output/$case_name.log" <<TEXT
Network = $network
RankSize = $RANK_SIZE
BatchSize = $batch_size
DeviceType = $(uname -m)
CaseName = $case_name
ActualFPS = $speed
TrainingTime = $seconds_per_batch
ActualLoss = $(tail -n 1 "$output/train_${case_name}_loss.txt")
TrainAccuracy = $accuracy
E2ETrainingTime = $duration
TEXT
}

script=train_1p.sh
if [[ ${1:-} == *.sh ]]; then
  script=$1
  shift
fi
case $script in
  *performance*) kind=perf epochs=1 ;;
  *) kind=acc epochs=750 ;;
esac
batch_size=100
data_path='' run_folder='' resume=False
program_flags=()
parse_flags "$@"
[ -n "$data_path" ] || fail '[Error] para "data_path" must be config' 1

export RANK_SIZE=1 RANK_ID=0 JOB_ID="${JOB_ID:-10087}"
export ASCEND_DEVICE_ID="${ASCEND_DEVICE_ID:-0}"
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"
export PYTHONUNBUFFERED=1 # so that the log can be followed
case_name=${network}_bs${batch_size}_${RANK_SIZE}p_$kind
output=$test_dir/output/$ASCEND_DEVICE_ID
log=$output/train_$ASCEND_DEVICE_ID.log
mkdir -p -- "$output"
set_aside "$output/$case_name.log"
set_aside "$output/train_${case_name}_loss.txt"
run_folder=${run_folder:-$(choose_run_folder "$output")}
program_flags=("--epochs=$epochs" "--data_dir=$data_path" "--output_dir=$run_folder"
  "${program_flags[@]+"${program_flags[@]}"}")

echo "training: $epochs epochs, log in $log"
begin=$SECONDS
code=0
train
duration=$((SECONDS - begin))
if [ "$code" -ne 0 ]; then
  tail -n 20 "$log" >&2
  fail "[Error] the training ended with exit code $code; the whole log is $log" "$code"
fi
export LC_ALL=C # a decimal point in the results, whatever the user's language
report
