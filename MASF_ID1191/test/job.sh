# What train_1p.sh needs to know of this model. $kind is acc (full) or perf (performance).
# shellcheck shell=bash disable=SC2034,SC2154
network=MASF_ID1191_for_TensorFlow
program=main.py
data_required=yes
run_marker='*/config.json' # a folder with such a file holds a run
batch_size=126
[ "$processes" = 1 ] || batch_size=120 # what eight processes can divide into thirds
weights_path=
case $kind in
  perf) iterations=5 ;;
  *) iterations=300 ;;
esac

job_usage() { # first lines of --help
  cat <<TEXT
Trains on $processes device(s): $iterations iterations unless --train_iterations says otherwise.
  --data_path=FOLDER       required: has kfold/<domain>/<class>/<image>, bvlc_alexnet.npy (without
                           it the program starts from random weights and warns) and, if they are
                           not those in the model's folder, the lists filelist/<domain>.txt
  --ckpt_path=FILE         bvlc_alexnet.npy, if it is not in --data_path
  --train_iterations=N     iterations
  --target_domain=DOMAIN   the domain not trained on (default cartoon)
  --batch_size=N           images per source domain in a batch (default $batch_size)
TEXT
}

job_flag() { # flag, value -> its place in program_flags; fails for a flag it does not know
  case $1 in
    --train_iterations=*) iterations=$2 ;;
    --batch_size=*)
      whole_number --batch_size "$2"
      batch_size=$2
      ;;
    --ckpt_path=*) weights_path=$2 ;;
    --target_domain=*) program_flags+=("$1") ;;
    *) return 1 ;;
  esac
}

job_flags() {
  local found=()
  job_length="$iterations iterations"
  [ -n "$weights_path" ] || [ ! -e "$data_path/bvlc_alexnet.npy" ] ||
    weights_path=$data_path/bvlc_alexnet.npy
  [ -z "$weights_path" ] || found+=("--weights_path=$weights_path")
  [ ! -d "$data_path/filelist" ] || found+=("--filelist_root=$data_path/filelist")
  program_flags=("--train_iterations=$iterations" "--meta_batch_size=$batch_size"
    "--dataroot=$data_path/kfold" "--output_dir=$run_folder" "${found[@]+"${found[@]}"}"
    "${program_flags[@]+"${program_flags[@]}"}")
}

job_report() { # the log -> losses (global loss), console and keys
  local seconds_per_step speed accuracy
  seconds_per_step=$(log_values '^Perf: +([0-9.eE+-]+)/\1' | median)
  speed=$(quotient "$batch_size" "$seconds_per_step" %.2f)
  losses=$(log_values '^global loss: ([0-9.eE+-]+)/\1')
  accuracy=$(log_values '^Iteration [0-9]+: Accuracy training domains ([0-9.]+)/\1' | tail -n 1)
  if [ -z "$speed" ] || [ -z "$losses" ] || [ -z "$accuracy" ]; then
    no_results "complete report of an iteration"
  fi
  console="Final Performance images/sec : $speed
Final Performance sec/step : $seconds_per_step
Final Training Duration sec : $duration
Final Train Accuracy : $accuracy"
  keys="ActualFPS = $speed
TrainingTime = $seconds_per_step
ActualLoss = ${losses##*$'\n'}
TrainAccuracy = $accuracy"
}
