"""Splines, sampling, random warps and where they send the cells of a heat map."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import golden_rules
from golden_rules import assert_close
from utils import ThinPlateSplineB as spline
from utils import warp

IDENTITY = np.eye(2, 7, 1, dtype=np.float32)[None]  # rows (t, x, y, spline weights)


def evaluate(function, *arrays):
    """function of the arrays as placeholders (None stays None), evaluated."""
    with tf.Graph().as_default(), tf.Session() as session:
        places = [None if array is None else tf.placeholder(tf.float32, np.shape(array))
                  for array in arrays]
        feed = {place: array for place, array in zip(places, arrays) if place is not None}
        return session.run(function(*places), feed)


# ---------------------------------------------------------------- golden


def test_golden_spline_from_two_sets_of_points():
    golden = golden_rules.load("tps")
    out, T = evaluate(lambda U, source, target: spline.ThinPlateSpline2(U, source, target, (8, 7)),
                      golden["U"], golden["source"], golden["target"])
    assert_close(T, golden["tps2_T"], 1e-4)
    assert_close(out, golden["tps2_out"], 1e-4)


def test_golden_spline_of_a_given_transformation_and_its_gradient():
    golden = golden_rules.load("tps")

    def warped(U, source, T):
        out = spline.ThinPlateSpline3(U, source, T, (8, 7))
        return out, tf.gradients(tf.reduce_sum(tf.square(out)), U)[0]
    out, gradient = evaluate(warped, golden["U"], golden["source"], golden["T"])
    assert_close(out, golden["tps3_out"], 1e-4)
    assert_close(gradient, golden["tps3_gradU_of_sumsq"], 1e-4)


@pytest.mark.parametrize("tag, w", [("w0", 0.0), ("w01", 0.1)])
@pytest.mark.parametrize("is_affine", [True, False])
def test_golden_image_warps(tag, w, is_affine):
    golden = golden_rules.load("tps")
    draws = golden[f"iw_{tag}_draws"]
    np.testing.assert_array_equal(draws, golden_rules.draws(golden_rules.find_seed(), 3, w))

    def warped(draws, image):
        T = warp.transformations(draws)
        return T, warp.image_warping2(tf.tile(image[None], [3, 1, 1, 1]), T, is_affine)
    T, out = evaluate(warped, draws, golden["iw_img"])
    for i in range(3):
        assert_close(T[i:i + 1], golden[f"iw_{tag}_{i}_T"], 1e-4)
        assert_close(out[i], golden[f"iw_{tag}_{i}_out"], 1e-4)


@pytest.mark.parametrize("padding", [0, 3])
def test_golden_feature_warps(padding):
    golden = golden_rules.load("tps")
    out = evaluate(lambda feature, T: warp.feature_warping2(feature, T, padding),
                   golden["fw_feat"], golden["fw_T"])
    assert_close(out, golden[f"fw_feat_pad{padding}"], 1e-4)


def test_golden_warped_cells():
    golden = golden_rules.load("tps")
    out = evaluate(warp.warped_cells, golden["fw_T"])
    assert_close(out[..., :1], golden["fw_xindex_pad3"], 1e-4)
    assert_close(out[..., 1:], golden["fw_yindex_pad3"], 1e-4)


# ---------------------------------------------------------------- known answers


def test_the_identity_keeps_coordinates_and_magnifies_pictures_slightly():
    image = np.arange(36, dtype=np.float32).reshape(1, 6, 6, 1)
    out = evaluate(warp.image_warping2, image, IDENTITY)[0, :, :, 0]
    assert out[0, 0] == 0  # position -1 is pixel 0
    assert out[1, 0] == pytest.approx(6 * 1.2, rel=1e-5)  # 6 rows are stretched over 5 gaps
    assert np.all(out[5] == 0) and np.all(out[:, 5] == 0)  # they would come from beyond row 5


def test_solved_spline_meets_its_points_and_is_affine_for_affine_points():
    rs = np.random.RandomState(0)
    source = rs.uniform(-1, 1, (1, 6, 2)).astype(np.float32)
    target = source @ np.array([[1.1, 0.2], [-0.1, 0.9]], np.float32) + 0.05
    bent = target + 0.1 * rs.standard_normal(target.shape).astype(np.float32)

    columns, rows = source[0].T.copy()

    def met(source, target):
        T = spline.solve(source, target)
        x, y = spline.transform(T, columns, rows, source)
        every = tf.stack([x, y], 2)  # at all crossings of the six columns and rows
        return T, every[:, ::7]
    T, points = evaluate(met, source, target)
    np.testing.assert_allclose(T[0, :, 3:], 0, atol=1e-4)
    np.testing.assert_allclose(points, target, atol=1e-4)
    T, points = evaluate(met, source, bent)
    assert np.abs(T[0, :, 3:]).max() > 1e-3
    np.testing.assert_allclose(points, bent, atol=1e-4)


def test_samples_beyond_the_pixels_are_0():
    image = np.ones((1, 4, 4, 2), np.float32)
    x = np.array([[0.0, 2.9, 3.0, 3.5, -0.1, 1.0, 1.0]], np.float32)
    y = np.array([[0.0, 1.0, 1.0, 1.0, 1.0, -0.5, 3.2]], np.float32)
    out = evaluate(spline.interpolate, image, x, y)
    np.testing.assert_allclose(out[0, :, 0], [1, 1, 0, 0, 0, 0, 0], atol=1e-6)


def test_a_cut_of_a_warp_is_the_part_of_the_whole():
    rs = np.random.RandomState(1)
    images = rs.standard_normal((2, 20, 20, 3)).astype(np.float32)
    draws = golden_rules.draws(5, 2, 0.1)

    def both(images, draws):
        T = warp.transformations(draws)
        return warp.image_warping2(images, T), warp.image_warping2(images, T, cut=(4, 9))
    whole, part = evaluate(both, images, draws)
    np.testing.assert_array_equal(part, whole[:, 4:13, 4:13])


# ---------------------------------------------------------------- true geometry


def blob(row, column, side, sigma):
    """A Gaussian spot centred on a pixel position, float32 [side, side]."""
    rows, columns = np.mgrid[:side, :side]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma ** 2)).astype("f")


def centre(picture):
    """(row, column) of the mass centre."""
    rows, columns = np.mgrid[:picture.shape[0], :picture.shape[1]]
    return np.array([(picture * rows).sum(), (picture * columns).sum()]) / picture.sum()


@pytest.mark.parametrize("bending", [0.0, 0.01])
@pytest.mark.parametrize("side", [146, 160])
def test_exact_cells_follow_spots_in_the_picture(side, bending):
    """A spot at g(v)'s pixel must appear, warped, at v's pixel; the reference's plane is off."""
    draws = np.array([[0.3, 0.12, -0.08, 0.95, 0.07]], np.float32)
    weights = bending * np.array([[[1, -1, 0.5, 0.2], [0.3, 1, -1, 0.4]]], np.float32)

    def planes(draws, weights):
        T = warp.transformations(draws, weights)
        return (T, warp.warped_cells_exactly(T, side, not bending),
                warp.warped_cells(T, not bending))
    T, exact, approximate = evaluate(planes, draws, weights)
    wanted = [(10, 30), (25, 12), (33, 33)]
    sources = [exact[(0,) + cell] for cell in wanted]
    spots = np.stack([blob(*(2 * u + 27.5 for u in source), side, 3.0) for source in sources], 2)
    moved = evaluate(lambda images, T: warp.image_warping2(images, T, not bending), spots[None], T)
    for number, cell in enumerate(wanted):  # each spot has a channel of its own
        np.testing.assert_allclose((centre(moved[0, :, :, number]) - 27.5) / 2, cell, atol=0.1)
        assert np.abs(approximate[(0,) + cell] - sources[number]).max() > 0.3


@pytest.mark.parametrize("count", [2, 10, 48, 128, 146, 160])
def test_ends_are_tensorflows_linspace(count):
    np.testing.assert_array_equal(spline.ends(count), evaluate(
        lambda: tf.linspace(-1.0, 1.0, count)))


def test_draws_have_the_references_distribution():
    rs = np.random.RandomState(0)
    normal, uniform = rs.standard_normal((20000, 3)), rs.uniform(size=(20000, 2))
    draws = evaluate(lambda n, u: warp.draw(n, u, 0.1), normal, uniform)
    assert draws[:, 0].min() == pytest.approx(-0.5, abs=1e-3)
    assert draws[:, 0].max() == pytest.approx(0.5, abs=1e-3)
    assert draws[:, 3].min() == pytest.approx(0.7, abs=1e-3)
    assert draws[:, 3].max() == pytest.approx(1.2, abs=1e-3)
    np.testing.assert_allclose(draws[:, [1, 2, 4]].std(0), 0.1, rtol=0.02)
    np.testing.assert_allclose(draws[:, [1, 2, 4]].mean(0), 0, atol=0.003)
