"""The pictures: what is drawn where, files that are whole and small."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import matplotlib.image
import numpy as np
import pytest

import figures
from data_generator import CLASSES, DOMAINS


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Function (name of a function in figures, *arguments) -> the Figure drawn.

    The PNG, at most 300 KB, is tmp_path/f/a.png.
    """
    def draw(name, *arguments, **options):
        made, path = [], str(tmp_path / "f" / "a.png")
        new_figure = figures.new_figure
        with monkeypatch.context() as patch:
            patch.setattr(figures, "new_figure",
                          lambda *size: made.append(new_figure(*size)) or made[0])
            getattr(figures, name)(path, *arguments, **options)
        assert os.listdir(os.path.dirname(path)) == ["a.png"]
        assert os.path.getsize(path) < 300 * 1024
        assert min(matplotlib.image.imread(path).shape[:2]) > 300
        return made[0]
    return draw


def texts(labels):
    return [label.get_text() for label in labels]


def test_confusion_matrix_shows_counts_names_and_shares(drawn):
    matrix = np.diag([5, 4, 3, 2, 1, 0, 6])
    matrix[0, 1] = 15
    axes, = drawn("confusion", matrix, CLASSES, title="stand-in for PACS: cartoon").axes
    written = np.array(texts(axes.texts)).reshape(7, 7)
    np.testing.assert_array_equal(written.astype(int), matrix)
    assert texts(axes.get_xticklabels()) == list(CLASSES)
    assert texts(axes.get_yticklabels())[:2] == ["dog  25%", "elephant  100%"]
    assert texts(axes.get_yticklabels())[5] == "house  –"  # no house among the images
    assert axes.get_title() == "stand-in for PACS: cartoon"
    assert axes.texts[1].get_color() == "white" and axes.texts[2].get_color() == "black"


def test_embeddings_by_class_and_by_domain(drawn):
    random = np.random.RandomState(0)
    labels, domains = np.tile(np.arange(7), 40), np.repeat(np.arange(4), 70)
    points = random.standard_normal((280, 16)) + 3 * np.eye(16)[labels]
    figure = drawn("embeddings", points, labels, domains, CLASSES, DOMAINS, "stand-in", unseen=1)
    by_class, by_domain = figure.axes
    assert texts(by_class.get_legend().get_texts()) == list(CLASSES)
    assert texts(by_domain.get_legend().get_texts()) == list(DOMAINS)
    assert len(by_class.collections) == 14 and len(by_domain.collections) == 4
    for axes in figure.axes:
        assert sum(len(points.get_offsets()) for points in axes.collections) == 280
    assert len(by_domain.collections[1].get_offsets()) == 70
    assert "crosses: cartoon, not trained on" in texts(figure.texts)[0]


def test_embeddings_without_some_classes_and_without_an_unseen_domain(drawn):
    points = np.random.RandomState(0).standard_normal((6, 3))
    figure = drawn("embeddings", points, [0] * 3 + [4] * 3, [2] * 6, CLASSES, DOMAINS)
    assert texts(figure.axes[0].get_legend().get_texts()) == ["dog", "horse"]
    assert texts(figure.axes[1].get_legend().get_texts()) == ["photo"]


def test_curves_side_by_side(drawn):
    panels = {"loss": {"global": ([0, 1, 2], [3, 2, 1]), "metric": ([0, 1, 2], [0, 0, 0])},
              "accuracy": {"cartoon": (np.arange(100), np.linspace(0, 1, 100))}}
    loss, accuracy = drawn("curves", panels, "stand-in for PACS").axes
    assert [line.get_label() for line in loss.lines] == ["global", "metric"]
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [3, 2, 1])
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("loss", "accuracy")
    assert loss.lines[0].get_marker() == "o" and accuracy.lines[0].get_marker() == "None"


def test_bars_are_means_of_the_seeds_and_of_the_targets(drawn):
    results = {"DeepAll": [[0.4, 0.6], [0.2, 0.2]], "MASF": [[0.7, 0.7], [0.3, 0.5]]}
    axes, = drawn("comparison", results, ["art_painting", "sketch"], "2 seeds").axes
    heights = np.reshape([bar.get_height() for bar in axes.patches], (2, 3))
    np.testing.assert_allclose(heights, [[0.5, 0.2, 0.35], [0.7, 0.4, 0.55]])
    assert texts(axes.get_xticklabels()) == ["art_painting", "sketch", "mean"]
    assert texts(axes.get_legend().get_texts()) == ["DeepAll", "MASF"]
    first, second = (np.array([bar.get_x() + bar.get_width() / 2 for bar in axes.patches])
                     .reshape(2, 3))
    assert (first < second).all() and (np.abs((first + second) / 2 - np.arange(3)) < 1e-9).all()


def test_a_picture_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    figures.confusion(path, np.eye(7, dtype=int), CLASSES)
    with open(path, "rb") as file:
        before = file.read()

    def fails(_, file, **__):
        file.write(b"cut")
        raise OSError("no space left")

    monkeypatch.setattr(figures.Figure, "savefig", fails)
    with pytest.raises(OSError):
        figures.confusion(path, np.ones((7, 7), int), CLASSES)
    with open(path, "rb") as file:
        assert file.read() == before
