"""AdaGAN's weights: of the training points, of the next component, and of the components so far.

Source: Tolstikhin et al. 2017 (arXiv 1701.02386), Algorithm 1 and UpdateTrainingWeights; Q* and
Q-dagger are the minimisers of the divergence of (1 - beta) P_g + beta Q from P_d.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np

from npu_session import InputError

EPSILON = 1e-8  # keeps the density ratio finite where the classifier is sure of a fake
DAGGER_EPSILON = 1e-7  # keeps theory_dagger's bounds finite where the ratio is 0
SEARCH_FAILED = "[WARNING] Lambda search failed, passing uniform weights"

# weights: float64 [N], at least 0, sum 1. lambda_ and total: the chosen lambda and the sum of the
# weights before it was made 1, None without them. deleted: share of points with weight 0. failed:
# no lambda was found and the weights are uniform. message: log line, "" for none.
Reweighting = collections.namedtuple("Reweighting", "weights lambda_ total deleted failed message")


def density_ratio(probabilities):
    """h = dP_g / dP_d at the points: (1 - D) / (D + 1e-8).

    Args:
      probabilities: [N], D: the classifier's probabilities that the points are data.
    Returns:
      float64 [N], at least 0. float64, since the lambda search on float32 ratios depends on
      NumPy's version and fails where it should not. The quotient itself is of the input's type.
    Raises:
      FloatingPointError: a probability is NaN or outside [0, 1].
    """
    probabilities = np.asarray(probabilities)
    if not np.all((probabilities >= 0) & (probabilities <= 1)):  # NaN compares as False
        raise FloatingPointError("the mixture classifier's probabilities are not all in [0, 1]: "
                                 "try a smaller --learning_rate")
    one, epsilon = probabilities.dtype.type(1), probabilities.dtype.type(EPSILON)
    return ((one - probabilities) / (probabilities + epsilon)).astype(np.float64)


def theory_star(ratio, beta):
    """Weights of Q* = (lambda P_d - (1 - beta) P_g)_+ / beta.

    Sorted h_1 <= .. <= h_N and S_k = h_1 + .. + h_k give lambda_k = (beta N + (1 - beta) S_k) / k;
    the first k with (1 - beta) h_k <= lambda_k <= (1 - beta) h_(k+1) is taken.

    Args:
      ratio: float64 [N], of density_ratio. beta: in (0, 1], weight of the next component.
    Returns:
      Reweighting; `failed` where no k fits.
    Raises:
      InputError: beta outside its range.
    """
    check_beta("theory_star", beta, 0 < beta <= 1)
    count, ordered = len(ratio), np.sort(ratio)
    ranks = np.arange(1, count + 1)
    lambdas = beta * count * (1 + (1 - beta) / beta / count * np.cumsum(ordered)) / ranks
    bounds = (1 - beta) * ordered
    found = bounds <= lambdas
    found[:-1] &= lambdas[:-1] <= bounds[1:]
    if not found.any():
        return uniform_weights(count)
    lambda_ = lambdas[np.argmax(found)]
    return from_densities((lambda_ - (1 - beta) * ratio) / beta, lambda_,
                          "Lambda= {}, sum= {}, deleted points= {}")


def theory_dagger(ratio, beta):
    """Weights of Q-dagger = (P_d - lambda (1 - beta) P_g)_+ / beta.

    Sorted h and S_k as in theory_star give lambda_k = N (k / N - beta) / ((1 - beta) S_k); the
    first k with 1 / ((1 - beta) h_(k+1)) <= lambda_k < 1 / ((1 - beta) h_k) is taken, k / N being
    at least beta. Exists only if P_d(P_g = 0) < beta.

    Args:
      ratio: float64 [N], of density_ratio. beta: in (0, 1), weight of the next component.
    Returns:
      Reweighting; `failed` where no k fits.
    Raises:
      InputError: beta outside its range.
    """
    check_beta("theory_dagger", beta, 0 < beta < 1)
    count, ordered = len(ratio), np.sort(ratio)
    shares = np.arange(1, count + 1) / count
    sums = np.cumsum(ordered) + DAGGER_EPSILON
    lambdas = (shares - beta) / (1 - beta) * count / sums
    bounds = 1 / ((1 - beta) * (ordered + DAGGER_EPSILON))
    found = (shares >= beta) & (lambdas < bounds)
    found[:-1] &= bounds[1:] <= lambdas[:-1]
    if not found.any():
        return uniform_weights(count)
    lambda_ = lambdas[np.argmax(found)]
    return from_densities((1 - lambda_ * (1 - beta) * ratio) / beta, lambda_,
                          "Lambda={}, sum={}, deleted points={}")


def topk(ratio, topk_constant):
    """Equal weights on the points least covered: those up to a percentile of the density ratio.

    Args:
      ratio: float64 [N]. topk_constant: in (0, 1], share of the points to keep; ties all stay.
    Returns:
      Reweighting without lambda_, total and message.
    Raises:
      InputError: the share is outside its range.
    """
    if not 0 < topk_constant <= 1:
        raise InputError(f"topk_constant={topk_constant}: give a share above 0 and at most 1")
    kept = ratio <= np.percentile(ratio, 100 * topk_constant)
    return Reweighting(kept / np.sum(kept), None, None, float(np.mean(~kept)), False, "")


def from_densities(densities, lambda_, message):
    """Reweighting of Q / P_d [N], negative where Q is 0; message: format of its log line."""
    weights = np.maximum(densities, 0) / len(densities)
    total, deleted = float(np.sum(weights)), float(np.mean(weights == 0))
    return Reweighting(weights / total, float(lambda_), total, deleted, False,
                       message.format(float(lambda_), total, deleted))


def uniform_weights(count):
    """The Reweighting of a failed search."""
    return Reweighting(np.full(count, 1 / count), None, None, 0.0, True, SEARCH_FAILED)


def check_beta(heuristic, beta, in_range):
    """Raises InputError unless in_range."""
    if not in_range:
        raise InputError(f"{heuristic} with a component weight beta = {beta}: give one between 0 "
                         "and 1")


def beta(heuristic, step_index, constant=None, is_bagging=False):
    """Weight of the next component in the mixture.

    Args:
      heuristic: "uniform": 1 / t for the t-th component, so that all end up equal; or "constant".
      step_index: components trained so far, from 0. The first component always has weight 1.
      constant: the weight of "constant", in (0, 1).
      is_bagging: uniform whatever the heuristic says.
    Raises:
      InputError: unknown heuristic, or constant outside its range.
    """
    if heuristic not in ("uniform", "constant"):
        raise InputError(f"beta heuristic {heuristic!r}: expected uniform or constant")
    if step_index == 0 or is_bagging or heuristic == "uniform":
        return 1 / (step_index + 1)
    check_beta("the beta heuristic constant", constant, 0 < constant < 1)
    return constant


def component_weights(old, beta):
    """Mixture weights float64 [t + 1] once a component of weight beta joins old [t]; they sum to 1.

    old may be empty, then beta must be 1.
    """
    return np.append(np.asarray(old, np.float64) * (1 - beta), beta)
