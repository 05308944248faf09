"""Writes the lists of training and held-out images, from a PACS folder or PACS's own kfold lists.

For each domain: <domain>.txt and <domain>_crossval.txt, lines `photo/dog/056_0022.jpg 1`, grouped
by class, labels 1 to 7 as PACS has them.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import sys

import numpy as np

import data_generator
import npu_session
from data_generator import CLASSES, DOMAINS
from npu_session import InputError

DEFAULT_DATAROOT, DEFAULT_FOLDER = "./kfold/", "./filelist"  # the reference's
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
KFOLD_NAMES = {"": "_train_kfold", "_crossval": "_crossval_kfold"}  # of PACS's own lists
STANDIN_NAME = "standin_"  # generated pictures' names begin with it


def parse_args(argv=None):
    """Flags of the program."""
    parser = npu_session.argument_parser(__doc__)
    add = parser.add_argument
    add("--dataroot", default=DEFAULT_DATAROOT, help="folder with <domain>/<class>/<image>")
    add("--filelist_root", default=DEFAULT_FOLDER, help="folder to write the lists into")
    add("--kfold_lists", metavar="FOLDER",
        help="folder with PACS's <domain>_train_kfold.txt and <domain>_crossval_kfold.txt: take "
             "their folds; default: draw folds from --seed")
    add("--held_out", type=share, default=0.1,
        help="share of each class that is held out, where folds are drawn")
    add("--seed", type=npu_session.seed_number, default=1, help="same seed, same folds")
    add("--force", type=npu_session.boolean, nargs="?", const=True, default=False,
        help="replace lists of other data; those of the stand-in are replaced in any case")
    return parser.parse_args(argv)


def share(text):
    """argparse type: a number above 0 and below 1."""
    if not 0 < float(text) < 1:
        raise ValueError(text)
    return float(text)


def image_names(dataroot, domain, label):
    """Sorted names of the images of one class in a domain; InputError without at least two."""
    folder = os.path.join(dataroot, domain, CLASSES[label])
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {folder}: expected {', '.join(DOMAINS)} in "
                         f"{dataroot}, and {', '.join(CLASSES)} in each of them")
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_ENDINGS))
    if len(names) < 2:
        raise InputError(f"{folder} has {len(names)} images ({', '.join(IMAGE_ENDINGS)}): expected "
                         "two or more, to train on and to hold out")
    return names


def drawn_folds(dataroot, held_out, seed):
    """Folds drawn class by class from a folder: {domain: {suffix: [(entry, label 0..6)]}}.

    Raises:
      InputError: see image_names.
    """
    folds = {domain: {suffix: [] for suffix in data_generator.SUFFIXES} for domain in DOMAINS}
    for number, domain in enumerate(DOMAINS):
        for label, class_name in enumerate(CLASSES):
            names = image_names(dataroot, domain, label)
            count = min(max(1, int(round(held_out * len(names)))), len(names) - 1)
            random = np.random.RandomState([seed, number, label])
            held = set(random.permutation(len(names))[:count])
            for index, name in enumerate(names):
                fold = folds[domain]["_crossval" if index in held else ""]
                fold.append((f"{domain}/{class_name}/{name}", label))
    return folds


def kfold_folds(folder):
    """PACS's own folds, in the form of drawn_folds; InputError for lists missing or damaged."""
    paths = {(domain, suffix): os.path.join(folder, domain + name + ".txt")
             for domain in DOMAINS for suffix, name in KFOLD_NAMES.items()}
    contents = {key: data_generator.read_list(path) for key, path in paths.items()}
    base = data_generator.label_base({paths[key]: numbers
                                      for key, (_, numbers) in contents.items()})
    folds = {}
    for (domain, suffix), (entries, numbers) in contents.items():
        labels = (numbers - base).tolist()
        order = sorted(range(len(labels)), key=labels.__getitem__)
        folds.setdefault(domain, {})[suffix] = [(entries[row], labels[row]) for row in order]
    return folds


def is_standin(path):
    """Whether a list is of generated pictures."""
    try:
        entries, _ = data_generator.read_list(path)
    except InputError:
        return False
    return all(os.path.basename(entry).startswith(STANDIN_NAME) for entry in entries)


def list_text(fold):
    """Content of a list: one line per (entry, label 0..6)."""
    return "".join(f"{entry} {label + 1}\n" for entry, label in fold)


def check_replaceable(folder, folds, force=False):
    """InputError if a list to be written exists with other content, unless it is the stand-in's."""
    for path, text in list_texts(folder, folds).items():
        if force or not os.path.lexists(path) or is_standin(path):
            continue
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                if file.read() == text:
                    continue
        raise InputError(f"{path} exists and lists other data: choose another --filelist_root, or "
                         "replace it with --force")


def list_texts(folder, folds):
    """{path: content} of the lists of some folds."""
    return {data_generator.list_path(folder, domain, suffix): list_text(fold)
            for domain, by_suffix in folds.items() for suffix, fold in by_suffix.items()}


def write_lists(folder, folds, force=False):
    """Writes the lists of folds, which are as drawn_folds returns them.

    Raises:
      InputError: see check_replaceable. OSError: a list cannot be written.
    """
    check_replaceable(folder, folds, force)
    os.makedirs(folder, exist_ok=True)
    for path, text in list_texts(folder, folds).items():
        with npu_session.replacing(path, encoding="utf-8", newline="\n") as file:
            file.write(text)


def check_folds(dataroot, folds):
    """InputError if a training fold lacks a class or an image is missing or damaged."""
    for domain, by_suffix in folds.items():
        for suffix, fold in by_suffix.items():
            entries, labels = zip(*fold)
            data_generator.check_entries(f"the list {domain}{suffix}", entries, list(labels), 1,
                                         every_class=not suffix)
            data_generator.check_images([os.path.join(dataroot, entry) for entry in entries])


def main(argv=None):
    """Reads or draws the folds, checks their images, writes the lists and prints their sizes."""
    args = parse_args(argv)
    folds = (kfold_folds(args.kfold_lists) if args.kfold_lists
             else drawn_folds(args.dataroot, args.held_out, args.seed))
    check_folds(args.dataroot, folds)
    write_lists(args.filelist_root, folds, args.force)
    for domain, by_suffix in folds.items():
        for suffix, fold in by_suffix.items():
            counts = np.bincount([label for _, label in fold], minlength=len(CLASSES))
            print(f"{data_generator.list_path(args.filelist_root, domain, suffix)}: {len(fold)} "
                  f"images, " + " ".join(map("{} {}".format, CLASSES, counts)))
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
