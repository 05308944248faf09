"""Unsupervised landmarks by factorized spatial embeddings: trains, or finds landmarks in images.

Start file; --mode train is train.py, --mode test is test.py. The network and its losses:
model_def.py. Landmark errors: evaluate.py.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import os
import sys

import npu_session
from data_input import SMALLEST_FRAME
from npu_session import InputError
from utils.warp import MAP_SIZE, PAIR_WARP

DEFAULT_OUTPUT = "./output"
DEFAULT_K = 8
CONV_DTYPES = ("float32", "bfloat16")
OVERLAYS = ("correct", "reference", "none")


def number(convert, accepts, text):
    """argparse type that converts and accepts only some values, described by `text`."""
    def parse(value):
        found = convert(value)
        if not accepts(found):
            raise ValueError(value)
        return found
    parse.__name__ = text
    return parse


POSITIVE_INT = number(int, lambda value: value > 0, "integer above 0")
POSITIVE = number(float, lambda value: 0 < value < float("inf"), "number above 0")
WEIGHT = number(float, lambda value: 0 <= value < float("inf"), "number of at least 0")
STRENGTH = number(float, lambda value: 0 <= value <= 0.5, "number from 0 to 0.5")
BELOW_ONE = number(float, lambda value: 0 <= value < 1, "number from 0 to below 1")
WINDOW = number(int, lambda value: 0 < value <= MAP_SIZE, f"integer from 1 to {MAP_SIZE}")


def parse_args(argv=None, mode="train"):
    """Flags of training and test mode; defaults are the reference's. mode: default of --mode."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--mode", choices=["train", "test"], default=mode, help="train, or find landmarks")
    add("--input_dir", help="folder of .jpg, .jpeg and .png images, or whose data10w has them; "
                            "default: stand-in faces are made and used")
    add("--image_list", help="use only the images that this file names: a list of names, or "
                             "CelebA's list_eval_partition.txt (its training part, in test mode "
                             "its test part)")
    add("--output_dir", help="receives checkpoints, logs and pictures; default --train_url or "
                             + DEFAULT_OUTPUT)
    add("--checkpoint", help="folder with the checkpoint to test, default <output_dir>/ckpt, or "
                             "to begin training from")
    add("--num_gpus", choices=["1"], default="1", help="one device per process")
    model = parser.add_argument_group("model")
    model.add_argument("--K", type=POSITIVE_INT, help="landmarks; default 8, in test mode the "
                                                      "checkpoint's")
    model.add_argument("--scale_size", type=POSITIVE_INT, default=146,
                       help="pixels: images are resized to this square")
    model.add_argument("--crop_size", type=POSITIVE_INT, default=146,
                       help=f"pixels: square cut from it at random; at least {SMALLEST_FRAME}")
    add_training_flags(parser.add_argument_group("training"))
    add("--random_seed", dest="seed", type=npu_session.seed_number, help="same as --seed")
    npu_session.add_flags(parser, precision_mode="allow_mix_precision")
    add("--overlay", choices=OVERLAYS, default="correct",
        help="test mode: the pictures of single images with landmarks where they are, in the "
             "reference's style (1.52 times too far from the centre), or none")
    parser.set_defaults(seed=1234)
    args = parser.parse_args(argv)
    check_sizes(args)
    if args.mode == "train":
        args.K = args.K or DEFAULT_K
    return args


def add_training_flags(group):
    """Flags that act in train mode only."""
    add = group.add_argument
    add("--batch_size", type=POSITIVE_INT, default=32, help="pairs per update; images in test mode")
    add("--max_epochs", type=POSITIVE_INT, default=200, help="epochs in all")
    add("--max_steps", type=POSITIVE_INT, help="stop after this many updates")
    add("--learning_rate", type=POSITIVE, default=0.0001, help="of Adam")
    add("--lower_rate_after", type=POSITIVE_INT,
        help="updates after which the learning rate is a tenth; default: never")
    add("--beta1", type=BELOW_ONE, default=0.5, help="of Adam")
    add("--align_weight", type=WEIGHT, default=1.0, help="of the alignment loss")
    add("--diversity_weight", type=WEIGHT, default=500.0, help="of the diversity loss")
    add("--M", type=WINDOW, default=4, help="cells: pooling window of the diversity loss")
    add("--weight_decay", type=WEIGHT, default=0.0005, help="of the filters")
    add("--pair_warp", type=STRENGTH, default=PAIR_WARP,
        help="strength of shift and scale between the two images of a pair")
    add("--tps_weight", type=WEIGHT, default=0.0,
        help="deviation of the spline weights; 0: the warps are affine, as the reference's; "
             "try 0.01")
    add("--exact_coordinates", type=npu_session.boolean, nargs="?", const=True, default=False,
        metavar="True|False", help="align where the warp really takes the pixels, instead of by "
                                   "the reference's approximate geometry")
    add("--conv_dtype", choices=CONV_DTYPES, default="float32",
        help="of the convolutions' operands in training; bfloat16 is three times as fast on CPUs "
             "that multiply it in hardware (AMX), with TensorFlow 2.x")
    add("--cache_images", type=npu_session.boolean, nargs="?", const=True, default=False,
        metavar="True|False", help="keep all images decoded in memory (64 KB each), which rounds "
                                   "them to 8 bits after resizing instead of before")
    add("--summary_freq", "--log_every", type=int, default=20,
        help="updates between log lines; 0: only the last")
    add("--save_freq", "--save_every", type=int, default=500,
        help="updates between checkpoints; 0: only the last")
    add("--iterations_per_loop", type=POSITIVE_INT,
        help="updates per session.run on the NPU; default: the most that fit the flags above")


def check_sizes(args):
    """InputError unless crop_size is between the network's input and scale_size."""
    if args.crop_size > args.scale_size:
        raise InputError(f"--crop_size={args.crop_size} is larger than "
                         f"--scale_size={args.scale_size}: the crop is cut from the scaled image")
    if args.crop_size < SMALLEST_FRAME:
        raise InputError(f"--crop_size={args.crop_size} is too small: the network's "
                         f"input needs at least {SMALLEST_FRAME} pixels")


def main(argv=None, mode="train"):
    """Parses the flags, stages ModelArts' folders and runs the mode; returns the exit code."""
    args = parse_args(argv, mode)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, results):
        args.input_dir = args.input_dir or data_dir
        copied_out = results != args.train_url
        args.output_dir = (results if copied_out else args.output_dir) or results or DEFAULT_OUTPUT
        args.ckpt_dir = os.path.join(results or args.output_dir, "ckpt")
        return importlib.import_module(args.mode).run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
