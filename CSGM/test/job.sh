# What train_1p.sh needs to know of this model. $kind is acc (full) or perf (performance).
# shellcheck shell=bash disable=SC2034,SC2154
network=CSGM_ID2109_for_TensorFlow
program=mnist_vae/src/main.py
data_required=yes
run_marker=models/mnist-vae/config.json # a folder with this file holds a run
batch_size=100
[ "$processes" = 1 ] || batch_size=104 # what eight processes can divide
case $kind in
  perf) epochs=1 ;;
  *) epochs=750 ;;
esac

job_usage() { # first lines of --help
  cat <<TEXT
Trains the VAE on $processes device(s): $epochs epochs unless --train_epochs says otherwise.
  --data_path=FOLDER       required: folder of the four MNIST .gz files, or of MNIST-data/ with them
  --ckpt_path=FOLDER       folder for the checkpoints instead of the run folder's own
  --train_epochs=N         epochs
  --train_steps=N          stop after N steps
  --batch_size=N           images in a batch (default $batch_size)
TEXT
}

job_flag() { # flag, value -> its place in program_flags; fails for a flag it does not know
  case $1 in
    --train_epochs=*) epochs=$2 ;;
    --batch_size=*)
      whole_number --batch_size "$2"
      batch_size=$2
      ;;
    --ckpt_path=*) program_flags+=("--ckpt_dir=$2") ;;
    --train_steps=*) program_flags+=("--max_steps=$2") ;;
    *) return 1 ;;
  esac
}

job_flags() {
  job_length="$epochs epochs"
  program_flags=("--epochs=$epochs" "--batch_size=$batch_size" "--data_dir=$data_path"
    "--output_dir=$run_folder" "${program_flags[@]+"${program_flags[@]}"}")
}

step_line='.*step [0-9]+, loss = ([0-9.eE+-]+) \(([0-9.]+) examples\/sec; [0-9.]+ sec\/batch\).*'

train_accuracy() { # the last line's smallest reconstruction error; None where no epoch had one
  local error=
  if [ "$kind" = acc ]; then
    # The program starts with 10000 for "none yet".
    error=$(log_values '.*min_reconstruct_error_in_epoch:[0-9]+,reis([0-9.]+)=+.*/\1' |
      tail -n 1 | sed '/^10000\.0*$/d')
  fi
  printf '%s\n' "${error:-None}"
}

job_report() { # the log -> losses, console and keys
  local speed seconds_per_batch accuracy
  speed=$(log_values "$step_line/\2" | median)
  seconds_per_batch=$(quotient "$batch_size" "$speed")
  [ -n "$seconds_per_batch" ] || no_results "step line with a speed"
  speed=$(printf '%.2f' "$speed")
  losses=$(log_values "$step_line/\1")
  accuracy=$(train_accuracy)
  console="Final Performance images/sec : $speed
Final Performance sec/step : $seconds_per_batch
Final Training Duration sec : $duration
Final Train Accuracy : $accuracy"
  keys="ActualFPS = $speed
TrainingTime = $seconds_per_batch
ActualLoss = ${losses##*$'\n'}
TrainAccuracy = $accuracy"
}
