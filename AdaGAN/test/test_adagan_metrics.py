"""C and log_p, and what the true mixture says: golden values, known answers, an independent KDE."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest

import datahandler
import metrics
from golden_rules import assert_close, load
from npu_session import InputError

ARITHMETIC = 1e-9  # of the golden README, for what no graph has computed
FLOAT32 = 1e-7  # golden noval is no float64 arithmetic: its bandwidth was squared in float32
CASES = ("full", "modes4", "blob", "noval", "point")


def golden_samples(case):
    """(samples, validation samples or None) of a case of metrics.npz."""
    golden = load("metrics")
    if case == "noval":
        return golden["fake/full"], None
    return golden["fake/" + case], golden["val/" + case]


@pytest.mark.parametrize("case", CASES)
def test_golden_evaluation(case):
    """log_p, C, bandwidth and threshold of exact/out; C also of the reference."""
    golden = load("metrics")
    found = metrics.evaluate(golden["real"], *golden_samples(case))
    tolerance = FLOAT32 if case == "noval" else ARITHMETIC
    for value, expected in zip(found, golden["exact/out/" + case]):
        assert_close(value, expected, tolerance)
    assert_close(found.C, golden["out/" + case][1], 0)
    assert not found.collapsed


@pytest.mark.parametrize("case", CASES)
def test_golden_log_densities(case):
    """Of every data point, and the mean of the validation samples for each bandwidth."""
    golden = load("metrics")
    fake, validation = golden_samples(case)
    bandwidth = golden["exact/out/" + case][2]
    found = metrics.log_density(golden["real"], fake.astype(np.float64), [bandwidth])[0]
    assert_close(found, golden["exact/real_logdens/" + case],
                 FLOAT32 if case == "noval" else ARITHMETIC)
    if validation is not None:
        guess, _ = metrics.guess_bandwidth(fake, golden["real"])
        scores = metrics.validation_scores(fake.astype(np.float64), validation.astype(np.float64),
                                           guess * 2.0 ** np.arange(-7, 7))
        assert_close(scores, golden["exact/val_scores/" + case], ARITHMETIC)


@pytest.mark.parametrize("case", ["dup", "const"])
def test_golden_collapsed_samples_are_survived(case):
    """The reference divides by a bandwidth of 0 there."""
    golden = load("metrics")
    found = metrics.evaluate(golden["real"], golden["fake/" + case], golden["val/" + case])
    assert found.collapsed and found.bandwidth > 0
    assert np.isfinite(found.log_p) and 0 <= found.C <= 1


# ---------------------------------------------------------------- the kernel density estimate


def test_one_kernel_is_a_gaussian():
    """log N(x; 0, h^2 I) = -|x|^2 / 2h^2 - log(2 pi h^2) in the plane."""
    found = metrics.log_density(np.array([[0., 0], [3, 4]]), np.zeros((1, 2)), [2.0])[0]
    np.testing.assert_allclose(found, [-np.log(8 * np.pi), -25 / 8 - np.log(8 * np.pi)])


def test_density_integrates_to_one():
    x = np.linspace(-30, 30, 6001)[:, None]
    centres = np.random.RandomState(0).uniform(-5, 5, (7, 1))
    density = np.exp(metrics.log_density(x, centres, [0.3, 2.0]))
    np.testing.assert_allclose(density.sum(axis=1) * 0.01, [1, 1], rtol=1e-9)


def test_density_agrees_with_scikit_learn_where_that_is_right():
    """Its tree is wrong where densities are below about e^-30: the points stay near."""
    neighbours = pytest.importorskip("sklearn.neighbors")
    random = np.random.RandomState(3)
    centres, points = random.standard_normal((400, 2)), random.standard_normal((100, 2))
    for bandwidth in (0.2, 1.0):
        oracle = neighbours.KernelDensity(bandwidth=bandwidth, rtol=0, atol=0).fit(centres)
        np.testing.assert_allclose(metrics.log_density(points, centres, [bandwidth])[0],
                                   oracle.score_samples(points), rtol=1e-8, atol=1e-8)


def test_far_points_do_not_underflow():
    found = metrics.log_density(np.array([[1e6, 0.]]), np.zeros((3, 2)), [0.1])[0]
    np.testing.assert_allclose(found, -0.5e14, rtol=1e-9)


def test_blocks_do_not_change_the_result(monkeypatch):
    random = np.random.RandomState(4)
    points, centres = random.standard_normal((57, 2)), random.standard_normal((30, 2))
    whole = metrics.log_density(points, centres, [0.1, 1])
    monkeypatch.setattr(metrics, "BLOCK", 100)
    np.testing.assert_allclose(metrics.log_density(points, centres, [0.1, 1]), whole, rtol=1e-12)


# ---------------------------------------------------------------- evaluate


def test_covered_half():
    """Samples on one of two far places: half of the data is covered."""
    random = np.random.RandomState(5)
    samples = random.standard_normal((1000, 2))
    real = np.concatenate([0.5 * random.standard_normal((100, 2)),
                           0.5 * random.standard_normal((100, 2)) + 50])
    found = metrics.evaluate(real, samples, random.standard_normal((500, 2)))
    assert found.C == 0.5 and found.log_p < -500


def test_exact_samples_and_a_blob_with_ten_modes():
    """What metrics.md and the README say about the scale of C and log_p."""
    random = np.random.RandomState(6)
    points = datahandler.load("gmm", 10, 2, 2000, 15., 821, random).points
    exact = metrics.evaluate(points[:500], points[500:1500], points[1500:])
    assert 0.88 <= exact.C <= 0.93 and -2.35 < exact.log_p < -2.05
    blob = metrics.evaluate(points[:500], 8 * random.standard_normal((1000, 2)),
                            8 * random.standard_normal((500, 2)))
    assert blob.C > 0.99 and -7.4 < blob.log_p < -6.9


def test_points_may_have_trailing_axes_and_any_dimension():
    random = np.random.RandomState(7)
    for dim in (1, 3):
        real, fake, validation = (random.standard_normal((n, dim)) for n in (20, 60, 30))
        flat = metrics.evaluate(real, fake, validation)
        deep = metrics.evaluate(real[..., None, None], fake[..., None, None],
                                validation[..., None, None])
        assert flat == deep


def test_no_bandwidth_good_enough_leaves_the_first_guess():
    fake = np.random.RandomState(8).standard_normal((50, 2)) * 1e-6
    far = np.full((5, 2), 1e6)
    guess, _ = metrics.guess_bandwidth(fake, far)
    assert metrics.evaluate(far, fake, far).bandwidth == guess


def test_collapse_takes_the_distances_that_are_left():
    fake = np.array([[0., 0], [0, 0], [0, 0], [0, 2], [0, 2], [0, 2]])
    assert metrics.guess_bandwidth(fake, fake) == (2, True)
    assert metrics.guess_bandwidth(np.array([[0., 0], [3, 4]]), fake) == (5, False)


def test_one_repeated_sample_takes_a_thousandth_of_the_datas_spread():
    real = np.array([[0., 0], [6, 8]])  # standard deviation 5
    assert metrics.guess_bandwidth(np.ones((9, 2)), real) == (pytest.approx(0.005), True)
    assert metrics.guess_bandwidth(np.ones((1, 2)), real)[1]
    found = metrics.evaluate(np.ones((3, 2)), np.ones((9, 2)), np.ones((2, 2)))
    assert found.collapsed and np.isfinite(found.log_p)


def test_samples_that_cannot_be_evaluated():
    good, empty = np.zeros((4, 2)), np.zeros((0, 2))
    for arguments, message in (((empty, good), "no data points"), ((good, good, empty),
                                                                   "no validation samples")):
        with pytest.raises(InputError, match=message):
            metrics.evaluate(*arguments)
    with pytest.raises(FloatingPointError, match="samples are not finite"):
        metrics.evaluate(good, np.array([[0, np.nan], [1, 2]]))


# ---------------------------------------------------------------- the true mixture


FOUR = np.array([[0., 0], [10, 0], [0, 10], [10, 10]])


def test_samples_on_the_modes():
    found = metrics.mixture_metrics(np.repeat(FOUR, 5, axis=0), FOUR, 0.25)
    assert found.modes_covered == 4 and found.high_quality == 1
    assert found.kl == pytest.approx(0) and found.rarest_mode == 1
    assert found.log_density == pytest.approx(-np.log(4) - np.log(2 * np.pi * 0.25))


def test_missing_modes_and_unequal_shares():
    """3 of 4 samples in mode 0, 1 in mode 1: KL = 3/4 log 3 + 1/4 log 1."""
    found = metrics.mixture_metrics(FOUR[[0, 0, 0, 1]], FOUR, 0.25)
    assert found.modes_covered == 2 and found.rarest_mode == 0
    assert found.kl == pytest.approx(0.75 * np.log(3))


def test_rarest_mode_counts_good_samples_only():
    """Ten samples: 3, 3, 3 and 1 good ones of 2.5 expected each."""
    found = metrics.mixture_metrics(FOUR[[0, 0, 0, 1, 1, 1, 2, 2, 2, 3]], FOUR, 0.25)
    assert found.modes_covered == 4 and found.rarest_mode == pytest.approx(0.4)
    samples = np.concatenate([FOUR, FOUR[3:] - 2])
    assert metrics.mixture_metrics(samples, FOUR, 0.25).rarest_mode == pytest.approx(0.8)


def test_high_quality_ends_at_three_standard_deviations():
    """Standard deviation 0.5: the circle of radius 1.5 around a mode."""
    samples = np.array([[1.49, 0], [0, 1.51], [1.2, 1.2], [5, 5]])
    found = metrics.mixture_metrics(samples, FOUR, 0.25)
    assert found.high_quality == 0.25 and found.modes_covered == 1


def test_no_good_sample_covers_no_mode():
    found = metrics.mixture_metrics(np.full((3, 2), 100.), FOUR, 0.25)
    assert found.modes_covered == 0 and found.high_quality == 0 and np.isfinite(found.log_density)


def test_true_frequencies_are_respected():
    samples = FOUR[[0, 0, 0, 1]]
    found = metrics.mixture_metrics(samples, FOUR[:2], 0.25, np.array([0.75, 0.25]))
    assert found.kl == pytest.approx(0)
    assert found.log_density == pytest.approx(
        0.75 * np.log(0.75) + 0.25 * np.log(0.25) - np.log(2 * np.pi * 0.25))


def test_modes_that_coincide_count_once_and_twice_as_often():
    data = datahandler.load("circle_gmm", 5, 2, 4000, 15., 1, np.random.RandomState(0))
    means, frequencies = metrics.distinct_modes(data.means)
    assert len(means) == 4
    np.testing.assert_allclose(frequencies, [0.4, 0.2, 0.2, 0.2])
    found = metrics.mixture_metrics(data.points, data.means, data.variance)
    assert found.modes_covered == 4 and found.kl < 0.003


def test_exact_samples_score_what_theory_says():
    """Share within 3 standard deviations in the plane: 1 - e^-4.5. Mean log-density: that of one
    Gaussian, -log(2 pi e variance), less log 10; the modes hardly overlap."""
    data = datahandler.load("gmm", 10, 2, 20000, 15., 821, np.random.RandomState(1))
    found = metrics.mixture_metrics(data.points, data.means, data.variance)
    assert found.modes_covered == 10 and 0.93 < found.rarest_mode <= 1
    assert found.high_quality == pytest.approx(1 - np.exp(-4.5), abs=0.003)
    assert found.log_density == pytest.approx(
        -np.log(10) - np.log(2 * np.pi * np.e * data.variance), abs=0.03)
    assert found.kl < 0.001


def test_wrong_samples_for_the_mixture():
    with pytest.raises(InputError, match="no samples"):
        metrics.mixture_metrics(np.zeros((0, 2)), FOUR, 0.25)
    with pytest.raises(FloatingPointError):
        metrics.mixture_metrics(np.full((2, 2), np.inf), FOUR, 0.25)


def test_median_and_band_over_seeds():
    values = np.tile(np.arange(101)[:, None], (1, 3))
    np.testing.assert_array_equal(metrics.median_and_band(values), [[50] * 3, [5] * 3, [95] * 3])
    np.testing.assert_array_equal(metrics.median_and_band([[7, 8]]), [[7, 8]] * 3)
