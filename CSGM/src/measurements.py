"""Measurement matrices A [784, m] and measurements y = x A + noise of 28 x 28 images.

Source: Bora et al. 2017 and their code: every column of A has squared norm 784 (Gaussian ones on
average), so that one weight of the prior suits all kinds of measurement.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numbers

import numpy as np

from npu_session import InputError

SIDE = 28  # pixels
PIXELS = SIDE * SIDE
MEASUREMENT_TYPES = ("gaussian", "superres", "inpaint", "project", "fixed", "learned")
CHOSEN_COUNT_TYPES = ("gaussian", "fixed", "learned")  # m is the user's choice


def measurement_count(measurement_type, m=None, inpaint_size=1, superres_factor=2):
    """Number of measurements m of one image.

    Args:
      measurement_type: one of MEASUREMENT_TYPES.
      m: what the user asked for. inpaint and superres ignore it: their matrix has its own m.
      inpaint_size: pixels, side of the missing block, 1..27; used by inpaint only.
      superres_factor: side of the averaged blocks, a divisor of 28; used by superres only.
    Raises:
      InputError: an unknown type, or a value of which the type in question cannot make a matrix.
    """
    if measurement_type not in MEASUREMENT_TYPES:
        raise InputError(f"measurement type {measurement_type!r} is unknown: use one of "
                         + ", ".join(MEASUREMENT_TYPES))
    if measurement_type == "inpaint":
        return PIXELS - checked_inpaint_size(inpaint_size) ** 2
    if measurement_type == "superres":
        return (SIDE // checked_superres_factor(superres_factor)) ** 2
    if measurement_type in CHOSEN_COUNT_TYPES:
        return checked_count(m)
    return checked_projection_count(m)


def measurement_matrix(measurement_type, rng, m=None, inpaint_size=1, superres_factor=2):
    """A, float64 [784, m], of a type that is not trained; None for project, which has no A.

    Args, Raises: as measurement_count; also InputError for fixed and learned, whose A is a variable
    in a checkpoint. rng: numpy RandomState, used by gaussian only.
    """
    m = measurement_count(measurement_type, m, inpaint_size, superres_factor)
    if measurement_type in ("fixed", "learned"):
        raise InputError(f"a {measurement_type} matrix is not computed but read from a checkpoint: "
                         "train it first")
    if measurement_type == "gaussian":
        return gaussian_matrix(rng, m)
    if measurement_type == "inpaint":
        return inpaint_matrix(inpaint_size)
    return superres_matrix(superres_factor) if measurement_type == "superres" else None


def gaussian_matrix(rng, m):
    """Independent N(0, 1) entries, float64 [784, m]; m may exceed 784. InputError if m < 1."""
    return rng.standard_normal((PIXELS, checked_count(m)))


def inpaint_mask(size):
    """Float64 [28, 28]: 0 in the size x size block in the middle, 1 elsewhere.

    An even size is centred; an odd one lies half a pixel towards the upper left, as upstream's.
    Raises InputError unless 1 <= size <= 27.
    """
    margin = (SIDE - checked_inpaint_size(size)) // 2
    mask = np.ones((SIDE, SIDE))
    mask[margin:margin + size, margin:margin + size] = 0
    return mask


def inpaint_matrix(size):
    """Float64 [784, 784 - size^2]: 28 times the identity's columns of the pixels that are kept."""
    return SIDE * np.eye(PIXELS)[:, inpaint_mask(size).ravel() == 1]


def superres_matrix(factor):
    """Float64 [784, (28 / factor)^2]: a column is 28 / factor on one factor x factor block.

    Blocks are in row-major order; a measurement is 28 * factor * (the block's mean).
    Raises InputError unless factor divides 28.
    """
    blocks = SIDE // checked_superres_factor(factor)
    in_block = np.kron(np.eye(blocks), np.ones((factor, 1)))  # [28, blocks]: pixel row -> block row
    return SIDE / factor * np.kron(in_block, in_block)


def observe(images, matrix, noise_std, rng):
    """Measurements y = x A + noise_std * N(0, 1), float64 [B, m].

    Args:
      images: [B, 784].
      matrix: A [784, m]; None for project, where y = x + noise and m = 784.
      noise_std: standard deviation of the noise of each measurement, at least 0.
      rng: numpy RandomState. B * m numbers are drawn even if noise_std is 0, so that what is drawn
        next does not depend on noise_std.
    Raises:
      InputError: wrong shapes, numbers that are not finite, a negative noise_std.
    """
    images = checked_images(images)
    if not (np.isfinite(noise_std) and noise_std >= 0):
        raise InputError(f"noise standard deviation is {noise_std}: expected a number of at least "
                         "0")
    clean = images if matrix is None else images @ checked_matrix(matrix)
    return clean + noise_std * rng.standard_normal(clean.shape)


def visible_image(measurement_type, images, inpaint_size=1, superres_factor=2, missing=0.5):
    """What the measurements show to the eye: the rows "Masked" and "Blurred" of the figure.

    Args:
      images: [B, 784] in [0, 1].
      missing: grey value of the missing block; 0.5 stays visible on the digits' black ground.
    Returns:
      float64 [B, 784], a copy: for inpaint the images without the block, for superres each block's
      mean in all its pixels; None for the other types, whose measurements are no picture.
    Raises:
      InputError: as measurement_count and observe.
    """
    images = checked_images(images)
    if measurement_type == "inpaint":
        return np.where(inpaint_mask(inpaint_size).ravel() == 1, images, missing)
    if measurement_type == "superres":
        matrix = superres_matrix(superres_factor)
        return images @ matrix @ matrix.T / PIXELS
    return None


def checked_count(m):
    """m as int, if it is a whole number of at least 1."""
    return checked_integer(m, 1, np.inf, "number of measurements", "an integer of at least 1")


def checked_projection_count(m):
    """784; InputError if another m was asked for."""
    if m is not None and m != PIXELS:
        raise InputError(f"number of measurements is {m}: type project observes all {PIXELS} "
                         "pixels; leave the number out")
    return PIXELS


def checked_inpaint_size(size):
    """Size, if its block leaves pixels to measure."""
    return checked_integer(size, 1, SIDE - 1, "inpainting block side",
                           f"1 to {SIDE - 1} ({SIDE} leaves no pixel to measure)")


def checked_superres_factor(factor):
    """Factor, if blocks of that side fill the image."""
    divisors = [side for side in range(1, SIDE + 1) if SIDE % side == 0]
    expected = f"a divisor of {SIDE}, one of " + ", ".join(map(str, divisors))
    factor = checked_integer(factor, 1, SIDE, "super-resolution factor", expected)
    if factor not in divisors:
        raise InputError(f"super-resolution factor is {factor}: expected {expected}")
    return factor


def checked_integer(value, low, high, name, expected):
    """Value as int, or an InputError that says what was expected."""
    if not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise InputError(f"{name} is {value}: expected {expected}")
    return int(value)


def checked_images(images):
    """Images as float64 [B, 784], finite."""
    images = np.asarray(images, np.float64)
    if images.ndim != 2 or images.shape[1] != PIXELS:
        raise InputError(f"images have shape {images.shape}: expected [B, {PIXELS}]")
    if not np.isfinite(images).all():
        raise InputError("images contain NaN or infinity: expected finite grey values; check the "
                         "image files")
    return images


def checked_matrix(matrix):
    """A as float64 [784, m], finite."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != PIXELS or not matrix.shape[1]:
        raise InputError(f"measurement matrix has shape {matrix.shape}: expected [{PIXELS}, m], "
                         "m > 0")
    if not np.isfinite(matrix).all():
        raise InputError("measurement matrix contains NaN or infinity: expected finite numbers; "
                         "train or draw it again")
    return matrix
