"""From the self-expression matrix C to clusters and their scores, in numpy and scipy.

thrC and post_proC are the post-processing of Deep Subspace Clustering (Ji et al. 2017); its
spectral step is scikit-learn's SpectralClustering with assign_labels="discretize". Labels given
may be any integers; labels made here begin at 1.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from npu_session import InputError

# Where one dense decomposition is faster than Lanczos iterations: up to so many samples, or above
# these shares of eigenvectors wanted (of all) and of entries that are not 0.
DENSE_SAMPLES, DENSE_RANK, DENSE_FILL = 300, 1 / 6, 1 / 4
LANCZOS_VECTORS = 1.5  # per eigenvector wanted, and 20; scipy's default of 2 takes longer
SHIFT = 1e-5  # makes the Laplacian positive definite and keeps its eigenvectors
FIRST_SORTED, FIRST_SHARE = 64, 1 / 8  # entries of a column that are sorted at first
MAX_ROTATIONS, MAX_REDRAWS = 20, 30  # scikit-learn's limits in the discretisation

DIMENSION, POWER = 6, 8.0  # of a cluster's subspace and of the cosines: the reference's

Scores = collections.namedtuple("Scores", "accuracy nmi ari")


# ---------------------------------------------------------------- C to affinity


def alpha(K):
    """Share of a column of C that thresholding keeps: 0.4 for one class, 0.1 from 31 on."""
    return max(0.4 - (K - 1) / 10 * 0.1, 0.1)


def threshold_coefficients(C, ro):
    """Keeps the largest entries of each column; the others become 0.

    In the order of their magnitudes, entries are kept up to and including the first with which
    their sum exceeds ro times that of the whole column. Sums are float64.

    Args:
      C: float [N, N]. ro: share, above 0; 1 and more keep everything.
    Returns:
      float64 [N, N], a new array.
    Raises:
      InputError: a column is zero or not finite.
    """
    C = np.asarray(C)
    if ro >= 1:
        return C.astype(np.float64)
    magnitudes = np.ascontiguousarray(np.abs(C).T)  # a row for each column of C
    limits = ro * magnitudes.sum(axis=1, dtype=np.float64)
    _check_columns(limits)
    kept = np.empty(magnitudes.shape, bool)
    rest = np.arange(len(magnitudes))
    first = max(FIRST_SORTED, int(FIRST_SHARE * len(C)))
    for count in (min(first, len(C)), len(C)):  # the few that need more are sorted whole
        kept[rest], done = _largest(magnitudes[rest], limits[rest], count)
        rest = rest[~done]
    return np.where(kept.T, C, 0).astype(np.float64)


thrC = threshold_coefficients  # the reference's name


def _check_columns(sums):
    """InputError naming the first column whose sum is 0 or not finite."""
    bad = np.flatnonzero(~(np.isfinite(sums) & (sums > 0)))
    if len(bad):
        raise InputError(f"{len(bad)} of {len(sums)} columns of C are all 0 or not finite, the "
                         f"first is number {bad[0]}: nothing can be clustered. If training has "
                         "diverged, lower the learning rate")


def _largest(magnitudes, limits, count):
    """Which entries of each row are needed, and of which rows the `count` largest sufficed.

    An entry is needed while the sum of the larger ones is at most the row's limit. Of equal
    entries any may be taken, but not more than needed.
    """
    samples = magnitudes.shape[1]
    ordered = np.sort(np.partition(magnitudes, samples - count, axis=1)[:, samples - count:])
    ordered = ordered[:, ::-1].astype(np.float64)
    needed = np.cumsum(ordered, axis=1) - ordered <= limits[:, None]
    counts = needed.sum(axis=1)
    kept = magnitudes >= ordered[np.arange(len(ordered)), counts - 1, None]
    for row in np.flatnonzero(kept.sum(axis=1) > counts):
        kept[row] = False
        kept[row, np.argsort(-magnitudes[row], kind="stable")[:counts[row]]] = True
    return kept, (counts < count) | (count == samples)


def affinity(C, K, d=DIMENSION, alpha=POWER):
    """Affinity of the samples by the directions of their subspaces, sharpened by a power.

    The d K + 1 leading singular vectors of (C + C') / 2, weighted by the roots of their singular
    values and scaled to unit rows, give cosines; negative ones become 0, the others cos^alpha.

    Args:
      C: float [N, N], thresholded. K: clusters. d: dimension of a cluster's subspace. The rank is
        at most N - 1. alpha: the power.
    Returns:
      float64 [N, N], symmetric, in [0, 1].
    Raises:
      InputError: C is zero or not finite.
    """
    C = np.asarray(C, np.float64)
    if not (np.isfinite(C).all() and C.any()):
        raise InputError("C is all 0 or holds numbers that are not finite: there is nothing to "
                         "cluster")
    values, vectors = leading_eigenpairs((C + C.T) / 2, min(d * K + 1, len(C) - 1))
    rows = _unit_rows(vectors * np.sqrt(np.abs(values)))
    cosines = rows @ rows.T
    sharpened = _power(np.maximum(cosines, 0, out=cosines), alpha)
    sharpened /= sharpened.max()
    return (sharpened + sharpened.T) / 2


def _unit_rows(matrix):
    """The matrix with its rows scaled to length 1; zero rows stay."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > 0)


def _power(matrix, exponent):
    """matrix ** exponent, squaring in place where it can: a tenth of the time for 8."""
    while exponent > 1 and exponent % 2 == 0:
        matrix *= matrix
        exponent /= 2
    return matrix if exponent == 1 else matrix ** exponent


class Operator(LinearOperator):
    """A symmetric float64 matrix [N, N] given by its product with a vector [N].

    scipy's own wrapping checks every vector, which takes as long as a sparse product.
    """

    def __init__(self, samples, product):
        super().__init__(np.float64, (samples, samples))
        self._product = product

    def matvec(self, x):
        """The product with x."""
        return self._product(x)

    _matvec = matvec


def leading_eigenpairs(symmetric, count):
    """The `count` eigenvalues of largest magnitude and their vectors: [count], [N, count].

    For a symmetric matrix these are its leading singular vectors, up to signs.
    """
    samples = len(symmetric)
    sparse = scipy.sparse.csr_matrix(symmetric)
    if (samples > DENSE_SAMPLES and count <= DENSE_RANK * samples
            and sparse.nnz <= DENSE_FILL * samples ** 2):
        try:
            return eigsh(Operator(samples, sparse.__matmul__), count, which="LM",
                         v0=np.ones(samples), ncv=int(LANCZOS_VECTORS * count) + 20)
        except ArpackError:  # no convergence
            pass
    values, vectors = scipy.linalg.eigh(symmetric)
    chosen = np.argsort(np.abs(values))[samples - count:]
    return values[chosen], vectors[:, chosen]


# ---------------------------------------------------------------- affinity to labels


def spectral_embedding(L, K, start=None):
    """Eigenvectors of the normalised graph Laplacian for its K smallest eigenvalues, ascending.

    Each is divided by the root of the sample's degree, its entry of largest magnitude positive.

    Args:
      L: float [N, N], symmetric, not negative; the diagonal is ignored. K: at most N.
      start: float [N], start vector of the iteration; default: ones.
    Returns:
      float64 [N, K].
    """
    weights = np.array(L, np.float64)
    np.fill_diagonal(weights, 0)
    degrees = weights.sum(axis=0)
    roots = np.where(degrees > 0, np.sqrt(degrees), 1)
    weights /= -roots
    weights /= roots[:, None]
    np.fill_diagonal(weights, 1)  # now the Laplacian
    embedding = _smallest_eigenvectors(weights, K, start) / roots[:, None]
    largest = np.abs(embedding).argmax(axis=0)
    return embedding * np.sign(embedding[largest, np.arange(K)])


def _smallest_eigenvectors(laplacian, count, start):
    """Eigenvectors [N, count] of a matrix with eigenvalues of at least 0, smallest first.

    The iteration solves with a Cholesky factor: with clusters far apart, eigenvalues coincide and
    the usual Lanczos iteration finds too few of them.
    """
    samples = len(laplacian)
    if samples > DENSE_SAMPLES and count <= DENSE_RANK * samples:
        shifted = laplacian.copy()
        shifted[np.diag_indices(samples)] += SHIFT
        factor, failed = dpotrf(shifted.T, lower=1, clean=0, overwrite_a=1)  # .T: Fortran's order
        try:
            start = np.ones(samples) if start is None else start
            if not failed:
                inverse = Operator(samples, lambda vector: dpotrs(factor, vector, lower=1)[0])
                return eigsh(inverse, count, which="LM", v0=start)[1][:, ::-1]
        except ArpackError:  # no convergence
            pass
    return scipy.linalg.eigh(laplacian, subset_by_index=[0, count - 1])[1]


def discretize(embedding, first_rows, random=None):
    """Labels by the rotation that brings the rows of an embedding nearest to 0/1 vectors.

    Several starts are compared by the method's own objective, without labels.

    Args:
      embedding: float [N, K]. first_rows: numbers of the rows to start from, at least one.
      random: RandomState that draws another row should a decomposition fail.
    Returns:
      int [N], 0..K-1: of the start with the largest objective, the first of equals.
    Raises:
      InputError: the embedding is not finite.
    Source: Yu and Shi, Multiclass spectral clustering, ICCV 2003.
    """
    rows = _discretization_rows(embedding)
    runs = [_from_row(rows, row, random) for row in first_rows]
    return max(runs, key=lambda run: run[1])[0]


def _discretization_rows(embedding):
    """Columns scaled alike, with signs fixed by sample 0, then rows of length 1 (or 0)."""
    embedding = np.asarray(embedding, np.float64)
    if not np.isfinite(embedding).all():
        raise InputError("the spectral embedding holds numbers that are not finite")
    norms = np.linalg.norm(embedding, axis=0)
    signs = np.where(embedding[0] > 0, -1.0, 1.0)
    return _unit_rows(embedding * (signs * np.sqrt(len(embedding)) / np.where(norms > 0, norms, 1)))


def _from_row(rows, first_row, random):
    """(labels, objective) of one start; another row is drawn where this one is 0 or SVD fails."""
    random = random or np.random.RandomState(0)
    for _ in range(MAX_REDRAWS):
        try:
            return _rotate(rows, _first_rotation(rows, first_row))
        except np.linalg.LinAlgError:
            first_row = random.randint(len(rows))
    raise InputError("the discretisation failed: too few samples are linked to others, or the "
                     "singular values do not converge")


def _first_rotation(rows, first_row):
    """float64 [K, K]: K rows, each as orthogonal as possible to those before, as columns.

    Samples without a link to others have rows of 0: orthogonal to everything, and of no use.
    """
    chosen = [rows[first_row]]
    if not chosen[0].any():
        raise np.linalg.LinAlgError
    likeness = np.where(rows.any(axis=1), 0, np.inf)
    for _ in range(1, rows.shape[1]):
        likeness += np.abs(rows @ chosen[-1])
        chosen.append(rows[likeness.argmin()])
    return np.array(chosen).T


def _rotate(rows, rotation):
    """Alternates between labels and the best rotation for them: (labels, objective)."""
    count = rows.shape[1]
    before = 0.0
    for _ in range(MAX_ROTATIONS + 1):
        labels = (rows @ rotation).argmax(axis=1)
        sums = np.eye(count)[labels].T @ rows  # row k: sum of the rows labelled k
        left, values, right = np.linalg.svd(sums)
        objective = values.sum()
        cut = 2.0 * (len(rows) - objective)
        if abs(cut - before) < np.finfo(np.float64).eps:
            break
        before, rotation = cut, right.T @ left.T
    return labels, objective


def post_proC(C, K, d=DIMENSION, alpha=POWER, random=None, starts=1):
    """Clusters the samples of a thresholded self-expression matrix.

    Args:
      C: float [N, N]. K: clusters, at most N. d, alpha: see affinity.
      random: RandomState, advanced as the reference advances NumPy's: uniform(N), randint(N),
        twice, because it clusters twice and keeps the second result (this makes it once).
        Default: RandomState(0), the reference's seed.
      starts: of the discretisation. 1 is the reference; more draw as many further rows and keep
        the best by the method's own objective, which needs no labels.
    Returns:
      (labels int [N], 1..K; L float64 [N, N], the affinity).
    Raises:
      InputError: see affinity; or K is more than N.
    """
    if not 1 <= K <= len(C):
        raise InputError(f"{K} clusters of {len(C)} samples: expected 1 to {len(C)}")
    random = random or np.random.RandomState(0)
    L = affinity(C, K, d, alpha)
    for _ in range(2):
        start, row = random.uniform(-1, 1, len(L)), random.randint(len(L))
    rows = [row] + [random.randint(len(L)) for _ in range(starts - 1)]
    return discretize(spectral_embedding(L, K, start), rows, random) + 1, L


# ---------------------------------------------------------------- labels to scores


def contingency(truth, labels):
    """Counts of each pair of labels.

    Args: truth, labels: integers [N], N at least 1.
    Returns:
      (classes, clusters, int64 [classes, clusters]); the first two are the sorted labels.
    Raises:
      InputError: the two differ in length, or are empty.
    """
    truth, labels = np.ravel(truth), np.ravel(labels)
    if len(truth) != len(labels) or not len(truth):
        raise InputError(f"{len(truth)} true and {len(labels)} found labels: expected as many of "
                         "each, and at least one")
    classes, rows = np.unique(truth, return_inverse=True)
    clusters, columns = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(classes), len(clusters)), np.int64)
    np.add.at(counts, (rows, columns), 1)
    return classes, clusters, counts


def best_map(truth, labels):
    """Renames the found labels so that as many as possible agree with the true ones.

    Clusters are matched to classes one to one. Clusters in excess keep no class: they get the
    labels above the largest true one, so that their samples count as errors.

    Args: truth, labels: integers [N].
    Returns:
      int64 [N].
    Source: the assignment problem of Kuhn and Munkres.
    """
    classes, clusters, counts = contingency(truth, labels)
    matched = dict(zip(*scipy.optimize.linear_sum_assignment(-counts.T)))
    left_over = [cluster for cluster in range(len(clusters)) if cluster not in matched]
    names = {cluster: classes[row] for cluster, row in matched.items()}
    names.update((cluster, classes[-1] + 1 + number) for number, cluster in enumerate(left_over))
    place = np.searchsorted(clusters, np.ravel(labels))
    return np.array([names[cluster] for cluster in range(len(clusters))], np.int64)[place]


def err_rate(truth, labels):
    """Share of samples whose label is wrong after the best renaming; float in 0..1."""
    return float(np.mean(best_map(truth, labels) != np.ravel(truth)))


def _entropy(counts):
    """Entropy in nats of a distribution given by counts above 0."""
    share = counts / counts.sum()
    return -np.sum(share * np.log(share))


def normalized_mutual_information(truth, labels):
    """Mutual information over the arithmetic mean of the two entropies; float in 0..1.

    1 if both have a single label, 0 if only one has.
    """
    _, _, counts = contingency(truth, labels)
    if counts.size == 1:
        return 1.0
    if 1 in counts.shape:
        return 0.0
    first, second = (_entropy(counts.sum(axis=axis)) for axis in (1, 0))
    mutual = first + second - _entropy(counts[counts > 0])
    return float(np.clip(2 * mutual / (first + second), 0, 1))


def adjusted_rand_index(truth, labels):
    """Agreement over pairs of samples, 1 for equal clusterings and 0 on average by chance.

    Source: Hubert and Arabie 1985. Python integers: products of pair counts exceed 64 bits.
    """
    _, _, counts = contingency(truth, labels)
    samples = int(counts.sum())
    both, of_truth, of_labels = (int(np.sum(count.astype(object) ** 2)) for count in (
        counts, counts.sum(axis=1), counts.sum(axis=0)))
    true_pairs, false_negative = both - samples, of_truth - both  # ordered pairs of samples
    false_positive = of_labels - both
    true_negative = samples ** 2 - of_truth - of_labels + both
    if false_negative == 0 and false_positive == 0:
        return 1.0
    return 2 * (true_pairs * true_negative - false_negative * false_positive) / (
        (true_pairs + false_negative) * (false_negative + true_negative)
        + (true_pairs + false_positive) * (false_positive + true_negative))


def scores(truth, labels):
    """Scores of a clustering: accuracy, NMI and ARI, fractions; all None without true labels."""
    if truth is None:
        return Scores(None, None, None)
    return Scores(1 - err_rate(truth, labels), normalized_mutual_information(truth, labels),
                  adjusted_rand_index(truth, labels))


# ---------------------------------------------------------------- further matrices of the reference


def build_aff(C):
    """|C| with each column divided by its maximum (+ 1e-6), plus the transpose; C's dtype."""
    magnitudes = np.abs(C)
    scaled = magnitudes / (magnitudes.max(axis=0) + C.dtype.type(1e-6))
    return scaled + scaled.T


def build_laplacian(C):
    """Random-walk matrix D^-1 W of the graph W = (|C| + |C'|) / 2, D its degrees; C's dtype."""
    weights = (np.abs(C) + np.abs(C.T)) / C.dtype.type(2)
    return weights / weights.sum(axis=0)[:, None]
