# What train_1p.sh needs to know of this model. $kind is acc (full) or perf (performance).
# shellcheck shell=bash disable=SC2034,SC2154
network=Factorized_ID1301_for_TensorFlow
program=train.py
data_required=yes
run_marker=config.json # a folder with this file holds a run
batch_size=32
case $kind in
  perf) epochs=1 ;;
  *) epochs=200 ;;
esac

job_usage() { # first lines of --help
  cat <<TEXT
Trains the landmark network on $processes device(s): $epochs epochs unless --train_epochs says otherwise.
  --data_path=FOLDER       required: folder of images, or whose data10w/ has them
  --train_epochs=N         epochs
  --train_steps=N          stop after N steps
  --batch_size=N           pairs of images in a batch (default $batch_size)
TEXT
}

job_flag() { # flag, value -> its place in program_flags; fails for a flag it does not know
  case $1 in
    --train_epochs=*) epochs=$2 ;;
    --batch_size=*)
      whole_number --batch_size "$2"
      batch_size=$2
      program_flags+=("$1")
      ;;
    --train_steps=*) program_flags+=("--max_steps=$2") ;;
    *) return 1 ;;
  esac
}

job_flags() {
  job_length="$epochs epochs"
  program_flags=("--max_epochs=$epochs" "--input_dir=$data_path" "--output_dir=$run_folder"
    "${program_flags[@]+"${program_flags[@]}"}")
}

progress='progress  epoch ([0-9]+)  step ([0-9]+)  image\/sec ([0-9.]+)  remaining [0-9]+m'

job_report() { # the log -> losses (loss_align), console and keys
  local speed
  speed=$(log_values ".*$progress.*/\3" | median)
  losses=$(log_values '^loss_align ([0-9.eE+-]+)/\1')
  if [ -z "$(quotient "$batch_size" "$speed")" ] || [ -z "$losses" ]; then
    no_results "progress line"
  fi
  speed=$(printf '%.2f' "$speed")
  console="$(log_values ".*$progress.*/progress epoch \1 step \2" | tail -n 1) image/sec $speed \
remaining 0m
loss_align ${losses##*$'\n'}
loss_diversity $(log_values '^loss_diversity ([0-9.eE+-]+)/\1' | tail -n 1)
loss_decay $(log_values '^loss_decay ([0-9.eE+-]+)/\1' | tail -n 1)
Final Training Duration sec : $duration"
  keys="ActualFPS = $speed
TrainingTime = $(quotient "$batch_size" "$speed")
ActualLoss = ${losses##*$'\n'}"
}
