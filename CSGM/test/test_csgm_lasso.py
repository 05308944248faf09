"""Lasso and orthogonal matching pursuit: golden values, scikit-learn, and properties."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import re
import warnings

import numpy as np
import pytest

import lasso
import measurements
from golden_rules import IMG, RS, find_seed, load
from npu_session import InputError

GOLDEN_ALPHA = 0.1
OBJECTIVE = 3  # place of the objective in the golden _info arrays
PIXEL_ERROR = 5  # of the clipped image's mean squared error


def golden_problems():
    """(m, x, A, y) of lasso.npz; y is checked on the way.

    RS(SEED + 4), in order: x = IMG(rs, B); for m ascending: A [784, m], 0.1 * noise [B, m].
    """
    golden = load("lasso")
    sizes = sorted(int(key[2:]) for key in golden if re.match(r"y_\d+$", key))
    rs = RS(find_seed() + 4)
    x = IMG(rs, len(golden[f"y_{sizes[0]}"]))
    for m in sizes:
        matrix = measurements.gaussian_matrix(rs, m)
        y = measurements.observe(x, matrix, 0.1, rs)
        np.testing.assert_allclose(y, golden[f"y_{m}"], 1e-12, 1e-12)
        yield m, x, matrix, y


def golden_info(m, count, place):
    """One number of the tight reference solution's _info, for all images."""
    return np.array([load("lasso")[f"tight_{m}_{image}_info"][place] for image in range(count)])


def test_golden_lasso_objective_and_pixel_error():
    """Against the reference at tolerance 1e-10: objective rtol 1e-3, pixel error atol 2e-3."""
    for m, x, matrix, y in golden_problems():
        weights = lasso.lasso(matrix, y, GOLDEN_ALPHA)
        objective = lasso.lasso_objective(matrix, y, weights, GOLDEN_ALPHA)
        np.testing.assert_allclose(objective, golden_info(m, len(y), OBJECTIVE), 1e-3)
        image = lasso.lasso_estimate(matrix, y, GOLDEN_ALPHA)
        np.testing.assert_array_equal(image, np.clip(weights, 0, 1))
        np.testing.assert_allclose(((image - x) ** 2).mean(1),
                                   golden_info(m, len(y), PIXEL_ERROR), 0, 2e-3)


def test_golden_lasso_with_a_tight_tolerance_finds_the_minimum():
    for m, _, matrix, y in golden_problems():
        weights = lasso.lasso(matrix, y, GOLDEN_ALPHA, tolerance=1e-9)
        np.testing.assert_allclose(lasso.lasso_objective(matrix, y, weights, GOLDEN_ALPHA),
                                   golden_info(m, len(y), OBJECTIVE), 1e-7)


def test_golden_objective_of_the_reference_solution():
    """lasso_objective of the stored coefficients (float32) is the stored objective."""
    for m, _, matrix, y in golden_problems():
        stored = np.array([load("lasso")[f"tight_{m}_{image}_coef"] for image in range(len(y))])
        np.testing.assert_allclose(lasso.lasso_objective(matrix, y, stored, GOLDEN_ALPHA),
                                   golden_info(m, len(y), OBJECTIVE), 1e-5)


def problem(m, count=6, seed=0):
    """Images, Gaussian A [784, m] and noisy y [count, m]."""
    rs = RS(seed)
    x = IMG(rs, count)
    matrix = measurements.gaussian_matrix(rs, m)
    return x, matrix, measurements.observe(x, matrix, 0.1, rs)


def scikit_lasso(matrix, y, alpha, fit_intercept=True):
    """scikit-learn's coefficients at a tight tolerance, image by image."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = linear_model.Lasso(alpha=alpha, tol=1e-7, max_iter=20000, fit_intercept=fit_intercept)
    return np.array([model.fit(matrix.T, row).coef_.copy() for row in y])


@pytest.mark.parametrize("m", [10, 50, 200, 500, 900])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_objective_is_scikit_learns(m, fit_intercept):
    _, matrix, y = problem(m)
    for alpha in (0.1, 1.0):
        expected = scikit_lasso(matrix, y, alpha, fit_intercept)
        weights = lasso.lasso(matrix, y, alpha, fit_intercept=fit_intercept)
        np.testing.assert_allclose(
            lasso.lasso_objective(matrix, y, weights, alpha, fit_intercept),
            lasso.lasso_objective(matrix, y, expected, alpha, fit_intercept), 5e-4)


@pytest.mark.parametrize("matrix", [measurements.inpaint_matrix(10),
                                    measurements.superres_matrix(2),
                                    measurements.superres_matrix(7)])
def test_structured_matrices_are_solved_too(matrix):
    """Rows of 0 (missing pixels) and equal rows (pixels of a block)."""
    y = measurements.observe(IMG(RS(0), 3), matrix, 0.1, RS(1))
    weights = lasso.lasso(matrix, y, 0.1)
    expected = lasso.lasso_objective(matrix, y, scikit_lasso(matrix, y, 0.1), 0.1)
    np.testing.assert_allclose(lasso.lasso_objective(matrix, y, weights, 0.1), expected, 5e-4)
    assert not weights[:, ~matrix.any(1)].any()


def test_from_alpha_max_on_all_weights_are_0():
    _, matrix, y = problem(30)
    alpha_max = np.abs(lasso.centred(y) @ lasso.centred(matrix).T).max(1) / 30
    assert not lasso.lasso(matrix, y, alpha_max.max()).any()
    below = lasso.lasso(matrix, y, 0.99 * alpha_max.min(), tolerance=1e-9)
    assert below.any(1).all()


def test_an_offset_of_all_measurements_changes_nothing():
    _, matrix, y = problem(50)
    np.testing.assert_allclose(lasso.lasso(matrix, y + 100, 0.1, tolerance=1e-12),
                               lasso.lasso(matrix, y, 0.1, tolerance=1e-12), 0, 1e-3)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    _, matrix, y = problem(100)
    together = lasso.lasso(matrix, y, 0.1)
    alone = np.concatenate([lasso.lasso(matrix, row[None], 0.1) for row in y])
    np.testing.assert_allclose(lasso.lasso_objective(matrix, y, alone, 0.1),
                               lasso.lasso_objective(matrix, y, together, 0.1), 1e-3)


def test_few_large_weights_are_recovered():
    rs = RS(0)
    weights = np.zeros((4, 784))
    for row in weights:
        row[rs.permutation(784)[:5]] = 1
    matrix = measurements.gaussian_matrix(rs, 200)
    np.testing.assert_allclose(lasso.lasso_estimate(matrix, weights @ matrix, 0.01), weights,
                               atol=0.05)


def test_trivial_batches():
    matrix = measurements.gaussian_matrix(RS(0), 20)
    assert lasso.lasso(matrix, np.zeros((0, 20)), 0.1).shape == (0, 784)
    assert not lasso.lasso(matrix, np.full((2, 20), 0.1), 0.1).any()  # all intercept
    assert not lasso.lasso(matrix[:, :1], np.ones((2, 1)), 0.1).any()  # m = 1: all intercept


def test_cap_on_iterations_warns_with_the_gap():
    _, matrix, y = problem(50)
    with pytest.warns(RuntimeWarning, match="6 of 6 images stopped after 3 iterations.*gap"):
        lasso.lasso(matrix, y, 0.1, max_iterations=3)


def test_default_cap_is_not_reached():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for m in (10, 25, 100):
            _, matrix, y = problem(m, count=20, seed=m)
            lasso.lasso(matrix, y, 0.1)


def test_omp_recovers_exactly_sparse_weights():
    rs = RS(0)
    weights = np.zeros((5, 784))
    for row in weights:
        row[rs.permutation(784)[:8]] = rs.uniform(0.5, 1, 8)
    matrix = measurements.gaussian_matrix(rs, 150)
    found = lasso.omp(matrix, weights @ matrix + 3, 8)  # +3: the intercept's business
    np.testing.assert_allclose(found, weights, atol=1e-10)
    more = lasso.omp(matrix, weights @ matrix, 20)  # stops where the fit is exact
    np.testing.assert_allclose(more, weights, atol=1e-8)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("m, k", [(25, 1), (25, 10), (100, 40), (500, 100)])
def test_omp_is_scikit_learns_on_centred_unit_rows(m, k):
    linear_model = pytest.importorskip("sklearn.linear_model")
    _, matrix, y = problem(m)
    atoms = lasso.centred(matrix)
    lengths = np.linalg.norm(atoms, axis=1)
    model = linear_model.OrthogonalMatchingPursuit(n_nonzero_coefs=k)
    expected = np.array([model.fit((atoms / lengths[:, None]).T, row).coef_ for row in y]) / lengths
    found = lasso.omp(matrix, y, k)
    assert ((found != 0).sum(1) == k).all()
    np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_array_equal(lasso.omp_estimate(matrix, y, k), np.clip(found, 0, 1))


def test_omp_of_constant_measurements_is_0():
    matrix = measurements.gaussian_matrix(RS(0), 20)
    assert not lasso.omp(matrix, np.full((2, 20), 0.1), 5).any()
    assert lasso.omp(matrix, np.zeros((0, 20)), 5).shape == (0, 784)


def test_omp_skips_missing_pixels_and_equal_rows():
    for matrix in (measurements.inpaint_matrix(20), measurements.superres_matrix(4)):
        y = measurements.observe(IMG(RS(0), 2), matrix, 0.0, RS(1))
        found = lasso.omp(matrix, y, 30)
        assert np.isfinite(found).all()
        assert not found[:, ~matrix.any(1)].any()


@pytest.mark.parametrize("solve", [lambda A, y: lasso.lasso(A, y, 0.1),
                                   lambda A, y: lasso.omp(A, y, 1),
                                   lambda A, y: lasso.lasso_objective(A, y, 0, 0.1)])
@pytest.mark.parametrize("matrix, y, sentence", [
    (np.full((784, 5), np.nan), np.zeros((2, 5)), "NaN or infinity"),
    (np.zeros((784, 5)), np.full((2, 5), np.inf), "NaN or infinity"),
    (np.zeros((784, 5)), np.zeros((2, 6)), "have shapes"),
    (np.zeros((784, 5)), np.zeros(5), "have shapes"),
    (None, np.zeros((2, 784)), "without a matrix")])
def test_bad_systems_are_refused(solve, matrix, y, sentence):
    with pytest.raises(InputError, match=sentence):
        solve(matrix, y)


@pytest.mark.parametrize("alpha", [0, -1, np.nan, np.inf])
def test_bad_alpha_is_refused(alpha):
    with pytest.raises(InputError, match="alpha is"):
        lasso.lasso(np.ones((784, 5)), np.zeros((1, 5)), alpha)


@pytest.mark.parametrize("k", [0, 25, 785, 2.5])
def test_omp_with_more_pixels_than_measurements_is_refused(k):
    with pytest.raises(InputError, match="expected an integer from 1 to 24 for 25 measurements"):
        lasso.omp(np.ones((784, 25)), np.zeros((1, 25)), k)
