"""Accuracy, confusion matrix, means over seeds, and principal components. Plain numpy."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np

from npu_session import InputError


def confusion_matrix(labels, predictions, classes=7):
    """How often each class (row) was taken for each class (column).

    Args:
      labels, predictions: integers 0..classes-1, [N].
    Returns:
      int64 [classes, classes]; all zeros for N = 0.
    Raises:
      InputError: lengths differ, or a number is out of range.
    """
    labels, predictions = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise InputError(f"labels and predictions have shapes {labels.shape} and "
                         f"{predictions.shape}: expected the same [N]")
    both = np.concatenate([labels, predictions])
    if both.size and not 0 <= both.min() <= both.max() < classes:
        raise InputError(f"labels and predictions go from {both.min()} to {both.max()}: expected 0 "
                         f"to {classes - 1}")
    counts = np.bincount(labels * classes + predictions, minlength=classes ** 2)
    return counts.reshape(classes, classes)


def accuracy(labels, predictions):
    """Share of right predictions, a float in 0..1; NaN for N = 0. Arguments as above."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise InputError(f"labels and predictions have shapes {labels.shape} and "
                         f"{predictions.shape}: expected the same [N]")
    return float(np.mean(labels == predictions)) if labels.size else float("nan")


def per_class_accuracy(matrix):
    """Share of each class that was recognised, float64 [classes]; NaN for a class that is absent.

    matrix: of confusion_matrix.
    """
    matrix = np.asarray(matrix, np.float64)
    totals = matrix.sum(axis=1)
    return np.where(totals > 0, np.diag(matrix) / np.maximum(totals, 1), np.nan)


def mean_std(values):
    """Mean and sample standard deviation (n - 1) of one number per seed, as floats.

    One value has no spread to show: its deviation is 0. No value: both NaN. A NaN makes both NaN.
    """
    values = np.asarray(values, np.float64).ravel()
    if not values.size:
        return float("nan"), float("nan")
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0


def principal_components(points, count=2):
    """Coordinates of points along the directions of largest variance.

    Args:
      points: [N, D], finite; N and D at least `count`.
    Returns:
      (float64 [N, count], float64 [count] shares of the variance). Each direction's sign is the
      one with which its largest coefficient is positive.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or min(points.shape) < count:
        raise InputError(f"{count} principal components of an array of shape {points.shape}: "
                         f"expected [N, D], both at least {count}")
    centred = points - points.mean(axis=0)
    left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(directions[:count]).argmax(axis=1)
    signs = np.where(directions[np.arange(count), largest] < 0, -1.0, 1.0)
    total = np.sum(sizes ** 2)
    shares = sizes[:count] ** 2 / total if total else np.zeros(count)
    return left[:, :count] * sizes[:count] * signs, shares
