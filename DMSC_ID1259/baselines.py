"""What raw pixels give without a network: ridge self-expression, then the same post-processing.

To be printed beside a result: a network that does not beat it has learnt nothing.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np
import scipy.linalg

import metrics
from npu_session import InputError

RIDGE_SHARE = 0.003  # of the mean energy of a sample; best for all 38 faces of Extended Yale B

Baseline = collections.namedtuple("Baseline", "name labels scores")


def self_expression(matrices, weights, ridge_share=RIDGE_SHARE):
    """The matrix C with zero diagonal that minimises sum_m w_m |X_m - C X_m|^2 + ridge |C|^2.

    Args:
      matrices: list of M float [N, D_m], a row per sample. weights: M numbers of at least 0.
      ridge_share: the ridge over the mean of sum_m w_m |x_m|^2 over the samples.
    Returns:
      float64 [N, N]. The column of a sample that is all 0 (a black image) has equal entries: it
      is as near to all others, where the solution would leave it without any.
    Raises:
      InputError: the matrices hold nothing but 0, or numbers that are not finite.
    Source: row i of the solution is -P_i / P_ii with P = (sum_m w_m X_m X_m' + ridge I)^-1.
    """
    gram = np.zeros((len(matrices[0]), len(matrices[0])))
    for matrix, weight in zip(matrices, weights):
        rows = np.asarray(matrix, np.float64)
        gram += weight * (rows @ rows.T)
    energy = np.trace(gram) / len(gram)
    if not (np.isfinite(energy) and energy > 0):
        raise InputError(f"the mean energy of a sample is {energy}: expected images that are "
                         "finite and not all black, and weights that are not all 0")
    black = np.diag(gram) == 0
    gram[np.diag_indices(len(gram))] += ridge_share * energy
    factor = scipy.linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
    precision = scipy.linalg.cho_solve(factor, np.eye(len(gram)), overwrite_b=True,
                                       check_finite=False)
    coefficients = precision / -np.diag(precision)[:, None]
    coefficients[:, black] = 1 / len(gram)
    np.fill_diagonal(coefficients, 0)
    return coefficients


def ridge(matrices, K, weights=None, ridge_share=RIDGE_SHARE, random=None, ro=None):
    """Clusters of raw pixels.

    Args:
      matrices: list of M float [N, 1024]. K: clusters. weights: M numbers; default: all 1.
      ridge_share: see self_expression. random: of metrics.post_proC. ro: share of a column to
        keep; default metrics.alpha(K).
    Returns:
      int [N], 1..K.
    """
    C = self_expression(matrices, weights or [1.0] * len(matrices), ridge_share)
    kept = metrics.thrC(C, metrics.alpha(K) if ro is None else ro)
    return metrics.post_proC(kept, K, random=random)[0]


def compare(images, K, truth, weights, names=None):
    """Ridge baselines of each modality alone and, with more than one, of all together.

    Args:
      images: list of M arrays [N, ...] of pixels. K: clusters. truth: labels [N] or None.
      weights: M numbers, of the modalities together. names: of the modalities; default: numbers.
    Yields:
      Baseline: name, labels [N] 1..K, metrics.Scores.
    """
    matrices = [np.reshape(image, (len(image), -1)) for image in images]
    names = names or [f"modality {number}" for number in range(len(matrices))]
    tasks = [(name, [matrix], [1.0]) for name, matrix in zip(names, matrices)]
    if len(matrices) > 1:
        tasks.append(("all modalities", matrices, list(weights)))
    for name, chosen, chosen_weights in tasks:
        labels = ridge(chosen, K, chosen_weights)
        yield Baseline(name, labels, metrics.scores(truth, labels))
