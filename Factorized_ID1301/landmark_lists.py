"""CelebA's and MAFL's text files: five annotated points per image, partitions, lists of names.

Points are (x, y) in pixels of the image as it lies on disk, in the order of POINTS; left and right
are the picture's. Also the list that we write: where the unsupervised landmarks are.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import csv
import os

import numpy as np

import npu_session
from npu_session import InputError

POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
COLUMNS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")
LANDMARK_FILE, PARTITION_FILE = "list_landmarks_align_celeba.txt", "list_eval_partition.txt"
TRAINING_FILE, TESTING_FILE = "training.txt", "testing.txt"  # MAFL's two lists of names
STANDIN_NOTE = "STANDIN.txt"  # lies beside generated files and marks them as not being CelebA
LIST_FOLDERS = ("", "Anno", "Eval", "MAFL")  # below the data folder, as CelebA is distributed
IMAGE_FOLDERS = ("", "data10w", "img_align_celeba", "Img/img_align_celeba", "img_align")
TRAINING, TESTING = 0, 2  # numbers in PARTITION_FILE; 1 is validation

Landmarks = collections.namedtuple("Landmarks", "names points")  # [str], float64 [N, 5, 2]
Split = collections.namedtuple("Split", "training testing source")  # [str], [str], str


def data_name(folder):
    """"stand-in faces" if the folder or the one that holds it is marked so, else its own name."""
    folder = os.path.abspath(folder)
    for place in (folder, os.path.dirname(folder)):
        if os.path.exists(os.path.join(place, STANDIN_NOTE)):
            return "stand-in faces"
    return f"images of {os.path.basename(folder)}"


def read_lines(path):
    """Lines of a text file that are not empty; InputError if it cannot be read as one."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list ({error}): give the text file as CelebA "
                         "or MAFL distributes it") from None


def write_lines(path, lines):
    """Writes a text file, whole or not at all."""
    with npu_session.replacing(path, encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def refuse_repeated(path, names):
    """InputError naming the first name that stands twice in a list."""
    if len(set(names)) < len(names):
        twice, _ = collections.Counter(names).most_common(1)[0]
        raise InputError(f"{path} lists {twice} more than once: remove the surplus lines")


def read_landmarks(path):
    """Reads annotated points in CelebA's format.

    Line 1: number of images. Line 2: the ten COLUMNS. Then a file name and ten numbers per line.

    Args:
      path: of list_landmarks_align_celeba.txt.
    Returns:
      Landmarks: names [str], points float64 [N, 5, 2], (x, y) in pixels.
    Raises:
      InputError: unreadable, other columns, a line that does not hold a name and ten finite
        numbers, another count than line 1 says, a name twice, eyes in one place.
    """
    lines = read_lines(path)
    if len(lines) < 2 or not lines[0].isdigit() or tuple(lines[1].split()) != COLUMNS:
        raise InputError(f"{path} does not begin like {LANDMARK_FILE}: expected the number of "
                         f"images, then the line \"{' '.join(COLUMNS)}\"")
    rows = [line.split() for line in lines[2:]]
    for number, row in enumerate(rows):
        check_row(f"image {number + 1} in {path}", row)
    if len(rows) != int(lines[0]):
        raise InputError(f"{path} announces {lines[0]} images but lists {len(rows)}: it is cut or "
                         "joined from pieces; correct its first line, or copy it again")
    names = [row[0] for row in rows]
    refuse_repeated(path, names)
    points = np.array([row[1:] for row in rows], np.float64).reshape(-1, len(POINTS), 2)
    check_eyes(path, names, points)
    return Landmarks(names, points)


def check_row(place, row):
    """InputError unless a list is a file name and ten finite numbers."""
    try:
        if len(row) == 1 + len(COLUMNS) and np.isfinite([float(text) for text in row[1:]]).all():
            return
    except ValueError:
        pass
    raise InputError(f"{place} is \"{' '.join(row)}\", expected a file name and "
                     f"{len(COLUMNS)} numbers: correct the line")


def check_eyes(path, names, points):
    """InputError naming the first image whose eyes are in one place: errors divide by their gap."""
    same = np.flatnonzero((points[:, 0] == points[:, 1]).all(axis=1))
    if len(same):
        raise InputError(f"{path} puts both eyes of {names[same[0]]} in one place: correct it")


def write_landmarks(path, names, points):
    """Writes points [N, 5, 2], rounded to integers, in CelebA's format."""
    rows = np.round(points).astype(int).reshape(len(names), len(COLUMNS))
    lines = [" ".join([name] + [f"{number:4d}" for number in row])
             for name, row in zip(names, rows)]
    write_lines(path, [str(len(names)), " ".join(COLUMNS)] + lines)


def read_partition(path):
    """{name: 0 training, 1 validation, 2 testing} of a list_eval_partition.txt.

    Raises:
      InputError: unreadable, a line that is not a name and 0, 1 or 2, or a name twice.
    """
    rows = [line.split() for line in read_lines(path)]
    for number, row in enumerate(rows):
        if len(row) != 2 or row[1] not in ("0", "1", "2"):
            raise InputError(f"line {number + 1} of {path} is \"{' '.join(row)}\", expected a file "
                             "name and 0, 1 or 2: correct the line")
    refuse_repeated(path, [name for name, _ in rows])
    return {name: int(number) for name, number in rows}


def write_partition(path, parts):
    """Writes {name: 0, 1 or 2} as list_eval_partition.txt."""
    write_lines(path, [f"{name} {number}" for name, number in parts.items()])


def read_names(path):
    """File names of MAFL's training.txt or testing.txt: one per line, none twice, at least one."""
    names = read_lines(path)
    for number, name in enumerate(names):
        if len(name.split()) != 1:
            raise InputError(f"line {number + 1} of {path} is \"{name}\", expected one file name")
    if not names:
        raise InputError(f"{path} lists no images")
    refuse_repeated(path, names)
    return names


def find_list(data_path, name):
    """Path of a list below the data folder, None if it is in none of LIST_FOLDERS."""
    paths = [os.path.join(data_path, folder, name) for folder in LIST_FOLDERS]
    return next((path for path in paths if os.path.isfile(path)), None)


def split_names(data_path, train_list=None, test_list=None):
    """Which images fit the regressor and which are held out.

    Taken from the two lists where they are given, else from MAFL's lists in the data folder, else
    from CelebA's partition (training against testing).

    Returns:
      Split: names of both sets and, in words, where they come from.
    Raises:
      InputError: only one list is given, none can be found, a set is empty, or the sets overlap.
    """
    if bool(train_list) != bool(test_list):
        raise InputError("--train_list and --test_list belong together: give both or neither")
    lists = (train_list or find_list(data_path, TRAINING_FILE),
             test_list or find_list(data_path, TESTING_FILE))
    partition = find_list(data_path, PARTITION_FILE)
    if all(lists):
        split = Split(read_names(lists[0]), read_names(lists[1]), " and ".join(lists))
    elif partition:
        parts = read_partition(partition)
        split = Split(*([name for name in parts if parts[name] == number]
                        for number in (TRAINING, TESTING)), partition)
    else:
        raise InputError(f"{data_path} has neither {TRAINING_FILE} and {TESTING_FILE} (MAFL) nor "
                         f"{PARTITION_FILE} (CelebA): copy them there, or give --train_list and "
                         "--test_list")
    check_split(split)
    return split


def check_split(split):
    """InputError unless both sets have images and share none."""
    for names, what in ((split.training, "training"), (split.testing, "testing")):
        if not names:
            raise InputError(f"{split.source} names no {what} images")
    shared = set(split.training) & set(split.testing)
    if shared:
        raise InputError(f"{split.source}: {len(shared)} images, {min(shared)} for one, are in "
                         "both sets: an error on them would not be one on held-out images")


def select(landmarks, names, path):
    """Points float64 [len(names), 5, 2] of the named images; path: where they were read.

    Raises:
      InputError: images that the landmark list misses.
    """
    place = {name: number for number, name in enumerate(landmarks.names)}
    missing = [name for name in names if name not in place]
    if missing:
        raise InputError(f"{path} misses {len(missing)} of the {len(names)} images asked for, "
                         f"{missing[0]} for one: use the list that belongs to the images")
    return landmarks.points[[place[name] for name in names]]


def find_images(data_path, names, image_dir=None):
    """Paths of the named images: in image_dir if it is given, else below the data folder.

    Raises:
      InputError: images that are not there; the first is named.
    """
    folders = [image_dir] if image_dir else [os.path.join(data_path, folder)
                                             for folder in IMAGE_FOLDERS]
    present = [(folder, set(os.listdir(folder))) for folder in folders if os.path.isdir(folder)]
    paths = [next((os.path.join(folder, name) for folder, files in present if name in files), None)
             for name in names]
    missing = [name for name, path in zip(names, paths) if path is None]
    if missing:
        raise InputError(f"{len(missing)} of {len(names)} listed images, {missing[0]} for one, are "
                         f"in none of {', '.join(folders)}: copy them there, or give --image_dir")
    return paths


def write_coordinates(folder, names, cells, pixels):
    """Writes coordinates.csv and coordinates.npz into a folder that exists.

    Args:
      names: [str] of N images.
      cells: [N, K, 2], (row, column) expectations in heat-map cells; in the .npz only.
      pixels: [N, K, 2], (x, y) in pixels of the image as it lies on disk.
    Returns:
      Paths of the two files.
    """
    paths = [os.path.join(folder, "coordinates" + ending) for ending in (".csv", ".npz")]
    count = np.shape(pixels)[1]
    header = ["name"] + [f"{axis}{k + 1}" for k in range(count) for axis in "xy"]
    with npu_session.replacing(paths[0], newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for name, row in zip(names, np.reshape(pixels, (len(names), 2 * count))):
            writer.writerow([name] + [f"{number:.3f}" for number in row])
    with npu_session.replacing(paths[1], "wb") as file:
        np.savez(file, names=np.array(names), cells=np.asarray(cells, np.float32),
                 pixels=np.asarray(pixels, np.float32))
    return paths
