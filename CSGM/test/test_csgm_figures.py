"""The figures: what is drawn where, labels that do not overlap, files that are whole."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import matplotlib.image
import numpy as np
import pytest

import figures
from npu_session import InputError

CURVES = {
    "Lasso": ([10, 25, 50, 100, 200, 300, 400, 500, 750],
              [0.1, 0.1, 0.1, 0.09, 0.07, 0.04, 0.01, 0.006, 0.003], [0.01] * 9),
    "VAE": ([10, 25, 50], [0.08, 0.02, 0.01], [0.02, 0.01, 0.003]),
    "the same again": ([10, 25, 50], [0.08, 0.02, 0.01], [0.02, 0.01, 0.003]),
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Function (*arguments of error_curves) -> the axes, drawn; the PNG is tmp_path/f/a.png."""
    def draw(curves, **options):
        figure = []
        new_figure = figures.new_figure
        monkeypatch.setattr(figures, "new_figure", lambda *size: figure.append(
            new_figure(*size)) or figure[0])
        figures.error_curves(str(tmp_path / "f" / "a.png"), curves, **options)
        monkeypatch.undo()
        axes, = figure[0].axes
        return axes
    return draw


def texts(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_curves_labels_and_title(drawn, tmp_path):
    axes = drawn(CURVES, note="stand-in digits: 20 images", baselines={"floor": 0.005})
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["Lasso", "VAE", "the same again", "floor"]
    assert axes.get_title() == "stand-in digits: 20 images"
    assert axes.get_ylabel() == "Reconstruction error (per pixel)"
    assert axes.get_xlabel() == "Number of measurements" and axes.get_xscale() == "log"
    assert texts(axes) == [f"{m}" for m in CURVES["Lasso"][0]]
    assert matplotlib.image.imread(str(tmp_path / "f" / "a.png")).shape[0] > 400
    assert os.listdir(str(tmp_path / "f")) == ["a.png"]


def test_points_are_where_their_numbers_say(drawn):
    """Moved apart by less than 3 % of x; heights exact; all of them inside the axes."""
    axes = drawn(CURVES)
    for container, (x, mean, bar) in zip(axes.containers, CURVES.values()):
        line, _, (bars,) = container.lines
        np.testing.assert_allclose(line.get_xdata(), x, rtol=0.03)
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), mean)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * np.array(bar))
    low, high = axes.get_xlim()
    assert low < 10 * 0.95 and high > 750 * 1.05
    assert -0.01 < axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 0.11


def test_curves_that_coincide_can_be_told_apart(drawn):
    axes = drawn(CURVES)
    lines = [container.lines[0] for container in axes.containers]
    assert len({line.get_color() for line in lines}) == 3
    assert len({line.get_marker() for line in lines}) == 3
    assert np.abs(np.log(lines[1].get_xdata()) - np.log(lines[2].get_xdata())).min() > 0.01


def test_styles_belong_to_labels(drawn):
    alone = drawn({"VAE": CURVES["VAE"]}, styles={"VAE": 1}).containers[0].lines[0]
    third = drawn(CURVES, styles={"Lasso": 0, "VAE": 1}).containers[1].lines[0]
    assert alone.get_color() == third.get_color() and alone.get_marker() == third.get_marker()


@pytest.mark.parametrize("x", [[100, 101, 102, 200, 750], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1000],
                               [0.01, 0.1, 1, 2, 5, 10, 20, 50], [7], [3, 3.0001]])
def test_tick_labels_do_not_overlap(drawn, x):
    axes = drawn({"a": (x, [0.1] * len(x), [0.01] * len(x))}, x_label="noise")
    axes.figure.canvas.draw()  # in the figure's own resolution: savefig had another
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert boxes and texts(axes)[0] == f"{x[0]:g}"
    assert all(first.x1 <= second.x0 for first, second in zip(boxes, boxes[1:]))


def test_one_image_more_curves_than_colours_and_zeros(drawn):
    axes = drawn({str(k): ([10, 20], [0, 0], [0, 0]) for k in range(9)})
    assert len(axes.containers) == 9


def test_image_matrix(tmp_path):
    """Row names, at most 10 images, black is 0 and white 1."""
    path = str(tmp_path / "grid.png")
    white = np.ones((12, 784))
    figures.image_matrix({"Original": white, "VAE": 0 * white}, path, "stand-in digits: m = 3")
    pixels = matplotlib.image.imread(path)[..., 0]
    lit, dark = pixels[pixels.shape[0] // 2 - 30, 400], pixels[-40, 400]
    assert lit == 1 and dark == 0
    figures.image_matrix({"Original": white[:3]}, path)
    assert matplotlib.image.imread(path).shape[1] < pixels.shape[1]


def test_a_picture_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    path = str(tmp_path / "grid.png")
    figures.image_matrix({"a": np.ones((2, 784))}, path)
    with open(path, "rb") as file:
        before = file.read()

    def fails(_, file, **__):
        file.write(b"cut")
        raise OSError("no space left")

    monkeypatch.setattr(figures.Figure, "savefig", fails)
    with pytest.raises(OSError):
        figures.image_matrix({"a": np.zeros((2, 784))}, path)
    with open(path, "rb") as file:
        assert file.read() == before


def test_no_display(monkeypatch):
    from matplotlib import pyplot
    monkeypatch.setattr(pyplot, "get_backend", lambda: "Agg")
    with pytest.raises(InputError, match="display"):
        figures.check_display()
    with pytest.raises(InputError, match="display"):
        figures.image_matrix({"a": np.ones((2, 784))}, show=True)
