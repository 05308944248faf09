"""Types of flags, image files, and arrays in batches of one size."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import matplotlib.image
import numpy as np

import npu_session


def flag_type(convert, accepts, text):
    """argparse type that converts and accepts only some values, described by `text`."""
    def parse(value):
        number = convert(value)
        if not accepts(number):
            raise ValueError(value)
        return number
    parse.__name__ = text
    return parse


POSITIVE_INT = flag_type(int, lambda number: number > 0, "integer above 0")
COUNT = flag_type(int, lambda number: number >= 0, "integer of at least 0")
POSITIVE = flag_type(float, lambda number: 0 < number < np.inf, "number above 0")
WEIGHT = flag_type(float, lambda number: 0 <= number < np.inf, "number of at least 0")


def image_grid(images, rows, columns):
    """float [rows * columns, 784] -> float [rows * 28, columns * 28], row by row."""
    tiles = np.reshape(images, (rows, columns, 28, 28))
    return tiles.transpose(0, 2, 1, 3).reshape(rows * 28, columns * 28)


def save_image_grid(path, images):
    """Writes images [N, 784] as a square grey PNG grid, stretched from minimum to maximum.

    The stretch is what the reference's image writer did. Missing tiles stay black.
    """
    side = int(np.ceil(np.sqrt(len(images))))
    padded = np.zeros((side * side, 784), np.float32)
    padded[:len(images)] = images
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        matplotlib.image.imsave(file, image_grid(padded, side, side), cmap="gray", format="png")


def save_image(path, image):
    """Writes one image [784] in [0,1] as a 28 x 28 grey PNG, 0 black and 1 white."""
    with npu_session.replacing(path, "wb") as file:
        matplotlib.image.imsave(file, np.reshape(image, (28, 28)), cmap="gray", vmin=0, vmax=1,
                                format="png")


def reconstruction_error(reconstructed, images):
    """Mean squared error per pixel of two [N, 784] arrays, as the seed's log reports it."""
    difference = np.asarray(reconstructed, np.float64) - images
    return float(np.mean(np.square(difference)))


def in_batches(function, batch_size, *arrays):
    """Applies `function`, which takes batch_size rows, to arrays of any length N.

    The last batch is filled up with copies of its first row and the surplus dropped, so that
    every call has the same shape (the NPU compiles a graph per shape).
    """
    results, count = [], len(arrays[0])
    for start in range(0, count, batch_size):
        pieces = [array[start:start + batch_size] for array in arrays]
        missing = batch_size - len(pieces[0])
        padded = [np.concatenate([piece, np.repeat(piece[:1], missing, axis=0)])
                  for piece in pieces]
        results.append(function(*padded)[:batch_size - missing])
    return np.concatenate(results)
