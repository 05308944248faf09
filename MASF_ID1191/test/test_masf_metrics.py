"""Accuracy, confusion matrix, means over seeds, principal components."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import math
import warnings

import numpy as np
import pytest
from sklearn import decomposition
from sklearn import metrics as oracle

import metrics
from npu_session import InputError


def test_confusion_matrix_of_hand_made_predictions():
    matrix = metrics.confusion_matrix([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2], 3)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 2]])
    np.testing.assert_allclose(metrics.per_class_accuracy(matrix), [1 / 2, 1, 2 / 3])
    assert metrics.accuracy([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2]) == pytest.approx(4 / 6)


def test_the_same_as_scikit_learn():
    random = np.random.RandomState(0)
    labels, predictions = random.randint(0, 7, (2, 500))
    matrix = metrics.confusion_matrix(labels, predictions)
    np.testing.assert_array_equal(matrix, oracle.confusion_matrix(labels, predictions))
    np.testing.assert_allclose(metrics.per_class_accuracy(matrix),
                               oracle.recall_score(labels, predictions, average=None))
    assert metrics.accuracy(labels, predictions) == oracle.accuracy_score(labels, predictions)
    assert np.trace(matrix) / matrix.sum() == metrics.accuracy(labels, predictions)


def test_relabelling_permutes_the_matrix():
    random = np.random.RandomState(1)
    labels, predictions, order = *random.randint(0, 7, (2, 200)), random.permutation(7)
    matrix = metrics.confusion_matrix(labels, predictions)
    moved = metrics.confusion_matrix(order[labels], order[predictions])
    np.testing.assert_array_equal(moved[np.ix_(order, order)], matrix)


def test_absent_class_and_no_images():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = metrics.confusion_matrix([1], [0], 2)
        recalls = metrics.per_class_accuracy(matrix)
        nothing = metrics.confusion_matrix([], [])
        assert math.isnan(metrics.accuracy([], []))
    assert math.isnan(recalls[0]) and recalls[1] == 0
    assert nothing.shape == (7, 7) and not nothing.any()


@pytest.mark.parametrize("labels, predictions, message", [
    ([0, 1], [0], "expected the same"), ([0, 7], [0, 0], "0 to 7: expected 0 to 6"),
    ([0, 0], [0, -1], "-1 to 0: expected 0 to 6"), ([[0]], [[0]], "expected the same")])
def test_bad_labels_are_refused(labels, predictions, message):
    with pytest.raises(InputError, match=message):
        metrics.confusion_matrix(labels, predictions)


def test_accuracy_of_different_lengths_is_refused():
    with pytest.raises(InputError, match="expected the same"):
        metrics.accuracy([0, 1], [0])


def test_mean_and_deviation_of_seeds():
    assert metrics.mean_std([1, 3]) == (2, pytest.approx(math.sqrt(2)))
    assert metrics.mean_std([5]) == (5, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(map(math.isnan, metrics.mean_std([])))
        assert all(map(math.isnan, metrics.mean_std([1, math.nan])))


def test_principal_components_of_points_on_a_line():
    points = np.outer([0, 1, 2, 5], [3, -4, 0]) + [1, 2, 3]
    coordinates, shares = metrics.principal_components(points)
    np.testing.assert_allclose(coordinates[:, 0], 5 * (2 - np.array([0, 1, 2, 5])), atol=1e-12)
    np.testing.assert_allclose(shares, [1, 0], atol=1e-12)


def test_principal_components_equal_scikit_learn_s():
    points = np.random.RandomState(2).standard_normal((40, 9)) * np.arange(1, 10)
    coordinates, shares = metrics.principal_components(points, 3)
    expected = decomposition.PCA(3, svd_solver="full").fit(points)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(expected.transform(points)), atol=1e-9)
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_)


def test_principal_components_keep_their_sign_when_images_change_places():
    random = np.random.RandomState(3)
    points, order = random.standard_normal((30, 5)), random.permutation(30)
    np.testing.assert_allclose(metrics.principal_components(points)[0][order],
                               metrics.principal_components(points[order])[0], atol=1e-10)


def test_equal_points_and_too_few():
    coordinates, shares = metrics.principal_components(np.ones((5, 4)))
    assert not coordinates.any() and not shares.any()
    with pytest.raises(InputError, match="expected"):
        metrics.principal_components(np.ones((1, 4)))
