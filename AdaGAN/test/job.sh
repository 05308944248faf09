# What train_1p.sh needs to know of this model. $kind is acc (full) or perf (performance).
# shellcheck shell=bash disable=SC2034,SC2154
network=ADAGAN_ID2115_for_TensorFlow
program=adagan_gmm.py
data_required=no
run_marker=config.json # a folder with this file holds a run
batch_size=64
case $kind in
  perf) epochs=3 steps=4 ;;
  *) epochs=15 steps=10 ;;
esac

job_usage() { # first lines of --help
  cat <<TEXT
Trains $steps components of $epochs epochs each on one device, on the mixture of Gaussians that the
program makes itself.
  --data_path=FOLDER       part of the contract; nothing is read from it
  --ckpt_path=FOLDER       folder for the checkpoints instead of the run folder's own
  --epochs=N               epochs of a component
  --steps=N                components
  --modes=N                Gaussians of the data (default 10)
  --batch_size=N           points in a batch (default $batch_size)
TEXT
}

job_flag() { # flag, value -> its place in program_flags; fails for a flag it does not know
  case $1 in
    --epochs=*) epochs=$2 ;;
    --steps=*) steps=$2 ;;
    --batch_size=*)
      whole_number --batch_size "$2"
      batch_size=$2
      program_flags+=("$1")
      ;;
    --ckpt_path=*) program_flags+=("--ckpt_dir=$2") ;;
    --modes=*) program_flags+=("$1") ;;
    *) return 1 ;;
  esac
}

job_flags() {
  job_length="$steps components of $epochs epochs"
  program_flags=("--epochs=$epochs" "--steps=$steps" "--output_dir=$run_folder"
    "${program_flags[@]+"${program_flags[@]}"}")
}

evaluation='.*Evaluating: log_p= *(-?[0-9.]+), C= *([0-9.]+).*'

job_report() { # the log -> losses (-log_p of each step), console and keys
  local speed coverage
  # A finished epoch's bar; its speed is that of the whole epoch.
  speed=$(log_values '^Epoch .*100%.*[ ,]([0-9.]+)it\/s\].*/\1' | median)
  coverage=$(log_values "$evaluation/\2" | tail -n 1)
  losses=$(log_values "$evaluation/\1" | awk '{ printf "%.3f\n", -$1 }')
  [ -n "$(quotient 1 "$speed")" ] || no_results "finished epoch with a speed"
  [ -n "$coverage" ] || no_results "evaluation"
  console="Final Performance iterations/sec : $(printf '%.2f' "$speed")
Final Training Duration sec : $duration
Final Coverage C : $coverage"
  keys="ActualFPS = $(printf '%.2f' "$speed")
TrainingTime = $(quotient 1 "$speed")
ActualLoss = ${losses##*$'\n'}
TrainAccuracy = $coverage"
}
