"""The whole job in one command: faces, training by the recipe, pictures, landmark errors.

Without data it draws stand-in faces first. quick: minutes on two cores, enough to see it work, too
short to learn much. full: the recipe of the README's tables. A run that was cut goes on.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import os
import sys

import data_input
import evaluate
import landmark_lists
import make_standin_data
import npu_session
import VDSR
from npu_session import InputError
from VDSR import POSITIVE_INT

RATE, LOWERED = 0.001, 0.9  # the recipe's learning rate, and from which part on it is a tenth
WINDOW = 8  # the recipe's M: with the reference's 4 all landmarks end beside one another
DEFAULT_OUTPUT = "./results"
EPOCHS = 1000000  # more than the updates ever make
LISTS = ("training_images.txt", "held_out_images.txt")

# Updates in all, between log lines and between checkpoints; stand-in faces of the three sets.
Preset = collections.namedtuple(
    "Preset", "max_steps log_every save_every count regressor_count test_count")
PRESETS = {"quick": Preset(200, 10, 100, 600, 200, 100),
           "full": Preset(16000, 100, 1000, 4000, 1000, 250)}


def parse_args(argv=None):
    """Flags; those without a default take it from the preset."""
    parser = npu_session.argument_parser(
        __doc__.splitlines()[0],
        epilog="presets (" + ", ".join(Preset._fields) + "):\n" + "\n".join(
            f"  {name}: {', '.join(map(str, preset))}" for name, preset in PRESETS.items()))
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="quick", help="see below")
    add("--data_path", help="folder with CelebA's or MAFL's lists and, below it, the images; "
                            "default: --data_url, else stand-in faces drawn into <output_dir>")
    add("--output_dir", help="receives everything; default --train_url or "
                            + DEFAULT_OUTPUT)
    add("--K", type=POSITIVE_INT, default=VDSR.DEFAULT_K, help="landmarks")
    add("--batch_size", type=POSITIVE_INT, default=8, help="pairs per update")
    add("--M", type=VDSR.WINDOW, default=WINDOW, help="cells: pooling window of the diversity loss")
    add("--conv_dtype", choices=VDSR.CONV_DTYPES, default="float32",
        help="of the convolutions' operands in training, see VDSR.py")
    for name, meaning in zip(Preset._fields, (
            "updates; the learning rate is a tenth in the last tenth of them",
            "updates between log lines", "updates between checkpoints",
            "stand-in faces to train on only", "stand-in faces to fit the regressor on too",
            "held-out stand-in faces")):
        add("--" + name, type=POSITIVE_INT, help=meaning + "; default from the preset")
    npu_session.add_flags(parser, precision_mode="allow_mix_precision")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset]._asdict().items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def faces(args):
    """The data folder; stand-in faces are drawn where none is given."""
    counts = {name: getattr(args, name) for name in ("count", "regressor_count", "test_count")}
    name = "standin_faces_" + "_".join(map(str, counts.values()))
    return make_standin_data.data_folder(args.data_path, os.path.join(args.output_dir, name),
                                         **counts)


def choose_images(folder, output_dir):
    """Writes the lists of names to train on and to test: no image is in both.

    Training gets CelebA's training part, or where there is no such list everything, without the
    held-out images.

    Returns:
      (list, folder of its images) of training, the same of testing; all of them paths.
    Raises:
      InputError: no lists, images that are missing, or none to train on.
    """
    held_out = landmark_lists.split_names(folder).testing
    test_folder = os.path.dirname(landmark_lists.find_images(folder, held_out)[0])
    paths = data_input.find_images(folder)
    partition = landmark_lists.find_list(folder, landmark_lists.PARTITION_FILE)
    parts = landmark_lists.read_partition(partition) if partition else {}
    names = [name for name in map(os.path.basename, paths) if name not in set(held_out)
             and parts.get(name, landmark_lists.TRAINING) == landmark_lists.TRAINING]
    if not names:
        raise InputError(f"{os.path.dirname(paths[0])} holds no images to train on: the lists "
                         "hold all of them out")
    lists = [os.path.join(output_dir, name) for name in LISTS]
    for path, chosen in zip(lists, (names, held_out)):
        landmark_lists.write_lines(path, chosen)
    return (lists[0], os.path.dirname(paths[0])), (lists[1], test_folder)


def flags_of(args, mode, images, output_dir):
    """The flags of VDSR.py in a mode; images: (list, folder)."""
    return shared_flags(args) + [
        f"--mode={mode}", f"--image_list={images[0]}", f"--input_dir={images[1]}",
        f"--output_dir={os.path.join(args.output_dir, output_dir)}", f"--K={args.K}"]


def shared_flags(args):
    """Flags that every program started from here gets as they are."""
    return [f"--{name}={getattr(args, name)}" for name in (
        "seed", "threads", "precision_mode", "over_dump", "data_dump_flag", "data_dump_step",
        "profiling")]


def recipe(args):
    """What the recipe changes of the reference's training."""
    return [f"--{name}={getattr(args, name)}" for name in (
        "batch_size", "M", "conv_dtype", "max_steps", "log_every", "save_every", "resume")] + [
            f"--max_epochs={EPOCHS}", f"--learning_rate={RATE}", "--exact_coordinates=True",
            f"--lower_rate_after={max(1, int(LOWERED * args.max_steps))}"]


def run(args):
    """Runs the steps that are not complete, and evaluates; returns the exit code."""
    result = os.path.join(args.output_dir, "result.json")
    try:
        os.makedirs(args.output_dir, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to the folder {args.output_dir}: "
                         f"{error.strerror}") from None
    folder = faces(args)
    training, testing = choose_images(folder, args.output_dir)
    with contextlib.suppress(FileNotFoundError):
        os.remove(result)
    code = VDSR.main(flags_of(args, "train", training, "training") + recipe(args))
    if code:
        return code
    checkpoint = f"--checkpoint={os.path.join(args.output_dir, 'training', 'ckpt')}"
    VDSR.main(flags_of(args, "test", testing, "test") + [checkpoint])
    evaluation = os.path.join(args.output_dir, "evaluation")
    evaluate.main(shared_flags(args) + [checkpoint, f"--data_path={folder}", f"--K={args.K}",
                                        f"--result_dir={evaluation}"])
    measured = npu_session.read_json(os.path.join(evaluation, "result.json"))
    npu_session.write_json(result, dict(measured, preset=args.preset))
    errors = measured["error_percent"]
    print("landmark error on {test_images} held-out images of {data}: {} % of the inter-ocular "
          "distance without bias, {} % with, {} % by the mean shape".format(
              *(f"{errors[name]:.2f}" for name in ("no_bias", "bias", "mean_shape")), **measured))
    print(f"results in {args.output_dir}: training/images, test/contact_sheet.jpg, evaluation/, "
          "result.json")
    return 0


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs; returns the exit code."""
    args = parse_args(argv)
    npu_session.require_one_process("reproduce.py runs its programs one after the other")
    with npu_session.staged(args.data_url, args.train_url) as (data, output):
        args.data_path = args.data_path or data
        is_copied_out = output != args.train_url
        args.output_dir = (not is_copied_out and args.output_dir) or output or DEFAULT_OUTPUT
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
