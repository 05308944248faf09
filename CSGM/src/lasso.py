"""Sparse recovery in the pixel basis: Lasso and orthogonal matching pursuit, all images at once.

Lasso: minimise over w [784] and b   1/(2m) |y - b - A'w|^2 + alpha |w|_1   for each image's y [m],
A [784, m]. The estimate is w clipped to [0, 1] without b, as in Bora et al. 2017's code, which
calls scikit-learn. Solver: proximal gradient steps with the step length of Barzilai and Borwein and
a non-monotone acceptance test (SpaRSA; Wright, Nowak, Figueiredo 2009).
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import numbers
import warnings

import numpy as np

from npu_session import InputError

# The stop of scikit-learn alone (gap below 1e-4 of |y - mean|^2) left the objective of MNIST images
# up to 1 % above its minimum at m = 10; this second limit, relative to the objective, bounds that.
OBJECTIVE_TOLERANCE = 5e-4
CHECK_EVERY = 5  # steps between evaluations of the duality gap
MEMORY = 100  # a step may rise above the last objective, not above the worst of so many
SUFFICIENT_DECREASE = 1e-4
TINY = np.finfo(np.float64).tiny  # divisors are kept above it, so that 0 / 0 becomes 0
DEPENDENT = 1e-10  # a column with less of its norm outside the span of others depends on them

# What the solver knows of the images it still works on, one row per image, scaled by m:
# index: image number; weights w, gradient A r with residual r = y - A'w, projected A y: [n, 784];
# energy |y|^2, step length, objective: [n]; history: the last objectives [n, MEMORY].
State = collections.namedtuple(
    "State", "index weights gradient projected energy step objective history")


def lasso_estimate(A, y, alpha, tolerance=1e-4, max_iterations=20000):
    """The Lasso's image: weights clipped to [0, 1], intercept dropped. Arguments as `lasso`."""
    return np.clip(lasso(A, y, alpha, tolerance, max_iterations), 0, 1)


def lasso(A, y, alpha, tolerance=1e-4, max_iterations=20000, fit_intercept=True):
    """Weights w of the Lasso for a batch of images that share a matrix.

    Args:
      A: [784, m], columns are measurements. Any number of rows is accepted.
      y: [B, m]; B may be 0.
      alpha: weight of |w|_1, above 0. From max |A (y - mean)| / m on, w is exactly 0.
      tolerance: an image is done when its duality gap is below tolerance * |y - mean|^2, which is
        scikit-learn's rule, and below the OBJECTIVE_TOLERANCE-th part of its objective.
      max_iterations: cap on the steps; reaching it is a RuntimeWarning that tells the gap.
      fit_intercept: False leaves b out.
    Returns:
      float64 [B, 784]. The minimum is nearly flat for small m: other solvers find the same
      objective at visibly different weights.
    Raises:
      InputError: shapes that do not fit, values that are not finite, alpha not above 0.
    """
    A, y = checked_system(A, y)
    if not (np.isfinite(alpha) and alpha > 0):
        raise InputError(f"Lasso's alpha is {alpha}: expected a number above 0")
    if fit_intercept:
        A, y = centred(A), centred(y)
    penalty = alpha * A.shape[1]
    apply_normal = normal_operator(A)
    solution = np.zeros((len(y), len(A)))
    state = start(A, y, apply_normal)
    for iteration in range(max_iterations + 1):
        if iteration % CHECK_EVERY == 0 or iteration == max_iterations:
            gap, objective = duality_gap(state, penalty)
            solution[state.index] = state.weights
            open_ = gap > np.minimum(tolerance * state.energy, OBJECTIVE_TOLERANCE * objective)
            if not open_.any():
                return solution
            if not open_.all():
                state = State(*[values[open_] for values in state])
        if iteration < max_iterations:
            state = advance(state, penalty, apply_normal, iteration)
    warn_unfinished(gap[open_] / objective[open_], len(y), max_iterations)
    return solution


def lasso_objective(A, y, w, alpha, fit_intercept=True):
    """Lasso objective [B] of weights w [B, 784], with the best intercept for them (or none)."""
    A, y = checked_system(A, y)
    residual = y - np.asarray(w, np.float64) @ A
    if fit_intercept:
        residual = centred(residual)
    return 0.5 * (residual ** 2).mean(1) + alpha * np.abs(w).sum(1)


def centred(rows):
    """A copy in which every row has mean 0: what eliminating the intercept does to A and to y."""
    return rows - rows.mean(1, keepdims=True)


def normal_operator(A):
    """Function [n, 784] -> [n, 784]: d -> d A A', by whichever grouping costs less."""
    transposed = np.ascontiguousarray(A.T)
    if 2 * A.shape[1] > A.shape[0]:
        gram = A @ transposed
        return lambda direction: direction @ gram
    return lambda direction: (direction @ A) @ transposed


def start(A, y, apply_normal):
    """State at w = 0; the first step length is that of steepest descent without the penalty."""
    projected = y @ A.T
    energy = (y ** 2).sum(1)
    curvature = (projected * apply_normal(projected)).sum(1)
    history = np.full((len(y), MEMORY), -np.inf)
    history[:, 0] = 0.5 * energy
    return State(np.arange(len(y)), np.zeros_like(projected), projected, projected, energy,
                 (projected ** 2).sum(1) / np.maximum(curvature, TINY), 0.5 * energy, history)


def residual_energy(state_energy, projected, gradient, weights):
    """|r|^2 [n] = |y|^2 - w (A y + A r): no [n, m] residual needs to be kept."""
    return np.maximum(state_energy - ((projected + gradient) * weights).sum(1), 0)


def duality_gap(state, penalty):
    """Duality gap and objective [n]: the objective is at most the gap above its minimum.

    The dual point is the residual, shrunk until no column of A correlates with it above `penalty`.
    """
    squares = residual_energy(state.energy, state.projected, state.gradient, state.weights)
    along_y = state.energy - (state.projected * state.weights).sum(1)  # r y
    shrink = np.minimum(1, penalty / np.maximum(np.abs(state.gradient).max(1), TINY))
    objective = 0.5 * squares + penalty * np.abs(state.weights).sum(1)
    return objective - (shrink * along_y - 0.5 * shrink ** 2 * squares), objective


def advance(state, penalty, apply_normal, iteration):
    """One proximal gradient step of every image; an image whose step is refused halves it."""
    step = state.step[:, None]
    target = state.weights + step * state.gradient
    weights = target - np.clip(target, -penalty * step, penalty * step)  # soft threshold
    change = weights - state.weights
    gradient_drop = apply_normal(change)
    gradient = state.gradient - gradient_drop
    length = (change ** 2).sum(1)
    objective = penalty * np.abs(weights).sum(1) + 0.5 * residual_energy(
        state.energy, state.projected, gradient, weights)
    limit = state.history.max(1) - 0.5 * SUFFICIENT_DECREASE * length / np.maximum(state.step, TINY)
    next_step = length / np.maximum((change * gradient_drop).sum(1), TINY)
    accepted = objective <= limit
    if not accepted.all():
        keep = accepted[:, None]
        weights = np.where(keep, weights, state.weights)
        gradient = np.where(keep, gradient, state.gradient)
        objective = np.where(accepted, objective, state.objective)
        next_step = np.where(accepted, next_step, np.minimum(0.5 * state.step, next_step))
    state.history[:, iteration % MEMORY] = objective
    return state._replace(weights=weights, gradient=gradient, step=next_step, objective=objective)


def warn_unfinished(relative_gaps, images, max_iterations):
    """Say how far from done the images are that reached the cap."""
    warnings.warn(f"Lasso: {len(relative_gaps)} of {images} images stopped after {max_iterations} "
                  f"iterations, their objective up to {relative_gaps.max():.2g} of its value above "
                  "the minimum (duality gap). Raise max_iterations or tolerance.",
                  RuntimeWarning, stacklevel=3)


def omp_estimate(A, y, k):
    """Orthogonal matching pursuit's image: weights clipped to [0, 1]. Arguments as `omp`."""
    return np.clip(omp(A, y, k), 0, 1)


def omp(A, y, k):
    """Orthogonal matching pursuit: k times, take the pixel that explains most, then fit all taken.

    As scikit-learn's with its intercept and with its normalised columns (the reference's setting):
    A and y are centred over the measurements, and a pixel's merit is the correlation of its row of
    A, scaled to length 1, with the residual; ties go to the first. The intercept is dropped.

    Args:
      A: [784, m].
      y: [B, m]; B may be 0.
      k: pixels to take, 1 to min(784, m - 1): more cannot be fitted to m centred measurements.
    Returns:
      float64 [B, 784] with at most k non-zeros a row; fewer where the rest of A depends on them or
      the fit is exact.
    Raises:
      InputError: shapes that do not fit, values that are not finite, k out of range.
    """
    A, y = checked_system(A, y)
    check_omp_k(k, A.shape[1], A.shape[0])
    # What is constant over the measurements centres to rounding errors, not to exact zeros: what
    # counts as nothing is therefore relative to the values before.
    shortest = DEPENDENT * np.linalg.norm(A, axis=1).max()
    exact = DEPENDENT * np.linalg.norm(y, axis=1)
    A, y = centred(A), centred(y)
    lengths = np.linalg.norm(A, axis=1)
    usable = lengths > shortest
    atoms = A * (usable / np.where(usable, lengths, 1))[:, None]
    weights = np.zeros((len(y), len(A)))
    for image, measured in enumerate(y):
        support, coefficients = pursue(atoms, measured, k, exact[image])
        weights[image, support] = coefficients / lengths[support]
    return weights


def check_omp_k(k, measurements, pixels=784):
    """InputError unless k pixels can be fitted to that many centred measurements."""
    largest = min(pixels, measurements - 1)
    if not isinstance(k, numbers.Integral) or not 1 <= k <= largest:
        raise InputError(f"orthogonal matching pursuit with k = {k}: expected an integer from 1 to "
                         f"{largest} for {measurements} measurements; take fewer or measure more")


def pursue(atoms, measured, k, exact):
    """Support (list of up to k rows of atoms) and least-squares coefficients for one image.

    It ends early at a residual no longer than `exact`, or when all atoms depend on those taken.
    The taken atoms are kept as an orthonormal basis (Gram-Schmidt, twice for accuracy), so a
    round costs one pass over the atoms and no new fit.
    """
    support, basis = [], np.zeros((k, len(measured)))
    residual = measured.copy()
    for taken in range(k):
        if np.linalg.norm(residual) <= exact:
            break
        merit = np.abs(atoms @ residual)
        merit[support] = -1
        best = int(merit.argmax())
        addition = atoms[best].copy()
        for _ in range(2):
            addition -= (basis[:taken] @ addition) @ basis[:taken]
        length = np.linalg.norm(addition)
        if length <= DEPENDENT:
            break
        basis[taken] = addition / length
        residual -= (basis[taken] @ residual) * basis[taken]
        support.append(best)
    coefficients = np.linalg.solve(basis[:len(support)] @ atoms[support].T,
                                   basis[:len(support)] @ measured)
    return support, coefficients


def checked_system(A, y):
    """A and y as float64 arrays [n, m] and [B, m] of finite numbers."""
    if A is None:
        raise InputError("sparse recovery without a matrix: measurement type project has none, "
                         "use another estimator")
    A, y = np.asarray(A, np.float64), np.asarray(y, np.float64)
    if A.ndim != 2 or y.ndim != 2 or A.shape[1] != y.shape[1] or not A.size:
        raise InputError(f"matrix and measurements have shapes {A.shape} and {y.shape}: expected "
                         "[784, m] and [B, m]")
    if not (np.isfinite(A).all() and np.isfinite(y).all()):
        raise InputError("sparse recovery from a matrix or measurements with NaN or infinity: "
                         "expected finite numbers; check the images and the noise")
    return A, y
