"""The Gaussian mixtures that AdaGAN is tried on; the generator is the data, nothing is downloaded.

gmm: means drawn uniformly in a cube; circle_gmm: means on a circle. Source: Tolstikhin et al.
2017, section 4.1, and their code, whose constants these are.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np

from npu_session import InputError

NAMES = ("gmm", "circle_gmm")
FEW_MODES_DIVISOR = {1: 3, 2: 3, 3: 8, 4: 20, 5: 10}  # to the power 2 / dim: see mode_variance
CIRCLE_VARIANCE = 0.01

# points float64 [N, dim, 1, 1]; means float64 [modes, dim]; variance of every coordinate around
# its mean (float); name of the data set.
Data = collections.namedtuple("Data", "points means variance name")


def load(name, modes, dim, size, max_val, random_seed, random):
    """Draws a mixture of equally frequent isotropic Gaussians.

    Args:
      name: "gmm" or "circle_gmm".
      modes: number of Gaussians. dim: of a point. size: number N of points.
      max_val: gmm: means lie in [-max_val, max_val)^dim; circle_gmm: radius of the circle.
      random_seed: fixes the means of gmm.
      random: np.random.RandomState; the points are drawn one by one, as the reference does, so that
        the same stream gives the very same points.
    Returns:
      Data.
    Raises:
      InputError: unknown name, or numbers with which there is no such mixture.
    """
    check(name, modes, dim, size, max_val)
    means = mode_means(name, modes, dim, max_val, random_seed)
    variance = CIRCLE_VARIANCE if name == "circle_gmm" else mode_variance(modes, dim, max_val)
    points = draw(random, means, np.sqrt(variance), size)
    return Data(points.reshape(size, dim, 1, 1), means, variance, name)


def check(name, modes, dim, size, max_val):
    """Raises InputError unless there is such a mixture."""
    if name not in NAMES:
        raise InputError(f"data set {name!r}: expected {' or '.join(NAMES)}")
    for what, value in (("modes", modes), ("dimensions", dim), ("points", size)):
        if value < 1:
            raise InputError(f"{name} with {value} {what}: give at least 1")
    if name == "circle_gmm" and dim != 2:
        raise InputError(f"circle_gmm lies in the plane and cannot have {dim} dimensions: give 2")
    if not 0 < max_val < np.inf:
        raise InputError(f"{name} with means up to {max_val}: give a number above 0")


def mode_means(name, modes, dim, max_val, random_seed):
    """Means, float64 [modes, dim].

    circle_gmm's angles, from the second axis, include both 0 and 2 pi, as in the reference: its
    first and last mode coincide, so that there are modes - 1 places, one twice as frequent.
    """
    if name == "gmm":
        random = np.random.RandomState(random_seed)
        return random.uniform(low=-max_val, high=max_val, size=(modes, dim))
    angles = np.linspace(0, 2 * np.pi, modes)
    return max_val * np.stack([np.sin(angles), np.cos(angles)], axis=1)


def mode_variance(modes, dim, max_val):
    """Variance of gmm's modes: the more modes, the narrower, lest they run into one another."""
    if modes in FEW_MODES_DIVISOR:
        return max_val / FEW_MODES_DIVISOR[modes] ** (2 / dim)
    return max_val / (3 * modes ** 2)


def draw(random, means, deviation, size):
    """Points float64 [size, dim]: for each in turn its mode, then its place."""
    modes, dim = means.shape
    integer, normal = random.randint, random.standard_normal
    chosen, noise = zip(*[(integer(modes), normal(dim)) for _ in range(size)])
    return means[list(chosen)] + deviation * np.array(noise)
