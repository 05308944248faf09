"""Weights of points and components: golden values, cases solved by hand, and their meaning."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest

import reweighting
from golden_rules import assert_close, load, load_json
from npu_session import InputError

ARITHMETIC = 1e-9  # of the golden README, for what no graph has computed
THEORIES = {"theory_star": reweighting.theory_star, "theory_dagger": reweighting.theory_dagger}
NUMBER = r"[0-9.e+-]+"


def golden_cases(heuristic, ending):
    """[(key, case, number in the key's third part)] of weights.npz."""
    parts = [key.split("/") for key in load("weights") if key.startswith(heuristic + "/")]
    return [("/".join(part), part[1], part[2]) for part in parts if part[-1].endswith(ending)]


def golden_ratio(case):
    """float64 ratios [N] of a case: float32 numbers, cast as the golden README says."""
    return load("weights")["ratio/" + case].astype(np.float64)


def golden_beta(text):
    """beta of "beta0.3333": thirds are written rounded."""
    number = float(text[len("beta"):])
    return 1 / 3 if number == 0.3333 else number


def test_golden_ratios():
    cases = [key[len("prob/"):] for key in load("weights") if key.startswith("prob/")]
    assert len(cases) > 8
    for case in cases:
        ratio = reweighting.density_ratio(load("weights")["prob/" + case])
        assert ratio.dtype == np.float64
        assert_close(ratio, golden_ratio(case), ARITHMETIC)


@pytest.mark.parametrize("heuristic", THEORIES)
def test_golden_weights_and_log_line(heuristic):
    cases = golden_cases(heuristic, "f64")
    assert len(cases) >= 40
    for key, case, beta in cases:
        found = THEORIES[heuristic](golden_ratio(case), golden_beta(beta))
        assert_close(found.weights, load("weights")[key], ARITHMETIC)
        check_log_line(found.message, load_json("weights_log")[key])
        assert found.failed == found.message.startswith("[WARNING]")


def check_log_line(found, expected):
    """Same words; lambda and the deleted share alike, the sum 1 up to a cancellation."""
    if "failed" in expected:
        assert found == expected
        return
    found, expected = ([part.split("=") for part in line.split(", ")] for line in (found, expected))
    assert [name for name, _ in found] == [name for name, _ in expected]
    values, wanted = ([float(value) for _, value in line] for line in (found, expected))
    np.testing.assert_allclose(values, wanted, rtol=ARITHMETIC, atol=5e-8)
    assert [value[:1] == " " for _, value in found] == [value[:1] == " " for _, value in expected]


def test_golden_topk():
    cases = golden_cases("topk", "")
    assert len(cases) >= 30
    for key, case, share in cases:
        found = reweighting.topk(golden_ratio(case), float(share[1:]))
        assert_close(found.weights, load("weights")[key], ARITHMETIC)
        assert found.message == "" and not found.failed


@pytest.mark.parametrize("name, heuristic, constant, is_bagging", [
    ("uniform", "uniform", None, False), ("constant0.5", "constant", 0.5, False),
    ("constant0.3", "constant", 0.3, False), ("bagging_constant0.3", "constant", 0.3, True)])
def test_golden_component_weights(name, heuristic, constant, is_bagging):
    """Row t: the weights after step t + 1, then zeros."""
    rows, weights = load("weights")["mixture_weights/" + name], []
    for step, row in enumerate(rows):
        beta = reweighting.beta(heuristic, step, constant, is_bagging)
        weights = reweighting.component_weights(weights, beta)
        assert_close(np.append(weights, np.zeros(len(rows) - step - 1)), row, ARITHMETIC)


# ---------------------------------------------------------------- solved by hand


def test_star_of_three_points():
    """beta 1/2, h = 0, 1, 5: lambda_1 = 1.5 and h_2 / 2 = 0.5 < 1.5; lambda_2 = (1.5 + 0.5) / 2 = 1
    and h_3 / 2 = 2.5 >= 1: lambda 1, densities 2 * (1 - h / 2) = 2, 1, 0, whose mean is 1."""
    found = reweighting.theory_star(np.array([5., 0, 1]), 0.5)
    assert found.lambda_ == pytest.approx(1)
    np.testing.assert_allclose(found.weights, [0, 2 / 3, 1 / 3], atol=1e-12)
    assert (found.total, found.deleted) == (pytest.approx(1), pytest.approx(1 / 3))


def test_dagger_of_four_points():
    """beta 1/2, h = 0.5, 0.5, 1, 9: k = 3 gives lambda = (3/4 - 1/2) * 4 / (0.5 * 2) = 1, which
    lies between 2 / h_4 = 0.22 and 2 / h_3 = 2; densities 2 * (1 - h / 2) = 1.5, 1.5, 1, 0."""
    found = reweighting.theory_dagger(np.array([9., 0.5, 1, 0.5]), 0.5)
    assert found.lambda_ == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.weights, [0, 0.375, 0.25, 0.375], atol=1e-6)


def test_topk_keeps_the_least_covered():
    found = reweighting.topk(np.array([3., 1, 2, 4]), 0.5)
    np.testing.assert_array_equal(found.weights, [0, 0.5, 0.5, 0])
    assert found.deleted == 0.5 and found.lambda_ is None and found.total is None


def test_topk_of_ties_keeps_them_all():
    np.testing.assert_array_equal(reweighting.topk(np.ones(4), 0.1).weights, np.full(4, 0.25))


def test_perfect_mixture_gives_uniform_weights():
    """h = 1 everywhere: nothing is covered less than anything else."""
    for theory in THEORIES.values():
        np.testing.assert_allclose(theory(np.ones(10), 0.25).weights, np.full(10, 0.1), rtol=1e-9)


def test_uncovered_points_get_all_the_weight():
    ratio = np.array([0., 0] + [1.25] * 8)
    np.testing.assert_allclose(reweighting.theory_star(ratio, 0.1).weights,
                               [0.5, 0.5] + [0] * 8, atol=1e-12)


def test_ratio_of_certain_and_undecided_classifiers():
    np.testing.assert_allclose(reweighting.density_ratio(np.array([1, 0.5, 0.2, 0], np.float32)),
                               [0, 1, 4, 1e8], rtol=1e-6)


# ---------------------------------------------------------------- against the slow search


def slow_star(ratio, beta):
    """lambda by the loop of Algorithm 1, None if none fits."""
    count, ordered, total = len(ratio), sorted(ratio), 0.0
    for k in range(1, count + 1):
        total += ordered[k - 1]
        lambda_ = beta * count * (1 + (1 - beta) / (beta * count) * total) / k
        if (1 - beta) * ordered[k - 1] <= lambda_ and (
                k == count or lambda_ <= (1 - beta) * ordered[k]):
            return lambda_
    return None


def slow_dagger(ratio, beta):
    """lambda of theory_dagger by a loop, None if none fits."""
    count, ordered, total = len(ratio), sorted(ratio), 0.0
    for k in range(1, count + 1):
        total += ordered[k - 1]
        lambda_ = (k / count - beta) / (1 - beta) * count / (total + 1e-7)
        right = lambda_ < 1 / ((1 - beta) * (ordered[k - 1] + 1e-7))
        left = k == count or 1 / ((1 - beta) * (ordered[k] + 1e-7)) <= lambda_
        if k / count >= beta and left and right:
            return lambda_
    return None


@pytest.mark.parametrize("fast, slow", [(reweighting.theory_star, slow_star),
                                        (reweighting.theory_dagger, slow_dagger)])
def test_the_first_lambda_that_fits_is_found(fast, slow):
    random = np.random.RandomState(0)
    for trial in range(200):
        ratio = random.exponential(size=random.randint(1, 60)) ** random.choice([0.2, 1, 4])
        ratio[random.uniform(size=len(ratio)) < 0.2 * (trial % 3)] = 0
        beta = random.uniform(0.05, 0.95)
        found, expected = fast(ratio, beta), slow(ratio, beta)
        assert found.failed == (expected is None)
        assert expected is None or found.lambda_ == pytest.approx(expected, rel=1e-9)
        assert found.weights.min() >= 0 and found.weights.sum() == pytest.approx(1)


def test_order_of_the_points_does_not_matter():
    random = np.random.RandomState(1)
    ratio, order = random.exponential(size=500), random.permutation(500)
    for theory in THEORIES.values():
        np.testing.assert_allclose(theory(ratio[order], 0.3).weights,
                                   theory(ratio, 0.3).weights[order], rtol=1e-9)


def test_less_covered_points_weigh_no_less():
    ratio = np.sort(np.random.RandomState(2).exponential(size=500))
    for theory in THEORIES.values():
        assert np.all(np.diff(theory(ratio, 0.3).weights) <= 0)


# ---------------------------------------------------------------- what can go wrong


def test_failed_search_passes_uniform_weights_and_says_so():
    found = reweighting.theory_dagger(np.zeros(50), 0.5)  # P_d(P_g = 0) = 1: there is no Q-dagger
    assert found.failed and found.lambda_ is None and found.total is None
    assert found.message == "[WARNING] Lambda search failed, passing uniform weights"
    np.testing.assert_array_equal(found.weights, np.full(50, 0.02))


def test_classifier_sure_that_everything_is_fake():
    for beta in (0.1, 1 / 3, 0.9):
        found = reweighting.theory_star(reweighting.density_ratio(np.zeros(20, np.float32)), beta)
        np.testing.assert_allclose(found.weights, np.full(20, 0.05), rtol=1e-6)


def test_probabilities_that_are_none():
    for wrong in (np.nan, -0.1, 1.5):
        with pytest.raises(FloatingPointError, match="probabilities"):
            reweighting.density_ratio(np.array([0.5, wrong], np.float32))


@pytest.mark.parametrize("function, number", [
    (reweighting.theory_star, 0), (reweighting.theory_star, 1.1), (reweighting.theory_dagger, 0),
    (reweighting.theory_dagger, 1), (reweighting.topk, 0), (reweighting.topk, 1.2),
    (reweighting.topk, float("nan"))])
def test_constants_out_of_range_are_refused(function, number):
    with pytest.raises(InputError, match="give"):
        function(np.ones(5), number)


def test_star_at_beta_one_is_uniform():
    """The paper's first step."""
    np.testing.assert_allclose(reweighting.theory_star(np.array([0., 3, 9]), 1).weights,
                               np.full(3, 1 / 3))


def test_beta():
    assert [reweighting.beta("uniform", step) for step in range(3)] == [1, 1 / 2, 1 / 3]
    assert [reweighting.beta("constant", step, 0.3) for step in range(3)] == [1, 0.3, 0.3]
    assert reweighting.beta("constant", 3, 0.3, is_bagging=True) == 0.25
    for constant in (0, 1, -1, 2):
        with pytest.raises(InputError, match="constant"):
            reweighting.beta("constant", 1, constant)
    with pytest.raises(InputError, match="'linear': expected uniform or constant"):
        reweighting.beta("linear", 0)


def test_component_weights_of_uniform_beta_are_equal():
    weights = []
    for step in range(7):
        weights = reweighting.component_weights(weights, reweighting.beta("uniform", step))
    np.testing.assert_allclose(weights, np.full(7, 1 / 7))
