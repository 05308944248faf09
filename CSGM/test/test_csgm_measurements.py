"""Measurement matrices, masks, noise and the pictures of what was measured."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import re
import zlib

import numpy as np
import pytest

import measurements
from golden_rules import IMG, RS, find_seed, load
from npu_session import InputError


def golden_sizes(kind):
    """Block sides or factors that the golden file has for inpaint or superres."""
    found = [re.match(kind + r"(\d+)_shape$", key) for key in load("measurement")]
    return sorted(int(match.group(1)) for match in found if match)


def golden_matrices():
    """(name in the golden file, our matrix) of all its matrices."""
    return ([(f"inpaint{size}", measurements.inpaint_matrix(size))
             for size in golden_sizes("inpaint")]
            + [(f"superres{factor}", measurements.superres_matrix(factor))
               for factor in golden_sizes("superres")])


def test_golden_file_has_both_kinds_of_matrix():
    assert golden_sizes("inpaint") and golden_sizes("superres")


@pytest.mark.parametrize("statistic, of", [
    ("shape", np.shape), ("sum", np.sum), ("sumsq", lambda matrix: (matrix ** 2).sum()),
    ("nnz", np.count_nonzero), ("max", np.max),
    ("crc32_nonzero", lambda matrix: zlib.crc32((matrix != 0).astype(np.uint8).tobytes()))])
def test_golden_matrices_are_equal_in(statistic, of):
    """The matrices do not depend on the seed."""
    for name, matrix in golden_matrices():
        np.testing.assert_array_equal(of(matrix), load("measurement")[f"{name}_{statistic}"], name)


def test_golden_measurements_without_noise():
    """x = the first two of IMG(RS(SEED + 2), 3), in float64."""
    images = IMG(RS(find_seed() + 2), 3)[:2]
    for name, matrix in golden_matrices():
        y = measurements.observe(images, matrix, 0, RS(0))
        np.testing.assert_allclose(y, load("measurement")[name + "_xA"], 1e-12, 1e-12, err_msg=name)


def test_golden_masks():
    """packbits of the 28 x 28 mask, 1 = kept."""
    for size in golden_sizes("inpaint"):
        mask = measurements.inpaint_mask(size)
        assert mask.shape == (28, 28)
        np.testing.assert_array_equal(np.packbits(mask.astype(np.uint8)),
                                      load("measurement")[f"mask_{size}"])


def test_golden_gaussian_measurements():
    """RS(SEED + 3), in order: IMG(rs, B), A, 0.1 * noise; stored is y_gaussian [B, m]."""
    expected = load("cs")["y_gaussian"]
    count, m = expected.shape
    rs = RS(find_seed() + 3)
    images = IMG(rs, count)
    y = measurements.observe(images, measurements.gaussian_matrix(rs, m), 0.1, rs)
    np.testing.assert_allclose(y, expected, 1e-12, 1e-12)


@pytest.mark.parametrize("size", range(1, 28))
def test_inpaint_columns_have_squared_norm_784_and_keep_each_pixel_once(size):
    matrix = measurements.inpaint_matrix(size)
    assert matrix.shape == (784, measurements.measurement_count("inpaint", None, size))
    np.testing.assert_array_equal((matrix ** 2).sum(0), 784)
    np.testing.assert_array_equal((matrix != 0).sum(1), measurements.inpaint_mask(size).ravel())


@pytest.mark.parametrize("factor", [1, 2, 4, 7, 14, 28])
def test_superres_of_a_constant_image_is_constant(factor):
    matrix = measurements.superres_matrix(factor)
    assert matrix.shape == (784, measurements.measurement_count("superres", None, 1, factor))
    np.testing.assert_allclose((matrix ** 2).sum(0), 784, 1e-12)
    y = measurements.observe(np.full((1, 784), 0.25), matrix, 0, RS(0))
    np.testing.assert_allclose(y, 0.25 * 28 * factor, 1e-12)


def test_superres_measures_the_mean_of_each_block_in_row_major_order():
    images = RS(0).uniform(size=(3, 784))
    means = images.reshape(3, 4, 7, 4, 7).mean((2, 4)).reshape(3, 16)
    y = measurements.observe(images, measurements.superres_matrix(7), 0, RS(0))
    np.testing.assert_allclose(y, 28 * 7 * means, 1e-12)


def test_gaussian_columns_have_squared_norm_784_on_average():
    matrix = measurements.gaussian_matrix(RS(0), 1000)  # std of the mean: sqrt(2 * 784 / 1000)
    assert abs((matrix ** 2).sum(0).mean() - 784) < 5


def test_count_of_every_type():
    count = measurements.measurement_count
    assert [count(name, 900) for name in ("gaussian", "fixed", "learned")] == [900, 900, 900]
    assert count("inpaint", 200, inpaint_size=10) == 684
    assert count("superres", 200, superres_factor=2) == 196
    assert count("project") == count("project", 784) == 784


def test_matrix_of_every_type_has_the_counted_columns():
    cases = ("gaussian", (25,)), ("inpaint", (None, 10)), ("superres", (None, 1, 4))
    for name, arguments in cases:
        matrix = measurements.measurement_matrix(name, RS(0), *arguments)
        assert matrix.shape == (784, measurements.measurement_count(name, *arguments))
    assert measurements.measurement_matrix("project", RS(0)) is None


def test_projection_adds_noise_of_the_given_deviation_to_the_image():
    images = np.full((50, 784), 0.5)
    noise = measurements.observe(images, None, 0.2, RS(0)) - images
    assert noise.shape == (50, 784)
    assert abs(noise.std() - 0.2) < 0.005


def test_noise_of_deviation_0_advances_the_generator_as_any_other():
    first, second = RS(0), RS(0)
    matrix = measurements.gaussian_matrix(RS(1), 5)
    measurements.observe(np.zeros((2, 784)), matrix, 0, first)
    measurements.observe(np.zeros((2, 784)), matrix, 1, second)
    assert first.uniform() == second.uniform()


def test_visible_image_lacks_the_block_or_shows_block_means():
    images = RS(0).uniform(size=(2, 784))
    masked = measurements.visible_image("inpaint", images, inpaint_size=10, missing=0.5)
    mask = measurements.inpaint_mask(10).ravel() == 1
    np.testing.assert_array_equal(masked[:, mask], images[:, mask])
    np.testing.assert_array_equal(masked[:, ~mask], 0.5)
    blurred = measurements.visible_image("superres", images, superres_factor=2)
    means = images.reshape(2, 14, 2, 14, 2).mean((2, 4))
    np.testing.assert_allclose(blurred.reshape(2, 28, 28), means.repeat(2, 1).repeat(2, 2), 1e-12)
    np.testing.assert_allclose(measurements.visible_image("superres", images, superres_factor=1),
                               images)
    assert measurements.visible_image("gaussian", images) is None


@pytest.mark.parametrize("arguments, sentence", [
    (("gaussian", 0), "number of measurements is 0: expected an integer of at least 1"),
    (("gaussian", 2.5), "number of measurements is 2.5"),
    (("gaussian", None), "number of measurements is None"),
    (("fixed", -1), "number of measurements is -1"),
    (("project", 200), "number of measurements is 200: type project observes all 784"),
    (("project", 785), "number of measurements is 785: type project observes all 784"),
    (("inpaint", None, 0), "inpainting block side is 0: expected 1 to 27"),
    (("inpaint", None, 28), "28 leaves no pixel"),
    (("inpaint", None, 29), "inpainting block side is 29"),
    (("superres", None, 1, 3), "super-resolution factor is 3: expected a divisor of 28"),
    (("superres", None, 1, 0), "super-resolution factor is 0"),
    (("fourier", 10), "'fourier' is unknown: use one of gaussian")])
def test_impossible_sizes_are_refused(arguments, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        measurements.measurement_count(*arguments)


def test_trained_matrix_is_not_made_here():
    with pytest.raises(InputError, match="train it"):
        measurements.measurement_matrix("learned", RS(0), 20)


@pytest.mark.parametrize("images, matrix, noise_std, sentence", [
    (np.zeros((2, 783)), None, 0.1, "images have shape"),
    (np.full((2, 784), np.nan), None, 0.1, "images contain NaN"),
    (np.zeros((2, 784)), np.zeros((10, 784)), 0.1, "measurement matrix has shape"),
    (np.zeros((2, 784)), np.full((784, 2), np.inf), 0.1, "measurement matrix contains NaN"),
    (np.zeros((2, 784)), None, -0.1, "noise standard deviation is -0.1"),
    (np.zeros((2, 784)), None, np.nan, "noise standard deviation is nan")])
def test_bad_observation_is_refused(images, matrix, noise_std, sentence):
    with pytest.raises(InputError, match=sentence):
        measurements.observe(images, matrix, noise_std, RS(0))
