"""Thresholding, affinity, spectral clustering and scores: golden, known answers, scikit-learn."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import itertools
import warnings

import numpy as np
import pytest

import metrics
from golden_rules import load
from npu_session import InputError

CASES = "abc"


def label_cases():
    """Names of the golden label cases."""
    return [str(name) for name in load("metrics")["lab_cases"]]


def same_clusters(first, second):
    """Whether two labelings are equal up to the names of the clusters."""
    return len(set(zip(first, second))) == len(set(first)) == len(set(second))


def subspaces(classes, per_class, seed=0, noise=0.02):
    """(C float64 [N, N] of ridge self-expression, truth [N]) of random 6-D subspaces, shuffled."""
    random = np.random.RandomState(seed)
    points = np.concatenate([random.standard_normal((per_class, 6))
                             @ random.standard_normal((6, 60)) for _ in range(classes)])
    order = random.permutation(len(points))
    points = points[order] + noise * random.standard_normal(points.shape)
    precision = np.linalg.inv(points @ points.T + 0.1 * np.eye(len(points)))
    coefficients = np.eye(len(points)) - precision / np.diag(precision)[:, None]
    return coefficients, np.repeat(np.arange(classes), per_class)[order] + 1


def plain_threshold(C, ro):
    """thrC as its definition reads, column by column."""
    kept = np.zeros(C.shape)
    for column in range(C.shape[1]):
        total, reached = np.abs(C[:, column]).astype(np.float64).sum(), 0.0
        for row in np.argsort(-np.abs(C[:, column])):
            kept[row, column] = C[row, column]
            reached += abs(float(C[row, column]))
            if reached > ro * total:
                break
    return kept


# ---------------------------------------------------------------- golden values


@pytest.mark.parametrize("case", CASES)
def test_golden_thresholding_is_exact(case):
    golden, prefix = load("metrics"), f"thrC_{case}_ro"
    shares = [key[len(prefix):] for key in golden if key.startswith(prefix)]
    assert shares
    for share in shares:
        found = metrics.thrC(golden[f"post_{case}_C"], float(share))
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, golden[prefix + share])


def golden_thresholded(case):
    golden = load("metrics")
    return (metrics.thrC(golden[f"post_{case}_C"], float(golden[f"post_{case}_ro"])),
            int(golden[f"post_{case}_K"]))


def iterative(monkeypatch):
    """Lets the iterations work on matrices of any size."""
    for name, value in (("DENSE_SAMPLES", 0), ("DENSE_RANK", 0.5), ("DENSE_FILL", 1.0)):
        monkeypatch.setattr(metrics, name, value)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("case", CASES)
def test_golden_affinity(case, solver, monkeypatch):
    if solver == "iterative":
        iterative(monkeypatch)
    expected = load("metrics")[f"post_{case}_L"]
    found = metrics.affinity(*golden_thresholded(case))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * expected.max())
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("solver", ["dense", "iterative"])
@pytest.mark.parametrize("case", CASES)
def test_golden_embedding(case, solver, monkeypatch):
    """Where the eigenvalues are apart; of coinciding ones only the space is defined."""
    if solver == "iterative":
        iterative(monkeypatch)
    golden = load("metrics")
    expected = golden[f"post_{case}_embedding"]
    found = metrics.spectral_embedding(golden[f"post_{case}_L"], int(golden[f"post_{case}_K"]))
    # The projection on the space of all K, in the inner product that makes the vectors orthogonal.
    roots = np.sqrt(golden[f"post_{case}_L"].sum(axis=0) - np.diag(golden[f"post_{case}_L"]))
    ours, theirs = found * roots[:, None], expected * roots[:, None]
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=1e-7)
    if distinct(golden[f"post_{case}_L"], int(golden[f"post_{case}_K"])):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def distinct(L, K):
    """Whether the K + 1 smallest eigenvalues of the normalised Laplacian differ by 1e-6."""
    weights = L - np.diag(np.diag(L))
    roots = np.sqrt(weights.sum(axis=0))
    values = np.linalg.eigvalsh(np.eye(len(L)) - weights / roots / roots[:, None])
    return np.diff(values[:K + 1]).min() > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_golden_discretisation(case):
    """Row s: the first row is RandomState(s).randint(N)."""
    golden = load("metrics")
    embedding = golden[f"post_{case}_embedding"]
    for seed, expected in enumerate(golden[f"post_{case}_discretize_seed0to4"]):
        row = np.random.RandomState(seed).randint(len(embedding))
        assert same_clusters(metrics.discretize(embedding, [row]), expected)


@pytest.mark.parametrize("case", CASES)
def test_golden_labels_and_scores_of_post_proC(case):
    """Row s: after numpy's seed s, that is random=RandomState(s)."""
    golden, (C, K) = load("metrics"), golden_thresholded(case)
    if not distinct(golden[f"post_{case}_L"], K):
        pytest.skip("eigenvalues coincide: the labels depend on rounding")
    for seed, expected in enumerate(golden[f"post_{case}_labels_seed0to9"]):
        labels, _ = metrics.post_proC(C, K, random=np.random.RandomState(seed))
        assert same_clusters(labels, expected)
        np.testing.assert_allclose(metrics.scores(golden[f"post_{case}_label"], labels),
                                   golden[f"post_{case}_acc_nmi_ari_seed0to9"][seed], atol=1e-12)


def test_golden_matrices_that_the_reference_never_calls():
    golden = load("metrics")
    for name, function in (("build_aff_a", metrics.build_aff),
                           ("laplacian_a", metrics.build_laplacian)):
        found = function(golden["post_a_C"])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, golden[name], rtol=2e-6, atol=1e-9)


def test_golden_label_cases():
    """Errors, NMI and ARI; the renamed labels where no other matching is as good."""
    golden = load("metrics")
    for name in label_cases():
        truth, labels = golden[f"lab_{name}_gt"], golden[f"lab_{name}_pred"]
        errors, _, missed, nmi, ari = golden[f"lab_{name}_errs_missAscend_missTrue_nmi_ari"]
        renamed = metrics.best_map(truth, labels)
        assert np.sum(renamed != truth) == errors, name
        assert metrics.err_rate(truth, labels) == pytest.approx(missed, abs=1e-12), name
        found = metrics.scores(truth, labels)
        np.testing.assert_allclose(found, [1 - missed, nmi, ari], rtol=0, atol=1e-12, err_msg=name)
        if only_matching(truth, labels):
            np.testing.assert_array_equal(renamed, golden[f"lab_{name}_bestmap"], name)


def only_matching(truth, labels):
    """Whether exactly one matching has the most agreements, and every cluster gets a class."""
    counts = metrics.contingency(truth, labels)[2]
    classes, clusters = counts.shape
    if clusters > classes:
        return False
    sums = [sum(counts[row, column] for column, row in enumerate(rows))
            for rows in itertools.permutations(range(classes), clusters)]
    return sums.count(max(sums)) == 1


def test_golden_evaluation_of_the_pipeline():
    """aff_Coef_ret30 -> thrC -> post_proC with the numpy seed 0 of the whole run."""
    golden = load("pipeline")
    C = golden[max((key for key in golden if key.startswith("aff_Coef_ret")),
                   key=lambda key: int(key[len("aff_Coef_ret"):]))]
    truth = np.repeat([1, 2, 3], len(C) // 3)
    assert metrics.alpha(3) == pytest.approx(float(golden["aff_alpha"]), abs=1e-15)
    kept = metrics.thrC(C, metrics.alpha(3))
    np.testing.assert_array_equal(kept, golden["aff_thrC"])
    labels, L = metrics.post_proC(kept, 3, random=np.random.RandomState(0))
    np.testing.assert_allclose(L, golden["aff_L"], rtol=0, atol=1e-7)  # stored as float32
    assert same_clusters(labels, golden["aff_labels"])
    np.testing.assert_allclose(metrics.scores(truth, labels), golden["aff_errs"][2:], atol=1e-12)


# ---------------------------------------------------------------- thresholding


@pytest.mark.parametrize("K, expected", [(1, 0.4), (3, 0.38), (10, 0.31), (31, 0.1), (38, 0.1)])
def test_alpha_divides_as_python_3_does(K, expected):
    assert metrics.alpha(K) == pytest.approx(expected, abs=1e-15)


def test_thresholding_of_a_hand_made_column():
    """Magnitudes 4, 3, 2, 1 sum to 10: strictly more than ro * 10 has to be reached."""
    C = np.array([[1., -3.], [-4., 3.], [2., -3.], [3., 3.]])[:, :1] * np.ones((1, 4))
    for ro, kept in ((0.3, [0, -4, 0, 0]), (0.4, [0, -4, 0, 3]), (0.69, [0, -4, 0, 3]),
                     (0.7, [0, -4, 2, 3]), (0.95, [1, -4, 2, 3]), (1, [1, -4, 2, 3])):
        np.testing.assert_array_equal(metrics.thrC(C, ro)[:, 2], kept, str(ro))


@pytest.mark.parametrize("ro", [0.05, 0.31, 0.6, 0.9])
def test_partial_sorting_keeps_what_the_definition_keeps(ro):
    """Heavy-tailed columns need few entries, even ones more than are sorted at first."""
    random = np.random.RandomState(0)
    heavy, even = random.standard_normal((400, 200)) ** 5, random.uniform(1, 1.2, (400, 200))
    C = np.concatenate([heavy, even], axis=1)[:, random.permutation(400)].astype(np.float32)
    np.testing.assert_array_equal(metrics.thrC(C, ro), plain_threshold(C, ro))


def test_of_equal_entries_no_more_are_kept_than_needed():
    """An untrained C: 31 % of 100 equal entries is reached with the 31st and exceeded with the
    32nd."""
    C = np.full((100, 100), 2.0 ** -13)
    kept = metrics.thrC(C, 0.31)
    assert (np.sum(kept > 0, axis=0) == 32).all() and set(np.ravel(kept)) == {0, 2.0 ** -13}
    C[3], C[40] = -1, 0.5
    kept = metrics.thrC(C, 0.5)
    assert (kept[3] == -1).all() and np.sum(kept != 0) == 100


def test_thresholding_leaves_its_argument_alone():
    C = np.random.RandomState(0).standard_normal((5, 5))
    before = C.copy()
    metrics.thrC(C, 1)[:] = 0
    metrics.thrC(C, 0.5)[:] = 0
    np.testing.assert_array_equal(C, before)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_columns_that_cannot_be_thresholded_are_named(value):
    C = np.random.RandomState(0).standard_normal((8, 8))
    C[:, 3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="1 of 8 columns of C .* number 3"):
            metrics.thrC(C, 0.4)
        with pytest.raises(InputError, match="nothing to cluster"):
            metrics.affinity(C * value, 2)


# ---------------------------------------------------------------- clustering


def test_subspaces_are_found_by_both_solvers(monkeypatch):
    C, truth = subspaces(6, 60)
    kept = metrics.thrC(C, metrics.alpha(6))
    labels, L = metrics.post_proC(kept, 6, starts=10)
    assert metrics.scores(truth, labels) == (1, 1, 1)
    assert (labels.min(), labels.max(), L.min(), L.max()) == (1, 6, 0, 1)
    monkeypatch.setattr(metrics, "DENSE_SAMPLES", 1000)
    again, dense = metrics.post_proC(kept, 6, starts=10)
    assert same_clusters(again, labels)
    np.testing.assert_allclose(L, dense, rtol=0, atol=1e-12)


def test_labels_are_scikit_learns():
    """On affinities with noise, where no two eigenvalues coincide."""
    cluster = pytest.importorskip("sklearn.cluster")
    for seed in range(3):
        C, _ = subspaces(5, 70, seed, noise=0.5)
        L = metrics.affinity(metrics.thrC(C, 0.4), 5)
        assert distinct(L, 5)
        random, theirs = np.random.RandomState(seed), np.random.RandomState(seed)
        expected = cluster.SpectralClustering(
            5, eigen_solver="arpack", affinity="precomputed", assign_labels="discretize",
            random_state=theirs)
        expected.fit(L)
        labels, _ = metrics.post_proC(metrics.thrC(C, 0.4), 5, random=random)
        assert same_clusters(labels, expected.fit(L).labels_)
        assert random.uniform() == theirs.uniform()  # and as many draws


def test_starts_never_lower_the_objective_and_need_no_labels():
    random = np.random.RandomState(0)
    embedding = random.standard_normal((90, 6))
    rows = metrics._discretization_rows(embedding)
    single = [metrics._from_row(rows, row, None) for row in range(12)]
    best = max(single, key=lambda run: run[1])
    np.testing.assert_array_equal(metrics.discretize(embedding, range(12)), best[0])
    assert best[1] > single[0][1]


def test_several_starts_mend_what_one_start_does_to_a_disconnected_graph():
    """Equal eigenvalues: the embedding is any rotation, and single starts may end badly."""
    L = np.kron(np.eye(6), np.ones((20, 20)))
    truth, accuracies = np.repeat(np.arange(6), 20), []
    for seed in range(5):
        random = np.random.RandomState(seed)
        rotation = np.linalg.qr(random.standard_normal((6, 6)))[0]
        embedding = metrics.spectral_embedding(L, 6) @ rotation
        labels = metrics.discretize(embedding, random.randint(120, size=10))
        accuracies.append(metrics.scores(truth, labels).accuracy)
    assert accuracies == [1] * 5


def test_coinciding_eigenvalues_are_all_found():
    """12 components without a link: 12 eigenvalues of 0, one vector each."""
    random = np.random.RandomState(0)
    blocks = np.zeros((600, 600))
    for first in range(0, 600, 50):
        block = random.uniform(size=(50, 50)) ** 4
        blocks[first:first + 50, first:first + 50] = block + block.T
    embedding = metrics.spectral_embedding(blocks, 12, random.uniform(-1, 1, 600))
    within = embedding.reshape(12, 50, 12)
    np.testing.assert_allclose(within, within[:, :1] * np.ones((1, 50, 1)), rtol=0, atol=1e-8)
    assert np.linalg.matrix_rank(within[:, 0], tol=1e-6) == 12


def test_failing_decompositions_draw_another_row(monkeypatch):
    embedding = np.random.RandomState(0).standard_normal((30, 3))
    failures, plain = [], np.linalg.svd

    def fails_twice(matrix):
        if len(failures) < 2:
            failures.append(matrix)
            raise np.linalg.LinAlgError
        return plain(matrix)

    monkeypatch.setattr(np.linalg, "svd", fails_twice)
    labels = metrics.discretize(embedding, [4], np.random.RandomState(5))
    random = np.random.RandomState(5)
    row = [random.randint(30) for _ in range(2)][1]
    np.testing.assert_array_equal(labels, metrics.discretize(embedding, [row]))
    monkeypatch.setattr(np.linalg, "svd", lambda _: fails_always())
    with pytest.raises(InputError, match="discretisation failed"):
        metrics.discretize(embedding, [4])


def fails_always():
    raise np.linalg.LinAlgError


def test_order_of_the_samples_does_not_matter():
    C, _ = subspaces(4, 30, noise=0.3)
    order = np.random.RandomState(1).permutation(120)
    kept = metrics.thrC(C, 0.4)
    np.testing.assert_array_equal(metrics.thrC(C[order][:, order], 0.4), kept[order][:, order])
    np.testing.assert_allclose(metrics.affinity(kept[order][:, order], 4),
                               metrics.affinity(kept, 4)[order][:, order], rtol=0, atol=1e-12)


def test_a_sample_without_links_gets_some_label():
    C = np.zeros((41, 41))
    C[:40, :40], truth = subspaces(2, 20)
    for seed in range(20):  # some of them draw that sample to start from
        labels, L = metrics.post_proC(C, 2, random=np.random.RandomState(seed))
        assert np.isfinite(L).all() and not L[40].any()
        assert metrics.err_rate(truth, labels[:40]) == 0


def test_one_cluster_and_as_many_as_samples():
    C, _ = subspaces(2, 5)
    assert set(metrics.post_proC(C, 1)[0]) == {1}
    assert len(metrics.post_proC(C, 10)[0]) == 10
    for count in (0, 11):
        with pytest.raises(InputError, match="expected 1 to 10"):
            metrics.post_proC(C, count)


# ---------------------------------------------------------------- scores


def test_scores_of_known_clusterings():
    truth = [1, 1, 1, 2, 2, 2]
    assert metrics.scores(truth, [7, 7, 7, 0, 0, 0]) == (1, 1, 1)
    assert metrics.scores(truth, [5] * 6) == (0.5, 0, 0)
    assert metrics.scores([3] * 4, [9] * 4) == (1, 1, 1)
    assert metrics.err_rate(truth, [1, 1, 2, 2, 2, 2]) == pytest.approx(1 / 6)
    # 2 x 2 table [[2, 1], [0, 3]]: of 15 pairs 4 agree in both, 6 in the truth, 7 in the labels.
    assert metrics.adjusted_rand_index(truth, [1, 1, 2, 2, 2, 2]) == pytest.approx(
        (4 - 6 * 7 / 15) / ((6 + 7) / 2 - 6 * 7 / 15))
    assert metrics.scores(truth, [1, 2, 3, 4, 5, 6]).accuracy == pytest.approx(1 / 3)


def test_no_truth_no_scores():
    assert metrics.scores(None, [1, 2, 2]) == (None, None, None)


def test_names_of_labels_do_not_matter_and_best_map_stays_in_the_truth():
    random = np.random.RandomState(0)
    truth, labels = random.randint(4, size=50) * 10 - 5, random.randint(4, size=50)
    renamed = metrics.best_map(truth, labels)
    assert set(renamed) <= set(truth)
    assert metrics.scores(truth, labels) == metrics.scores(truth, 17 - 3 * labels)
    assert metrics.scores(truth, renamed).accuracy == np.mean(renamed == truth)


def test_excess_clusters_get_labels_outside_the_truth():
    renamed = metrics.best_map([1, 1, 1, 2, 2], [4, 4, 5, 6, 7])
    assert list(renamed[[0, 1]]) == [1, 1] and renamed[2] > 2
    assert metrics.err_rate([1, 1, 1, 2, 2], [4, 4, 5, 6, 7]) == pytest.approx(0.4)


def test_scores_are_scikit_learns():
    oracle = pytest.importorskip("sklearn.metrics")
    random = np.random.RandomState(0)
    for classes, clusters, samples in ((2, 2, 5), (3, 5, 60), (38, 38, 2424), (5, 1, 9), (1, 4, 9)):
        truth, labels = random.randint(classes, size=samples), random.randint(clusters,
                                                                               size=samples)
        truth[:samples // 2] = labels[:samples // 2] % classes
        found = metrics.scores(truth, labels)
        assert found.nmi == pytest.approx(
            oracle.normalized_mutual_info_score(truth, labels), abs=1e-12)
        assert found.ari == pytest.approx(oracle.adjusted_rand_score(truth, labels), abs=1e-12)


def test_accuracy_is_the_best_of_all_matchings():
    random = np.random.RandomState(0)
    for _ in range(20):
        truth, labels = random.randint(4, size=25), random.randint(4, size=25)
        best = max(np.mean(np.array(names)[labels] == truth)
                   for names in itertools.permutations(range(4)))
        assert metrics.scores(truth, labels).accuracy == pytest.approx(best)


def test_pair_counts_of_many_samples_do_not_overflow():
    truth = np.repeat([0, 1], 200000)
    assert metrics.adjusted_rand_index(truth, truth) == 1
    assert abs(metrics.adjusted_rand_index(truth, np.tile([0, 1], 200000))) < 1e-5


@pytest.mark.parametrize("truth, labels", [([1, 2], [1]), ([], [])])
def test_labels_of_different_length_or_none_are_refused(truth, labels):
    with pytest.raises(InputError, match="expected as many"):
        metrics.scores(truth, labels)
