"""Where the golden arrays are and by which rules their weights and images are made.

The arrays come from the reference's graph under TensorFlow 1.15 on a CPU. They are read from
$GOLDEN_DIR/MASF if GOLDEN_DIR is set, else from golden/ beside this file. Every file holds the seed
of its set; weights and images follow from it by RS, FILL and IMG.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import functools
import os
import zlib

import numpy as np

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)


def golden_folder():
    """Folder of the .npz files."""
    root = os.environ.get("GOLDEN_DIR")
    return os.path.join(root, "MASF") if root else SHIPPED


@functools.lru_cache(maxsize=None)
def load(name):
    """All arrays of golden file `name`.npz as a dict; do not change them, they are shared."""
    with np.load(os.path.join(golden_folder(), name + ".npz")) as arrays:
        return {key: arrays[key] for key in arrays.files}


def RS(tag, seed):
    """The generator of what `tag` names."""
    return np.random.RandomState((zlib.crc32(tag.encode("ascii")) ^ seed) & 0x7fffffff)


def FILL(name, shape, scale, seed):
    """Weights of the variable `name` (graph name without ":0"), float32."""
    return RS(name, seed).standard_normal(shape).astype(np.float32) * np.float32(scale)


def IMG(tag, n, seed):
    """n network inputs, float32 [n, 227, 227, 3], BGR, mean removed."""
    low = RS(tag, seed).randint(0, 256, size=(n, 8, 8, 3))
    cells = np.repeat(np.repeat(low, 29, axis=1), 29, axis=2)[:, :227, :227]
    return cells.astype(np.float32) - MEAN_BGR
