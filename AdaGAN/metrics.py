"""How well a mixture of generators covers the data: the paper's C, and what the truth tells.

Plain numpy. metrics.md says what the numbers mean and how they can mislead. Source: Tolstikhin et
al. 2017, section 4, and their code.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np

from npu_session import InputError

BANDWIDTH_POWERS = range(-7, 7)  # the grid is the first guess times 2 to these powers
LEAST_SCORE = -1e6  # a bandwidth whose validation points score no better than this is not taken
THRESHOLD_PERCENTILE = 5  # of the samples' own log-density: a less likely data point is uncovered
COLLAPSED_BANDWIDTH = 1e-3  # first guess for one repeated sample, in units of the data's spread
HIGH_QUALITY_DEVIATIONS = 3  # a sample this near to a mode, in its standard deviations, is good
SAME_PLACE = 1e-9  # of the largest coordinate: two means nearer than this are one mode
BLOCK = 2 ** 20  # distances held in memory at once

# log_p: mean log-density of the data, nats. C: share of the data above the threshold. bandwidth:
# of the kernel, in the data's units. threshold: log-density, nats. collapsed: at least half of the
# consecutive samples coincide.
Evaluation = collections.namedtuple("Evaluation", "log_p C bandwidth threshold collapsed")

# modes_covered: modes with a high-quality sample (int). high_quality: share of samples within 3
# standard deviations of a mode. kl: KL divergence of the samples' mode frequencies from the true
# ones, nats. log_density: mean log-density of the samples under the true mixture, nats.
# rarest_mode: smallest ratio of a mode's share of high-quality samples to its true frequency.
MixtureMetrics = collections.namedtuple(
    "MixtureMetrics", "modes_covered high_quality kl log_density rarest_mode")


def evaluate(real, fake, validation=None):
    """Coverage C and log-likelihood of the data under a kernel density estimate of the samples.

    The Gaussian kernel's bandwidth is the one of 14 under which the validation samples are most
    likely. A data point is covered if it is more likely than the least likely 5 % of the samples.

    Args:
      real: data points [k, dim] (axes of length 1 may follow, here and below).
      fake: samples [n, dim] that the density is estimated from.
      validation: other samples [m, dim]; None: the first guess of the bandwidth is used.
    Returns:
      Evaluation. Samples that coincide leave no scale to guess a bandwidth from: the distances
      that are not 0 give it then, or, without any, a thousandth of the data's spread.
    Raises:
      InputError: no points. FloatingPointError: samples that are not finite.
    """
    real, samples = as_points(real, "data points"), as_points(fake, "samples")
    guess, collapsed = guess_bandwidth(np.asarray(fake), real)
    bandwidth = guess
    if validation is not None:
        bandwidth = choose_bandwidth(samples, as_points(validation, "validation samples"), guess)
    own = log_density(samples, samples, [bandwidth])[0]
    threshold = np.percentile(own, THRESHOLD_PERCENTILE)
    found = log_density(real, samples, [bandwidth])[0]
    return Evaluation(float(np.mean(found)), float(np.mean(found > threshold)), float(bandwidth),
                      float(threshold), collapsed)


def as_points(values, what):
    """float64 [n, dim] of points [n, dim, ...]."""
    values = np.asarray(values, np.float64)
    if not values.size:
        raise InputError(f"no {what} to evaluate: give at least 1")
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{what} are not finite")
    return values.reshape(len(values), -1)


def guess_bandwidth(fake, real):
    """(median distance of consecutive samples, or a positive substitute; whether it is one).

    Computed in the samples' own type, as the reference does: its bandwidths are float32 numbers.
    """
    steps = np.diff(fake.reshape(len(fake), -1), axis=0)
    distances = np.sqrt(np.sum(steps ** 2, axis=1))
    guess = float(np.median(distances)) if len(distances) else 0.0
    if guess > 0:
        return guess, False
    positive = distances[distances > 0]
    if len(positive):
        return float(np.median(positive)), True
    spread = np.sqrt(np.sum(np.var(np.asarray(real, np.float64), axis=0)))
    return COLLAPSED_BANDWIDTH * (float(spread) or 1.0), True


def choose_bandwidth(fake, validation, guess):
    """The bandwidth of the grid around `guess` that makes the validation samples most likely."""
    grid = guess * 2.0 ** np.array(BANDWIDTH_POWERS)
    scores = validation_scores(fake, validation, grid)
    best = np.argmax(scores)
    return grid[best] if scores[best] > LEAST_SCORE else guess


def validation_scores(fake, validation, bandwidths):
    """Mean log-density of the validation samples for each bandwidth, nats, float64."""
    return np.mean(log_density(validation, fake, bandwidths), axis=1)


def log_density(points, centres, deviations, frequencies=None):
    """Log-density of a mixture of isotropic Gaussians, exact in float64 however far the points.

    Args:
      points: float64 [k, dim]. centres: float64 [n, dim].
      deviations: common standard deviations, one mixture for each.
      frequencies: float64 [n], positive, sum 1; None: all equal (a kernel density estimate).
    Returns:
      float64 [len(deviations), k], nats. Memory is bounded for any k, not for large n.
    """
    rows = max(1, BLOCK // len(centres))
    blocks = [block_log_density(points[start:start + rows], centres, deviations, frequencies)
              for start in range(0, len(points), rows)]
    return np.concatenate(blocks, axis=1)


def block_log_density(points, centres, deviations, frequencies):
    """log_density of few points."""
    distances = squared_distances(points, centres)
    nearest = distances.min(axis=1, keepdims=True)
    distances -= nearest  # the largest term of each sum becomes 1: none vanishes
    if frequencies is None:
        frequencies = np.full(len(centres), 1 / len(centres))
    result, terms = np.empty((len(deviations), len(points))), np.empty_like(distances)
    for row, deviation in zip(result, deviations):
        precision = 1 / (2 * deviation ** 2)
        np.exp(np.multiply(distances, -precision, out=terms), out=terms)
        row[:] = np.log(terms @ frequencies) - nearest[:, 0] * precision
        row -= points.shape[1] / 2 * np.log(2 * np.pi * deviation ** 2)
    return result


def squared_distances(points, centres):
    """float64 [k, n]; differences first, for (a - b)^2 = a^2 - 2ab + b^2 loses digits."""
    result = np.zeros((len(points), len(centres)))
    for column, centre in zip(points.T, centres.T):
        result += (column[:, None] - centre) ** 2
    return result


def mixture_metrics(samples, means, variance, frequencies=None):
    """What the true mixture says about samples.

    Args:
      samples: [m, dim] (axes of length 1 may follow).
      means: float64 [modes, dim]; modes that coincide count as one.
      variance: of every coordinate around its mean.
      frequencies: true frequencies of the modes [modes], positive, sum 1; None: equal.
    Returns:
      MixtureMetrics. For kl every sample counts for the nearest mode, near or far.
    Raises:
      InputError: no samples. FloatingPointError: samples that are not finite.
    """
    samples = as_points(samples, "samples")
    means, frequencies = distinct_modes(np.asarray(means, np.float64), frequencies)
    distances = squared_distances(samples, means)
    nearest = np.argmin(distances, axis=1)
    near = distances.min(axis=1) <= HIGH_QUALITY_DEVIATIONS ** 2 * variance
    good, found = (np.bincount(numbers, minlength=len(means)) / len(samples)
                   for numbers in (nearest[near], nearest))
    hit = found > 0
    kl = np.sum(found[hit] * np.log(found[hit] / frequencies[hit]))
    density = log_density(samples, means, [np.sqrt(variance)], frequencies)
    return MixtureMetrics(int(np.sum(good > 0)), float(np.mean(near)), float(kl),
                          float(np.mean(density)), float(np.min(good / frequencies)))


def distinct_modes(means, frequencies=None):
    """(means [k, dim], frequencies [k]) with modes that coincide made one, as circle_gmm's ends."""
    if frequencies is None:
        frequencies = np.full(len(means), 1 / len(means))
    close = np.sqrt(squared_distances(means, means)) <= SAME_PLACE * np.abs(means).max()
    kept, place = np.unique(np.argmax(close, axis=1), return_inverse=True)
    return means[kept], np.bincount(place, weights=frequencies)


def median_and_band(values):
    """Median and 5th and 95th percentile over the first axis, float64 [3, ...]."""
    return np.percentile(np.asarray(values, np.float64), (50, 5, 95), axis=0)
