"""How good unsupervised landmarks are: regression to annotated points, and equivariance.

Plain numpy. Cells are (row, column) on the 42 x 42 heat map; pixels are (x, y). Source: Thewlis et
al. 2017, section 4 (regression without bias, error relative to the distance of the eyes).
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np

from npu_session import InputError
from utils.warp import CELL_PIXELS, CUT_START, FIRST_CELL, MAP_SIZE

LEFT_EYE, RIGHT_EYE = 0, 1

# Percent of the inter-ocular distance: mean over images and points, float, and over images, [P].
Errors = collections.namedtuple("Errors", "mean per_point")

# What one regression is measured on: X_train [N, K, 2], Y_train [N, P, 2], X_test, Y_test.
Measured = collections.namedtuple("Measured", "no_bias bias mean_shape")


def crop_pixels(cells):
    """(x, y) in pixels of the 128 crop of cells (row, column), [..., 2]."""
    return CELL_PIXELS * np.asarray(cells, np.float64)[..., ::-1] + FIRST_CELL


def to_pixels(cells, width=178, height=218, scale_size=146, offset=CUT_START):
    """(x, y) in pixels of the original image of cells (row, column).

    Args:
      cells: [N, K, 2].
      width, height: of the originals, numbers or [N].
      scale_size: side of the square they were resized to.
      offset: pixels of that square to the left of and above the 128 crop.
    Returns:
      float64 [N, K, 2].
    """
    scale = np.stack(np.broadcast_arrays(width, height), axis=-1) / scale_size  # [2] or [N, 2]
    return (crop_pixels(cells) + offset) * (scale if scale.ndim == 1 else scale[:, None])


# ---------------------------------------------------------------- regression


def design(x, bias):
    """float64 [N, 2K (+1)]: the coordinates in a row, and a column of ones for a bias."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return np.hstack([flat, np.ones((len(flat), 1))]) if bias else flat


def fit(x, y, bias=False):
    """Least-squares matrix from unsupervised to annotated coordinates.

    Args:
      x: [N, K, 2] or [N, 2K]. y: [N, P, 2]. bias: also fit a constant.
    Returns:
      float64 [2K (+1), 2P]; the shortest of all solutions where there are several.
    Raises:
      InputError: no images, other numbers of images, or values that are not finite.
    """
    if len(x) != len(y) or not len(x):
        raise InputError(f"{len(x)} images with landmarks and {len(y)} with annotated points: "
                         "expected as many of both, at least one")
    x, y = design(x, bias), np.asarray(y, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("landmarks to fit hold values that are not finite: use another checkpoint")
    matrix, _, _, _ = np.linalg.lstsq(x, y.reshape(len(y), -1), rcond=None)
    return matrix


def predict(x, matrix):
    """Points float64 [N, P, 2] of coordinates x by a matrix of fit (its rows tell the bias)."""
    flat = np.asarray(x).reshape(len(x), -1)
    return (design(x, len(matrix) > flat.shape[1]) @ matrix).reshape(len(x), -1, 2)


def landmark_errors(predicted, truth):
    """Distance of points in percent of the distance between the true eyes.

    Args:
      predicted, truth: [N, P, 2]; points 0 and 1 of truth are the eyes.
    Returns:
      float64 [N, P]; NaN where a prediction is NaN.
    Raises:
      InputError: other shapes, no images, or eyes in one place.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or truth.ndim != 3 or not len(truth):
        raise InputError(f"predicted and annotated points have shapes {predicted.shape} and "
                         f"{truth.shape}: expected the same [N, P, 2], N at least 1")
    eyes = np.linalg.norm(truth[:, LEFT_EYE] - truth[:, RIGHT_EYE], axis=-1)
    if not (eyes > 0).all():
        raise InputError(f"annotated image {int(np.argmin(eyes > 0))} has both eyes in one place")
    return 100 * np.linalg.norm(predicted - truth, axis=-1) / eyes[:, None]


def summarise(errors):
    """Errors of landmark_errors' [N, P]."""
    return Errors(float(errors.mean()), errors.mean(axis=0))


def mean_shape(y, count):
    """The prediction that looks at no image: the mean of y [N, P, 2], `count` times."""
    return np.repeat(np.mean(np.asarray(y, np.float64), axis=0, keepdims=True), count, axis=0)


def evaluate(x_train, y_train, x_test, y_test):
    """Errors on the test images of regressors fitted on the training images.

    Args:
      x_train, x_test: [N, K, 2] unsupervised landmarks; any affine unit gives the same error with
        a bias, any scale without one.
      y_train, y_test: [N, P, 2] annotated points in pixels of the originals.
    Returns:
      Measured: Errors without a bias (the paper's), with one, and of the mean shape.
    """
    fitted = [predict(x_test, fit(x_train, y_train, bias)) for bias in (False, True)]
    return Measured(*(summarise(landmark_errors(points, y_test))
                      for points in fitted + [mean_shape(y_train, len(y_test))]))


# ---------------------------------------------------------------- equivariance


def affine_cells(warp, frame_size=146):
    """The affine warp between frames as a map of cells: (matrix [B, 2, 2], shift [B, 2]).

    Args:
      warp: [B, 2, 3 or more]; the first three columns act on (1, x, y) in [-1, 1] over the frame,
        and send a position in the deformed image to its source; the rest must be 0.
      frame_size: pixels of the frame's side.
    Returns:
      float64; source (row, column) = matrix @ (row, column) + shift, in cells. This is the true
      geometry, whatever the training loss used.
    Raises:
      InputError: the warp is not affine.
    """
    warp = np.asarray(warp, np.float64)
    if np.any(warp[..., 3:]):
        raise InputError("equivariance is measured with affine warps: the spline's weights must "
                         "be 0")
    # In: n = 2 (2u + 27.5) / (frame - 1) - 1. Out: s = (T(1, n) + 1) frame / 2, (s - 27.5) / 2.
    first, half = FIRST_CELL + CUT_START, frame_size / 2
    start, slope = 2 * first / (frame_size - 1) - 1, 2 * CELL_PIXELS / (frame_size - 1)
    matrix = half / CELL_PIXELS * slope * warp[..., 1:3]
    shift = (half * (warp[..., 0] + start * warp[..., 1:3].sum(axis=-1) + 1) - first) / CELL_PIXELS
    return matrix[..., ::-1, ::-1], shift[..., ::-1]


def apply_affine(matrix, shift, cells):
    """Moves cells [B, K, 2] by affine_cells' map."""
    return np.einsum("bij,bkj->bki", matrix, np.asarray(cells, np.float64)) + shift[:, None]


def apply_inverse(matrix, shift, cells):
    """Moves cells [B, K, 2] back: where in the deformed image their pictures went."""
    centred = np.swapaxes(np.asarray(cells, np.float64) - shift[:, None], 1, 2)
    return np.swapaxes(np.linalg.solve(matrix, centred), 1, 2)


def equivariance(cells, deformed_cells, warp, frame_size=146):
    """How far landmarks are from where the warp sends them, in pixels of the network's input.

    Args:
      cells: [B, K, 2] of the images. deformed_cells: [B, K, 2] of the deformed images.
      warp, frame_size: see affine_cells.
    Returns:
      (float64 [B, K] distances in the deformed image between u(x') and g^-1(u(x)), float64 [B, K]
      in the image between g(u(x')) and u(x), bool [B, K] whether g^-1(u(x)) is on the heat map:
      elsewhere no landmark can be).
    """
    matrix, shift = affine_cells(warp, frame_size)
    cells, deformed = np.asarray(cells, np.float64), np.asarray(deformed_cells, np.float64)
    source = apply_affine(matrix, shift, deformed)
    wanted = apply_inverse(matrix, shift, cells)
    inside = ((wanted >= 0) & (wanted <= MAP_SIZE - 1)).all(axis=-1)
    return (CELL_PIXELS * np.linalg.norm(deformed - wanted, axis=-1),
            CELL_PIXELS * np.linalg.norm(source - cells, axis=-1), inside)
