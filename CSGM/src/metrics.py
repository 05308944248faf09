"""Errors of recovered images and their mean with a 95 % bar. Plain numpy.

Images are rows of 784 pixels in [0, 1]. Source: Bora et al. 2017, section 6, and their code.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np

from npu_session import InputError

NORMAL_95 = 1.96  # half width of a normal distribution's central 95 %, in standard deviations

# mean; standard_error = std / sqrt(count); bar = 1.96 * standard_error; count = number of values.
Summary = collections.namedtuple("Summary", "mean standard_error bar count")


def measurement_loss(x_hat, matrix, y):
    """Mean over the measurements of (y - x_hat A)^2.

    Args:
      x_hat: [B, 784].
      matrix: A [784, m]; None for project, where y is compared with x_hat itself.
      y: [B, m].
    Returns:
      float64 [B], squared units of y. NaN in an image's values gives NaN for that image.
    Raises:
      InputError: shapes that do not fit (nothing is broadcast).
    """
    x_hat = np.asarray(x_hat, np.float64)
    predicted = x_hat if matrix is None else x_hat @ np.asarray(matrix, np.float64)
    return mean_square(predicted, y, "predicted and given measurements")


def l2_loss(x_hat, x):
    """Mean over the pixels of (x_hat - x)^2, float64 [B]; InputError if the shapes differ.

    This per-pixel squared error is what the reference's figures call reconstruction error.
    """
    return mean_square(x_hat, x, "estimates and images")


def mean_square(first, second, names):
    """Mean over the last axis of (first - second)^2 for two [B, n] arrays, float64 [B]."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(f"{names} have shapes {first.shape} and {second.shape}: expected the same "
                         "[B, n]")
    return np.mean((first - second) ** 2, axis=1)


def psnr(l2):
    """Peak signal to noise ratio in dB of images in [0, 1]: -10 log10(l2), in l2's shape.

    l2: mean squared error per pixel. 0 gives infinity, NaN gives NaN.
    """
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.asarray(l2, np.float64))


def mean_and_bar(values):
    """Mean of a list of per-image values with its standard error, as Summary of Python numbers.

    The standard deviation divides by n (ddof 0), as the reference's curves do: with one value the
    standard error and the bar are therefore 0, which says nothing about the spread. No values at
    all: mean, error and bar are NaN, without a warning. A NaN among the values makes all three NaN:
    a failed recovery must not vanish from a mean.
    """
    values = np.asarray(values, np.float64).ravel()
    if not values.size:
        return Summary(float("nan"), float("nan"), float("nan"), 0)
    error = float(values.std() / np.sqrt(values.size))
    return Summary(float(values.mean()), error, NORMAL_95 * error, values.size)
