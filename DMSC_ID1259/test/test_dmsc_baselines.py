"""The raw-pixel baselines: the closed form, the weights, what is printed beside a result."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
import pytest

import baselines
import data_input
import metrics
from npu_session import InputError

REAL = os.path.join(os.environ.get("REAL_DATA_DIR", os.path.join(
    os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir, os.pardir, "shared",
    "data")), "eyb", "EYB_fc_rebuilt.mat")


@pytest.fixture(scope="module")
def views():
    """Two views of 3 x 20 points near 4-D subspaces [60, 30], and their truth [60]."""
    random = np.random.RandomState(0)
    truth = np.repeat([1, 2, 3], 20)
    return [np.concatenate([random.standard_normal((20, 4)) @ random.standard_normal((4, 30))
                            for _ in range(3)]) + 0.01 * random.standard_normal((60, 30))
            for _ in range(2)], truth


def test_coefficients_solve_the_ridge_regression_of_each_sample(views):
    """Row i is the ridge regression of sample i on the others, all views at once."""
    matrices, weights = views[0], (0.6, 0.1)
    found = baselines.self_expression(matrices, weights, 0.02)
    stacked = np.concatenate([np.sqrt(weight) * matrix
                              for matrix, weight in zip(matrices, weights)], axis=1)
    ridge = 0.02 * np.mean(np.sum(stacked ** 2, axis=1))
    for sample in (0, 33):
        others = np.arange(60) != sample
        rest = stacked[others]
        expected = np.linalg.solve(rest @ rest.T + ridge * np.eye(59), rest @ stacked[sample])
        np.testing.assert_allclose(found[sample, others], expected, rtol=0, atol=1e-10)
    assert not np.diag(found).any()


def test_subspaces_are_found_and_a_view_of_weight_zero_does_not_matter(views):
    matrices, truth = views
    labels = baselines.ridge(matrices, 3)
    assert metrics.scores(truth, labels) == (1, 1, 1)
    noise = 100 * np.random.RandomState(0).standard_normal((60, 9))
    np.testing.assert_array_equal(baselines.ridge([matrices[0], noise], 3, [1, 0]),
                                  baselines.ridge([matrices[0]], 3))


def test_brightness_does_not_matter(views):
    matrices, _ = views
    np.testing.assert_array_equal(baselines.ridge(matrices, 3),
                                  baselines.ridge([1000 * matrix for matrix in matrices], 3))


def test_one_line_per_modality_and_one_for_all(views):
    matrices, truth = views
    images = [matrix.reshape(60, 6, 5, 1) for matrix in matrices]
    found = list(baselines.compare(images, 3, truth, [0.6, 0.1]))
    assert [baseline.name for baseline in found] == ["modality 0", "modality 1", "all modalities"]
    assert all(baseline.scores == (1, 1, 1) for baseline in found)
    unknown, = baselines.compare(images[:1], 3, None, [1.0], ["face"])
    assert unknown.name == "face" and unknown.scores == (None, None, None)
    assert set(unknown.labels) == {1, 2, 3}


def test_a_black_image_does_not_stop_the_others(views):
    """Extended Yale B has some: an eye in the shadow."""
    matrix, truth = views[0][0].copy(), views[1]
    matrix[[7, 33]] = 0
    C = baselines.self_expression([matrix], [1.0])
    assert (C[:, 7] > 0).sum() == len(C) - 1 and C[7, 7] == 0
    rest = np.delete(np.arange(60), [7, 33])
    alone = baselines.self_expression([matrix[rest]], [1.0], baselines.RIDGE_SHARE * 58 / 60)
    np.testing.assert_allclose(C[np.ix_(rest, rest)], alone, atol=1e-9)
    labels = baselines.ridge([matrix], 3)
    assert metrics.scores(truth[rest], labels[rest]).accuracy == 1


@pytest.mark.parametrize("matrix", [np.zeros((8, 4)), np.full((8, 4), np.nan)])
def test_black_or_broken_images_are_refused(matrix):
    with pytest.raises(InputError, match="mean energy of a sample is"):
        baselines.ridge([matrix], 2)


def test_ten_real_faces_reach_the_known_accuracy():
    """Extended Yale B, face modality, first 10 subjects: about 0.9 without any network."""
    if not os.path.exists(REAL):
        pytest.skip("no Extended Yale B: " + REAL)
    data = data_input.load(REAL, subjects=10)
    face, = baselines.compare(data.images[:1], data.clusters, data.labels, [1.0])
    assert 0.88 < face.scores.accuracy < 0.96
