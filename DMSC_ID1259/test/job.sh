# What train_1p.sh needs to know of this model. $kind is acc (full) or perf (performance).
# shellcheck shell=bash disable=SC2034,SC2154
network=Deep-multimodal-subspace-clustering-networks_ID1259_for_TensorFlow
program=pretrain_affinity_fusion.py
data_required=yes
run_marker='logs/*/config.json' # a folder with such a file holds a run
batch_size=256                  # the contract's name of the case; the results tell the real one
model=mymodel
mat=EYB_fc
case $kind in
  perf) length=(--max_train_steps=150) mode=train ;;
  *) length=(--epoch=100000) mode=train_and_evaluate ;;
esac

job_usage() { # first lines of --help
  cat <<TEXT
Pre-trains the network on one device and, with --mode=train_and_evaluate, clusters the images.
Here: ${length[*]} --mode=$mode
  --data_path=FOLDER       required: its Data/ has the .mat file
  --data_dir=FOLDER        folder that has the .mat file, instead of --data_path
  --mat=NAME               the file, without .mat (default $mat)
  --mode=MODE              train, evaluate or train_and_evaluate
  --model=NAME             name of the weights in the run folder's models/ (default $model)
  --epoch=N                passes over the data
  --max_train_steps=N      steps in all, instead of --epoch
  --rank_size=N            processes; the program refuses all but 1
TEXT
}

job_flag() { # flag, value -> its place in program_flags; fails for a flag it does not know
  case $1 in
    --epoch=* | --max_train_steps=*) length=("$1") ;;
    --mode=*) mode=$2 ;;
    --mat=*) mat=$2 ;;
    --model=*) model=$2 ;;
    --data_dir=*)
      data_required=no
      program_flags+=("$1")
      ;;
    --rank_size=*) program_flags+=("$1") ;;
    *) return 1 ;;
  esac
}

job_flags() {
  job_length="${length[*]} --mode=$mode"
  [ -z "$data_path" ] || program_flags=("--data_path=$data_path"
    "${program_flags[@]+"${program_flags[@]}"}")
  program_flags=("--mat=$mat" "--model=$model" "${length[@]}" "--mode=$mode"
    "--output_dir=$run_folder" "${program_flags[@]+"${program_flags[@]}"}")
}

job_report() { # the log -> losses (cost of stage 1), console, keys and the real batch size
  local seconds_per_step speed accuracy
  seconds_per_step=$(log_values '^perf: ([0-9.]+)/\1' | median)
  batch_size=$(log_values '^batch_size = ([0-9]+)/\1' | head -n 1)
  speed=$(quotient "$batch_size" "$seconds_per_step" %.2f)
  losses=$(log_values '^cost: ([0-9.eE+-]+)/\1')
  accuracy=$(log_values '^last step [0-9]+: ACC ([0-9.]+)%.*/\1' | tail -n 1)
  if [ -z "$speed" ] || [ -z "$losses" ]; then
    no_results "line of perf: and cost:"
  fi
  console="Final Training Duration sec : $duration
Final Performance images/sec : $speed"
  keys="ActualFPS = $speed
TrainingTime = $seconds_per_step
ActualLoss = ${losses##*$'\n'}
TrainAccuracy = ${accuracy:-None}"
}
