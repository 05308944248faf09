"""The Gaussian mixtures: the reference's very points, their statistics, and what cannot be."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest

import datahandler
from golden_rules import find_seed, load
from npu_session import InputError

MAX_VAL, MEANS_SEED = 15., 821  # the reference's


def golden_sets():
    """[(key, name, modes, dim)] of the sets of points in datasets.npz."""
    keys = [key for key in load("datasets") if key.endswith("/X") and "default" not in key]
    parts = [(key, *key.split("/")) for key in keys]
    return [(key, name, int(modes[1:]), int(dim[3:])) for key, name, modes, dim, _ in parts]


def draw(name, modes, dim, size, seed):
    """(Data, the generator that its points came from)."""
    random = np.random.RandomState(seed)
    return datahandler.load(name, modes, dim, size, MAX_VAL, MEANS_SEED, random), random


def test_golden_points_of_every_set():
    """Bit-identical: same draws, same arithmetic."""
    assert len(golden_sets()) > 20
    for key, name, modes, dim in golden_sets():
        expected = load("datasets")[key]
        data, _ = draw(name, modes, dim, len(expected), find_seed())
        np.testing.assert_array_equal(data.points, expected[..., None, None], key)


def test_golden_default_set_its_means_and_the_numbers_that_follow():
    golden = load("datasets")
    expected, tail = golden["gmm/default_1500/X"], golden["gmm/default_1500/tail"]
    data, random = draw("gmm", 10, 2, len(expected), find_seed())
    np.testing.assert_array_equal(data.points[..., 0, 0], expected)
    np.testing.assert_array_equal(data.means, golden["gmm/m10/means"])
    np.testing.assert_array_equal(random.random_sample(len(tail)), tail)


@pytest.mark.parametrize("modes, variance", [(1, 5), (2, 5), (3, 1.875), (4, 0.75), (5, 1.5),
                                             (7, 15 / 147), (10, 0.05)])
def test_variance_in_the_plane(modes, variance):
    assert datahandler.mode_variance(modes, 2, MAX_VAL) == pytest.approx(variance, rel=1e-12)


def test_variance_of_few_modes_depends_on_the_dimension():
    assert datahandler.mode_variance(3, 1, MAX_VAL) == 15 / 64
    assert datahandler.mode_variance(3, 4, MAX_VAL) == pytest.approx(15 / np.sqrt(8))
    assert datahandler.mode_variance(8, 1, MAX_VAL) == datahandler.mode_variance(8, 3, MAX_VAL)


def test_points_are_spread_as_said():
    """Mode frequencies within 5 standard errors; variance within 5 %."""
    data, _ = draw("gmm", 10, 2, 20000, seed=0)
    assert data.points.shape == (20000, 2, 1, 1) and data.points.dtype == np.float64
    assert data.name == "gmm" and data.means.shape == (10, 2)
    offsets = data.points[:, None, :, 0, 0] - data.means
    nearest = np.argmin(np.sum(offsets ** 2, axis=2), axis=1)
    counts = np.bincount(nearest, minlength=10)
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000 * 0.9))
    deviations = offsets[np.arange(20000), nearest]
    assert np.mean(deviations ** 2) == pytest.approx(data.variance, rel=0.05)


def test_means_depend_on_their_seed_and_points_on_the_generator():
    first, _ = draw("gmm", 5, 2, 50, seed=1)
    again, _ = draw("gmm", 5, 2, 50, seed=1)
    other, _ = draw("gmm", 5, 2, 50, seed=2)
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.means, other.means)
    assert np.all(first.points != other.points)
    moved = datahandler.load("gmm", 5, 2, 50, MAX_VAL, 822, np.random.RandomState(1))
    assert np.all(moved.means != first.means)


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    draw("gmm", 5, 2, 50, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_circle_begins_above_the_centre_and_closes():
    """Its first and last mode coincide, as in the reference."""
    data, _ = draw("circle_gmm", 5, 2, 10, seed=0)
    np.testing.assert_allclose(data.means, [[0, 15], [15, 0], [0, -15], [-15, 0], [0, 15]],
                               atol=1e-12)
    assert data.variance == 0.01


@pytest.mark.parametrize("change, message", [
    ({"name": "mnist"}, "data set 'mnist': expected gmm or circle_gmm"),
    ({"modes": 0}, "gmm with 0 modes"),
    ({"modes": -3}, "gmm with -3 modes"),
    ({"dim": 0}, "gmm with 0 dimensions"),
    ({"size": 0}, "gmm with 0 points"),
    ({"max_val": 0.}, "means up to 0.0"),
    ({"max_val": -15.}, "means up to -15.0"),
    ({"max_val": float("nan")}, "means up to nan"),
    ({"max_val": float("inf")}, "means up to inf"),
    ({"name": "circle_gmm", "dim": 3}, "circle_gmm lies in the plane and cannot have 3"),
])
def test_mixtures_that_cannot_be_are_refused(change, message):
    usual = {"name": "gmm", "modes": 10, "dim": 2, "size": 10, "max_val": MAX_VAL}
    with pytest.raises(InputError, match=message):
        datahandler.load(random_seed=1, random=np.random.RandomState(0), **dict(usual, **change))


def test_one_mode_one_point_one_dimension():
    data, _ = draw("gmm", 1, 1, 1, seed=0)
    assert data.points.shape == (1, 1, 1, 1)
    assert draw("circle_gmm", 1, 2, 3, seed=0)[0].means.shape == (1, 2)
