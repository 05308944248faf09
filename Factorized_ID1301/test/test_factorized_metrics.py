"""Landmark regression and equivariance: golden values, hand-made cases, the warp's own geometry."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import metrics
from golden_rules import load
from npu_session import InputError
from utils import warp

SQUARE = np.array([[0.0, 0], [10, 0], [5, 4], [2, 8], [8, 8]])


@pytest.fixture(scope="module")
def linear():
    """x [40, 3, 2] and y [40, 5, 2], y an exact linear map of x."""
    random = np.random.RandomState(0)
    x = random.standard_normal((40, 3, 2))
    y = (x.reshape(40, 6) @ random.standard_normal((6, 10))).reshape(40, 5, 2)
    return x, y


def draw_warps(count, seed):
    """T float32 [count, 2, 7] of random affine warps of pairs."""
    random = np.random.RandomState(seed)
    with tf.Graph().as_default(), tf.Session() as session:
        draws = warp.draw(tf.constant(random.standard_normal((count, 3)), tf.float32),
                          tf.constant(random.uniform(size=(count, 2)), tf.float32), 0.1)
        return session.run(warp.transformations(draws))


# ---------------------------------------------------------------- regression


def test_golden_landmark_errors():
    """regress.npz: X and Y as stored; percent of the inter-ocular distance, float64."""
    golden = load("regress")
    found = metrics.evaluate(golden["X_train"], golden["Y_train"], golden["X_test"],
                             golden["Y_test"])
    for name, errors in (("nobias", found.no_bias), ("bias", found.bias),
                         ("meanshape", found.mean_shape)):
        np.testing.assert_allclose(errors.mean, golden["error_percent_" + name], rtol=1e-6)


def test_an_exact_linear_map_is_found(linear):
    x, y = linear
    np.testing.assert_allclose(metrics.predict(x, metrics.fit(x, y)), y, atol=1e-9)


def test_a_shift_needs_the_bias(linear):
    x, y = linear
    np.testing.assert_allclose(metrics.predict(x, metrics.fit(x, y + 50, bias=True)), y + 50,
                               atol=1e-9)
    assert np.abs(metrics.predict(x, metrics.fit(x, y + 50)) - y - 50).max() > 1


def test_errors_agree_with_scikit_learn(linear):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = linear
    y = y + np.random.RandomState(1).standard_normal(y.shape)
    for bias in (False, True):
        model = linear_model.LinearRegression(fit_intercept=bias)
        model.fit(x[:30].reshape(30, -1), y[:30].reshape(30, -1))
        expected = model.predict(x[30:].reshape(10, -1)).reshape(10, 5, 2)
        np.testing.assert_allclose(metrics.predict(x[30:], metrics.fit(x[:30], y[:30], bias)),
                                   expected, atol=1e-9)


def test_any_affine_unit_gives_the_same_error_with_a_bias_any_scale_without(linear):
    x, y = linear
    y = y + np.random.RandomState(1).standard_normal(y.shape)
    first = metrics.evaluate(x[:30], y[:30], x[30:], y[30:])
    scaled = metrics.evaluate(3 * x[:30], y[:30], 3 * x[30:], y[30:])
    moved = metrics.evaluate(3 * x[:30] + 7, y[:30], 3 * x[30:] + 7, y[30:])
    assert scaled.no_bias.mean == pytest.approx(first.no_bias.mean, rel=1e-9)
    assert moved.bias.mean == pytest.approx(first.bias.mean, rel=1e-9)


def test_more_coordinates_than_images_take_the_shortest_solution():
    matrix = metrics.fit(np.ones((2, 8, 2)), np.array([SQUARE, SQUARE]))
    np.testing.assert_allclose(matrix, np.repeat(SQUARE.reshape(1, 10) / 16, 16, axis=0))


def test_error_of_a_known_displacement():
    """Eyes 10 apart: 1 px is 10 %, (3, 4) px is 50 %."""
    truth = np.array([SQUARE, SQUARE])
    predicted = truth.copy()
    predicted[0, 2] += (0, 1)
    predicted[1, 4] += (3, 4)
    errors = metrics.landmark_errors(predicted, truth)
    np.testing.assert_allclose(errors, [[0, 0, 10, 0, 0], [0, 0, 0, 0, 50]])
    found = metrics.summarise(errors)
    assert found.mean == pytest.approx(6)
    np.testing.assert_allclose(found.per_point, [0, 0, 5, 0, 25])


def test_every_image_is_divided_by_its_own_eyes():
    truth = np.array([SQUARE, 2 * SQUARE])
    np.testing.assert_allclose(metrics.landmark_errors(truth + (0, 1), truth),
                               [[10] * 5, [5] * 5])


def test_a_failed_prediction_does_not_vanish_from_the_mean():
    predicted = np.array([SQUARE, SQUARE])
    predicted[0, 0, 0] = np.nan
    assert np.isnan(metrics.summarise(metrics.landmark_errors(predicted, [SQUARE] * 2)).mean)


def test_mean_shape_looks_at_no_image():
    predicted = metrics.mean_shape([SQUARE, SQUARE + 2], 3)
    np.testing.assert_allclose(predicted, [SQUARE + 1] * 3)


@pytest.mark.parametrize("wrong, message", [
    (lambda: metrics.fit(np.zeros((3, 2, 2)), np.zeros((4, 5, 2))), "3 images .* and 4"),
    (lambda: metrics.fit(np.zeros((0, 2, 2)), np.zeros((0, 5, 2))), "at least one"),
    (lambda: metrics.fit(np.full((3, 2, 2), np.nan), np.zeros((3, 5, 2))), "not finite"),
    (lambda: metrics.landmark_errors(np.zeros((3, 4, 2)), np.zeros((3, 5, 2))), "shapes"),
    (lambda: metrics.landmark_errors(np.zeros((0, 5, 2)), np.zeros((0, 5, 2))), "shapes"),
    (lambda: metrics.landmark_errors([SQUARE] * 2, [SQUARE, 0 * SQUARE]), "image 1 has both eyes"),
])
def test_what_cannot_be_measured_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        wrong()


# ---------------------------------------------------------------- places


def test_cells_to_pixels_of_the_original():
    """Cell (row 0, column 41): pixel (104.5, 22.5) of 128, (109.5, 27.5) of 146."""
    cells = np.array([[[0.0, 41.0]]])
    np.testing.assert_allclose(metrics.crop_pixels(cells), [[[104.5, 22.5]]])
    np.testing.assert_allclose(metrics.to_pixels(cells),
                               [[[109.5 * 178 / 146, 27.5 * 218 / 146]]])


def test_every_original_has_its_own_size():
    cells = np.zeros((2, 3, 2))
    found = metrics.to_pixels(cells, [146, 292], [146, 73], scale_size=146)
    np.testing.assert_allclose(found[0], [[27.5, 27.5]] * 3)
    np.testing.assert_allclose(found[1], [[55, 13.75]] * 3)


# ---------------------------------------------------------------- equivariance


@pytest.mark.parametrize("frame_size", [146, 140])
def test_affine_cells_is_the_exact_geometry_of_the_pipeline(frame_size):
    warps = draw_warps(6, seed=0)
    with tf.Graph().as_default(), tf.Session() as session:
        expected = session.run(warp.warped_cells_exactly(tf.constant(warps), frame_size))
    cells = warp.cells()
    matrix, shift = metrics.affine_cells(warps, frame_size)
    found = metrics.apply_affine(matrix, shift, np.repeat(cells.reshape(1, -1, 2), 6, axis=0))
    np.testing.assert_allclose(found, expected.reshape(6, -1, 2), atol=1e-4)


def test_affine_cells_finds_where_a_picture_went():
    """A bright blob at a known cell, warped by the pipeline, lies where the inverse map says."""
    warps, cell = draw_warps(4, seed=3), np.array([18.0, 24.0])
    place = 2 * cell + warp.FIRST_CELL + warp.CUT_START
    grid = np.stack(np.meshgrid(np.arange(146), np.arange(146), indexing="ij"), axis=-1)
    blob = np.exp(-((grid - place) ** 2).sum(axis=-1) / 18).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        frames = tf.tile(tf.constant(blob)[None, :, :, None], [4, 1, 1, 1])
        moved = session.run(warp.image_warping2(frames, tf.constant(warps)))[..., 0]
    centre = np.einsum("bij,ijc->bc", moved, grid) / moved.sum(axis=(1, 2))[:, None]
    found = (centre - warp.FIRST_CELL - warp.CUT_START) / 2
    there, back, inside = metrics.equivariance(np.tile(cell, (4, 1, 1)), found[:, None], warps)
    assert there.shape == back.shape == inside.shape == (4, 1)
    assert inside.all()
    assert there.max() < 0.1 and back.max() < 0.1


def test_perfect_landmarks_have_no_equivariance_error():
    warps = draw_warps(5, seed=1)
    deformed = np.random.RandomState(2).uniform(0, 41, size=(5, 7, 2))
    cells = metrics.apply_affine(*metrics.affine_cells(warps), deformed)
    there, back, inside = metrics.equivariance(cells, deformed, warps)
    assert there.max() < 1e-9 and back.max() < 1e-9
    assert inside.all()


def test_equivariance_error_is_in_pixels():
    """A quarter turn about the frame's middle that halves the size: 1 cell there is 2 px, back 4.

    Frame 1 + 145: the middle of the output, n = 0, has its source at pixel 73.
    """
    turn = np.array([[[0.0, 0, -2], [0, 2, 0]]])
    matrix, shift = metrics.affine_cells(turn)
    np.testing.assert_allclose(matrix[0], 146 / 145 * np.array([[0, 2], [-2, 0]]), atol=1e-12)
    deformed = np.array([[[20.0, 20.0]]])
    cells = metrics.apply_affine(matrix, shift, deformed)
    there, back, _ = metrics.equivariance(cells, deformed + (1, 0), turn)
    assert there[0, 0] == pytest.approx(2)
    assert back[0, 0] == pytest.approx(4 * 146 / 145)


def test_landmarks_sent_off_the_map_are_told_apart():
    shift = np.array([[[0.8, 1, 0], [0, 0, 1]]])  # the deformed image shows what is 29 cells right
    _, _, inside = metrics.equivariance([[[20.0, 10], [20, 35]]], np.zeros((1, 2, 2)), shift)
    np.testing.assert_array_equal(inside, [[False, True]])


def test_a_bent_warp_is_refused():
    with pytest.raises(InputError, match="affine"):
        metrics.affine_cells(np.ones((1, 2, 7)))
