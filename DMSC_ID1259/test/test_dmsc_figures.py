"""The figures: what is drawn where, and files that are whole and small."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import matplotlib.image
import numpy as np
import pytest

import figures


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Function (name of a function of figures, ...) -> the drawn axes; the PNG is f/a.png."""
    def draw(name, *arguments, **options):
        made = []
        new_figure = figures.new_figure
        monkeypatch.setattr(figures, "new_figure", lambda *size: made.append(
            new_figure(*size)) or made[0])
        path = str(tmp_path / "f" / "a.png")
        getattr(figures, name)(path, *arguments, **options)
        monkeypatch.undo()
        assert os.listdir(str(tmp_path / "f")) == ["a.png"]
        assert 5000 < os.path.getsize(path) < 300000
        assert min(matplotlib.image.imread(path).shape[:2]) > 200
        return made[0].axes
    return draw


def shuffled_blocks(classes, per_class, seed=0):
    """(matrix [N, N] of 1 within a class and 0.1 between, labels [N]), shuffled."""
    labels = np.random.RandomState(seed).permutation(np.repeat(np.arange(classes) + 1, per_class))
    return np.where(labels[:, None] == labels, 1.0, 0.1), labels


def test_affinity_is_sorted_by_cluster(drawn):
    matrix, labels = shuffled_blocks(4, 10)
    axes, bar, strip = drawn("reordered_affinity", matrix, labels, labels, "stand-in faces")
    expected = np.where(np.kron(np.eye(4), np.ones((10, 10))) > 0, 1.0, 0.1)
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert axes.get_title() == "stand-in faces" and bar.get_ylabel() == "affinity"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3", "4"]
    np.testing.assert_array_equal(axes.get_xticks(), [5, 15, 25, 35])
    np.testing.assert_array_equal(strip.images[0].get_array()[:, 0], np.repeat(range(4), 10))


def test_a_mixed_cluster_shows_its_true_classes_side_by_side(drawn):
    matrix, truth = shuffled_blocks(4, 10)
    labels = np.where(truth == 2, 1, truth)
    axes, _, strip = drawn("reordered_affinity", matrix, labels, truth)
    np.testing.assert_array_equal(strip.images[0].get_array()[:20, 0], np.repeat([0, 1], 10))
    assert axes.get_xlabel() == "samples, by the 3 clusters found"


def test_affinity_without_truth_has_no_strip(drawn):
    matrix, labels = shuffled_blocks(3, 8)
    assert len(drawn("reordered_affinity", matrix, labels)) == 2


def test_large_noisy_matrices_make_small_files(drawn):
    random = np.random.RandomState(0)
    labels = np.repeat(np.arange(38), 25)
    matrix = random.standard_normal((950, 950)) ** 3
    left, right, _, _ = drawn("coefficient_blocks", matrix, labels, "noise")
    assert left.images[0].get_array().shape == (figures.CELLS, figures.CELLS)
    assert right.images[0].get_array().shape == (38, 38)
    assert len(left.get_xticks()) == len(right.get_xticks()) == 0
    assert len(drawn("reordered_affinity", np.abs(matrix), labels, labels)) == 3


def test_shrinking_averages_whole_blocks():
    matrix = np.arange(25.0).reshape(5, 5)
    np.testing.assert_array_equal(figures.shrink(matrix, 5), matrix)
    found = figures.shrink(matrix, 2)  # rows 0-1 and 2-4
    np.testing.assert_allclose(found, [[3, 5.5], [15.5, 18]])
    assert figures.shrink(matrix, 1) == [[12]]


def test_shares_of_the_weights_of_a_class():
    """Row i of C expresses sample i; magnitudes count; a class without weights has shares of 0."""
    C = np.array([[0, -3, 1, 0], [0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 0, 0]], float)
    shares, within = figures.block_shares(C, [1, 1, 2, 2])
    np.testing.assert_allclose(shares, [[3 / 8, 5 / 8], [0, 0]])
    assert within == pytest.approx(3 / 8)


def test_blocks_of_c(drawn):
    matrix, labels = shuffled_blocks(3, 10)
    left, right, _, _ = drawn("coefficient_blocks", -matrix, labels, "stand-in faces")
    assert left.images[0].get_array().min() == pytest.approx(0.1)
    np.testing.assert_allclose(np.diag(right.images[0].get_array()), 10 / 12)
    assert "within classes 83.3 %" in right.get_title()
    assert right.get_xlabel() == "expressed by class"


def test_reconstructions_stand_under_their_images(drawn):
    images = [np.full((3, 32, 32, 1), 100.0 * m) for m in range(2)]
    made = [image + 50 for image in images]
    rows = drawn("reconstructions", images, made, ["face", "nose"], "stand-in faces: step 3")
    assert [axes.get_ylabel() for axes in rows] == ["face", "nose"]
    for number, axes in enumerate(rows):
        picture = axes.images[0].get_array()
        assert picture.shape == (64, 96)
        assert set(np.ravel(picture[:32])) == {100.0 * number}
        assert set(np.ravel(picture[32:])) == {100.0 * number + 50}
        assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (0, 255)
    assert rows[0].get_title() == "stand-in faces: step 3"


def test_curves_panels_and_marked_step(drawn):
    steps = [10, 20, 30]
    scores = {"ACC": [0.1, 0.5, 0.9], "NMI": [0.2, 0.6, 0.8], "ARI": [0, 0.4, 0.7]}
    costs = {"cost / N": [3e5, 2e5, 1e5], "label change": [0.5, 0.1, 0]}
    top, cost, change = drawn("score_curves", steps, scores, costs, {"chosen": 20}, "stand-in")
    assert [line.get_label() for line in top.lines[:3]] == ["ACC", "NMI", "ARI"]
    for line, values in zip(top.lines, scores.values()):
        np.testing.assert_array_equal(line.get_ydata(), values)
    legend = [text.get_text() for text in top.get_legend().get_texts()]
    assert legend == ["ACC", "NMI", "ARI", "chosen: step 20"]
    assert len({line.get_color() for line in top.lines}) == 4
    assert all(20 in axis.lines[-1].get_xdata() for axis in (top, cost, change))
    assert (cost.get_yscale(), change.get_yscale()) == ("log", "linear")
    assert top.get_title() == "stand-in" and change.get_xlabel() == "training step"


def test_curves_without_labels_have_costs_only(drawn):
    panel, = drawn("score_curves", [5], {}, {"cost / N": [2.0]})
    assert panel.get_ylabel() == "cost / N" and panel.get_legend() is None


def test_neighbouring_classes_differ_in_colour():
    for count in (1, 2, 3, 10, 38):
        colours = np.array(figures.class_colours(count).colors)
        assert len({tuple(colour) for colour in colours}) == count
        assert np.abs(np.diff(colours, axis=0)).max(axis=1).min(initial=1) > 0.2


def test_a_picture_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    figures.score_curves(path, [1], {}, {"cost": [1.0]})
    with open(path, "rb") as file:
        before = file.read()

    def fails(_, file, **__):
        file.write(b"cut")
        raise OSError("no space left")

    monkeypatch.setattr(figures.Figure, "savefig", fails)
    with pytest.raises(OSError):
        figures.score_curves(path, [1], {}, {"cost": [2.0]})
    with open(path, "rb") as file:
        assert file.read() == before
