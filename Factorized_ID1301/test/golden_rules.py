"""Where the golden arrays are and by which rules their inputs and variables are made.

The arrays come from the reference program under TensorFlow 1.15 on a CPU. They are read from
$GOLDEN_DIR/Factorized if GOLDEN_DIR is set, else from golden/ beside this file. Every set has one
seed, and all inputs follow from it by the functions below.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import functools
import os
import re
import zlib

import numpy as np

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
SEARCHED_SEEDS = 100000  # 0..99999: tried where nothing names the seed; seconds
COMPARED = 20  # numbers: enough to tell two seeds apart
PEAKY = "cnn_tower/layer_6/BatchNorm/gamma"  # the variable that sharpens the heat maps


def RS(seed):
    """The generator of all draws."""
    return np.random.RandomState(seed)


def variable(name, shape, seed):
    """Value of the variable `name` (graph name without ":0"), float32."""
    n = RS((zlib.crc32(name.encode("ascii")) ^ seed) & 0x7fffffff).standard_normal(shape)
    n = n.astype(np.float32)
    last = name.split("/")[-1]
    if last == "filter":
        value = n * np.sqrt(2 / (25 * shape[2]))
    elif last == "gamma":
        value = 3 + 0.3 * n if name == PEAKY else 1 + 0.1 * n
    else:
        value = np.exp(0.2 * n) if last == "moving_variance" else 0.05 * n
    return value.astype(np.float32)


def images(batch_size, seed):
    """(A, B), float32 [batch_size, 128, 128, 3] each."""
    rs = RS(seed)
    coarse = rs.standard_normal((2, batch_size, 16, 16, 3))
    fine = rs.standard_normal((2, batch_size, 128, 128, 3))
    return np.tanh(coarse.repeat(8, 2).repeat(8, 3) + 0.3 * fine).astype(np.float32)


def logits(seed):
    """(LA, LB), float32 [2, 42, 42, 8] each, of losses.npz."""
    rs = RS(seed + 30)
    return [np.maximum(0, 3 * rs.standard_normal((2, 42, 42, 8))).astype(np.float32)
            for _ in range(2)]


def draws(seed, n, w):
    """Numbers of n random warps, float32 [n, 5]."""
    rs = RS(seed + 77)
    return np.array([[rs.uniform(-.5, .5), rs.standard_normal() * w, rs.standard_normal() * w,
                      rs.uniform(.8 - w, 1.1 + w), rs.standard_normal() * .1]
                     for _ in range(n)]).astype(np.float32)


def golden_folder():
    """Folder of the .npz files."""
    root = os.environ.get("GOLDEN_DIR")
    return os.path.join(root, "Factorized") if root else SHIPPED


@functools.lru_cache(maxsize=None)
def load(name):
    """All arrays of golden file `name`.npz as a dict; do not change them, they are shared."""
    with np.load(os.path.join(golden_folder(), name + ".npz")) as arrays:
        return {key: arrays[key] for key in arrays.files}


@functools.lru_cache(maxsize=None)
def find_seed(folder=None):
    """The seed of the set in `folder` (default: the one in use).

    Tried in this order: numbers after the word SEED in the README.md of the folder and of the one
    above, $GOLDEN_SEED, the folder's file SEED, and 0..99999. The first is taken that reproduces
    the images of tps.npz, so an outdated note misleads nobody.

    Raises:
      AssertionError: none does.
    """
    folder = folder or golden_folder()
    with np.load(os.path.join(folder, "tps.npz")) as arrays:
        expected = arrays["U"].ravel()[:COMPARED]
    named = named_seeds(folder)
    generator = RS(0)  # seeded again for each trial: ten times faster than a new one
    for seed in named + list(range(SEARCHED_SEEDS)):
        if seed_fits(seed, expected, generator):
            return seed
    raise AssertionError(
        f"no seed reproduces the images of {folder}/tps.npz: tried {named} and 0 to "
        f"{SEARCHED_SEEDS - 1}; set GOLDEN_SEED, or write SEED = <number> to {folder}/README.md")


def named_seeds(folder):
    """Seeds that the READMEs, the environment and the file SEED name, in this order."""
    texts = [read_text(os.path.join(folder, "README.md")),
             read_text(os.path.join(folder, os.pardir, "README.md")),
             "SEED = " + os.environ.get("GOLDEN_SEED", ""),
             "SEED = " + read_text(os.path.join(folder, "SEED"))]
    return [int(digits) for text in texts
            for digits in re.findall(r"\bSEED\b\W{0,8}(\d{1,10})\b", text, re.IGNORECASE)]


def read_text(path):
    """Content of a text file, "" if there is none."""
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def seed_fits(seed, expected, generator):
    """Whether the first image of tps.npz, drawn from the seed, begins as expected."""
    if not 0 <= seed < 2 ** 32:
        return False
    generator.seed(seed)
    return np.allclose(generator.standard_normal(len(expected)), expected, rtol=0, atol=1e-6)


def assert_close(ours, golden, tolerance, name=""):
    """|ours - golden| <= tolerance * the largest |golden|."""
    golden = np.asarray(golden, np.float64)
    assert np.shape(ours) == golden.shape, name
    scale = np.abs(golden).max()
    difference = np.abs(np.asarray(ours, np.float64) - golden).max()
    assert difference <= tolerance * scale, f"{name}: {difference:.3g} of {scale:.3g}"


def stats(array):
    """[mean, standard deviation, L2 norm, minimum, maximum] in float64."""
    array = np.asarray(array, np.float64)
    return np.array([array.mean(), array.std(), np.sqrt(np.sum(array ** 2)), array.min(),
                     array.max()])
