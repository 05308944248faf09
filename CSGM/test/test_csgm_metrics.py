"""Losses of recovered images, PSNR and the mean with its bar."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import math
import warnings

import numpy as np
import pytest

import measurements
import metrics
from golden_rules import IMG, RS, find_seed, load
from npu_session import InputError


def golden_cases():
    """{case: (A, y)} and x of cs.npz.

    RS(SEED + 3), in order: IMG(rs, B), A [784, m], 0.1 * noise [B, m], z0 [B, 20] (float32),
    0.1 * noise [B, 784] of the projection. inpaint: block 10, superres: factor 2, both noise-free.
    """
    count, m = load("cs")["y_gaussian"].shape
    rs = RS(find_seed() + 3)
    x = IMG(rs, count)
    gaussian = measurements.gaussian_matrix(rs, m)
    y = measurements.observe(x, gaussian, 0.1, rs)
    z0 = rs.standard_normal((count, 20)).astype(np.float32)
    np.testing.assert_array_equal(z0, load("cs")["z0"])
    cases = {"gaussian": (gaussian, y),
             "project": (None, measurements.observe(x, None, 0.1, rs))}
    for name, matrix in (("inpaint", measurements.inpaint_matrix(10)),
                         ("superres", measurements.superres_matrix(2))):
        cases[name] = matrix, measurements.observe(x, matrix, 0, rs)
    return cases, x


@pytest.mark.parametrize("case", ["gaussian", "inpaint", "superres", "project"])
def test_golden_losses_of_the_image_at_z0(case):
    """x_hat_z0 = G(z0); losses rtol 1e-5."""
    golden = load("cs")
    cases, x = golden_cases()
    np.testing.assert_allclose(metrics.measurement_loss(golden["x_hat_z0"], *cases[case]),
                               golden[case + "_measurement_loss_fn"], 1e-5)
    np.testing.assert_allclose(metrics.l2_loss(golden["x_hat_z0"], x),
                               golden[case + "_l2_loss_fn"], 1e-5)


def test_golden_losses_of_the_best_restart():
    """Gaussian case, restarts_x_hat_best; losses rtol 1e-5."""
    golden = load("cs")
    cases, x = golden_cases()
    best = golden["restarts_x_hat_best"]
    np.testing.assert_allclose(metrics.measurement_loss(best, *cases["gaussian"]),
                               golden["restarts_measurement_loss"], 1e-5)
    np.testing.assert_allclose(metrics.l2_loss(best, x), golden["restarts_l2_loss"], 1e-5)


def test_losses_of_hand_made_images():
    x_hat, x = np.array([[0., 1.], [1., 1.]]), np.array([[0., 0.], [1., 1.]])
    np.testing.assert_array_equal(metrics.l2_loss(x_hat, x), [0.5, 0])
    matrix = np.array([[1., 0., 2.], [0., 1., 3.]])  # x_hat A = [0 1 3], [1 1 5]
    np.testing.assert_array_equal(
        metrics.measurement_loss(x_hat, matrix, np.array([[0., 0., 0.], [1., 1., 8.]])),
        [10 / 3, 3])
    np.testing.assert_array_equal(metrics.measurement_loss(x_hat, None, x), [0.5, 0])


def test_nan_stays_with_its_image():
    loss = metrics.l2_loss(np.array([[np.nan, 0], [0, 0]]), np.ones((2, 2)))
    assert math.isnan(loss[0]) and loss[1] == 1


def test_integer_images_do_not_overflow():
    assert metrics.l2_loss(np.zeros((1, 2), np.uint8), np.full((1, 2), 255, np.uint8)) == 255 ** 2


@pytest.mark.parametrize("first, second", [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,))])
def test_shapes_are_not_broadcast(first, second):
    with pytest.raises(InputError, match="expected the same"):
        metrics.l2_loss(np.zeros(first), np.zeros(second))


def test_psnr():
    np.testing.assert_allclose(metrics.psnr([1, 0.01, 1e-4]), [0, 20, 40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.psnr(0.0) == math.inf
        assert math.isnan(metrics.psnr(math.nan))


def test_mean_and_bar_of_hand_made_values():
    summary = metrics.mean_and_bar([1, 3, 1, 3])  # std 1
    assert summary == (2, 0.5, 0.98, 4)
    assert metrics.mean_and_bar([7]) == (7, 0, 0, 1)


def test_bar_holds_the_true_mean_in_95_of_100_samples():
    draws = RS(0).standard_normal((4000, 100))
    inside = [abs(summary.mean) <= summary.bar for summary in map(metrics.mean_and_bar, draws)]
    assert 0.93 < np.mean(inside) < 0.96


def test_mean_and_bar_without_values_or_with_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing, failed = metrics.mean_and_bar([]), metrics.mean_and_bar([1, math.nan])
    assert nothing.count == 0 and failed.count == 2
    for summary in (nothing, failed):
        assert all(map(math.isnan, (summary.mean, summary.standard_error, summary.bar)))
