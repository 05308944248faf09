"""The pictures: what is drawn where, whole files, sizes."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import matplotlib.image
import numpy as np
import pytest

import figures
from utils.drawing import landmark_colors

LARGEST = 300 * 1024  # bytes of a picture


@pytest.fixture
def figure_of(monkeypatch):
    """Function (draw) -> the Figure that draw() makes."""
    def run(draw):
        made, new_figure = [], figures.new_figure
        monkeypatch.setattr(figures, "new_figure", lambda *size: made.append(
            new_figure(*size)) or made[0])
        draw()
        monkeypatch.undo()
        return made[0]
    return run


def marks(axes):
    """Positions [K, 2] of all dots that scatter drew, in data units."""
    return np.concatenate([np.asarray(drawn.get_offsets()) for drawn in axes.collections])


def test_landmarks_are_marked_where_they_are(figure_of, tmp_path):
    """In pixels of the picture, inside it, each in its colour of the reference's table."""
    path = str(tmp_path / "new" / "sheet.png")
    images = np.zeros((11, 218, 178, 3), np.uint8)
    points = np.random.RandomState(0).uniform(20, 170, size=(11, 6, 2))
    figure = figure_of(lambda: figures.contact_sheet(path, images, points, "stand-in faces"))
    assert figure._suptitle.get_text() == "stand-in faces"
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 11
    for axes, expected in zip(drawn, points):
        np.testing.assert_allclose(marks(axes), expected)
        np.testing.assert_allclose(axes.collections[0].get_facecolors()[:, :3],
                                   landmark_colors(6)[1:])
        assert axes.get_xlim() == (-0.5, 177.5) and axes.get_ylim() == (217.5, -0.5)
    assert os.listdir(str(tmp_path / "new")) == ["sheet.png"]


def test_a_mark_covers_its_pixel(tmp_path):
    """A bright pixel of a dark picture vanishes under its landmark, and only that one does."""
    path = str(tmp_path / "sheet.png")
    image = np.zeros((1, 60, 60, 3), np.uint8)
    image[0, 40, 20] = 255
    dots = []
    for place in ((20, 40), (40, 20)):
        figures.contact_sheet(path, image, np.array([[place]], float))
        dots.append(matplotlib.image.imread(path)[..., :3])
    red = [dot[..., 0] - dot[..., 1:].max(axis=2) > 0.5 for dot in dots]
    (rows, columns), (other_rows, other_columns) = (np.nonzero(mask) for mask in red)
    assert rows.mean() > other_rows.mean() and columns.mean() < other_columns.mean()


def test_predictions_are_drawn_below_with_the_annotated_points(figure_of, tmp_path):
    images = np.zeros((10, 20, 20, 3))
    points = np.random.RandomState(0).uniform(0, 19, size=(10, 5, 2))
    figure = figure_of(lambda: figures.contact_sheet(
        str(tmp_path / "a.png"), images, points, "", points + 1, points + 2))
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 20
    lower = drawn[8]
    rings, crosses = lower.lines[-2:]
    np.testing.assert_allclose(np.stack(crosses.get_data(), axis=-1), points[0] + 1)
    np.testing.assert_allclose(np.stack(rings.get_data(), axis=-1), points[0] + 2)


def test_equivariance_sheet_marks_found_and_wanted(figure_of, tmp_path):
    random = np.random.RandomState(0)
    images, deformed = random.uniform(size=(2, 3, 128, 128, 3))
    points, found, sent = random.uniform(22, 104, size=(3, 3, 4, 2))
    figure = figure_of(lambda: figures.equivariance_sheet(
        str(tmp_path / "a.png"), images, deformed, points, found, sent))
    for number in range(3):
        np.testing.assert_allclose(marks(figure.axes[number]), points[number])
        np.testing.assert_allclose(marks(figure.axes[3 + number]),
                                   np.concatenate([found[number], sent[number]]))


def test_loss_curves(figure_of, tmp_path):
    records = [{"step": 20 * k, "loss_align": 500 / (k + 1), "loss_diversity": 10.0,
                "loss_decay": 0.08} for k in range(1, 90)]
    path = str(tmp_path / "loss.png")
    figure = figure_of(lambda: figures.loss_curves(path, records + [{"step": 7}], "K = 8"))
    axes, = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "alignment", "diversity", "weight decay"]
    assert axes.get_yscale() == "log" and axes.get_title() == "K = 8"
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [record["step"] for record in records])
    np.testing.assert_allclose(axes.lines[0].get_ydata()[:2], [250, 500 / 3])
    np.testing.assert_allclose(axes.lines[1].get_ydata()[:2], [250, 250 / 2 + 250 / 3])


def test_running_mean():
    np.testing.assert_allclose(figures.running_mean([1, 3, 5, 7], 2), [1, 2, 4, 6])
    np.testing.assert_allclose(figures.running_mean([1, 3, 5], 1), [1, 3, 5])
    assert not len(figures.running_mean([], 3))


def test_error_bars(figure_of, tmp_path):
    errors = {"no bias": (6.0, [5, 7.0]), "bias": (5.0, [4, 6.0]), "mean shape": (11.0, [10, 12])}
    figure = figure_of(lambda: figures.error_bars(str(tmp_path / "a.png"), errors,
                                                  ["lefteye", "nose"], "stand-in faces"))
    axes, = figure.axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[5, 7, 6], [4, 6, 5], [10, 12, 11]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["lefteye", "nose", "mean"]
    assert axes.get_title() == "stand-in faces"


def test_pictures_are_small_files(tmp_path):
    images = np.random.RandomState(0).randint(0, 255, size=(16, 218, 178, 3)).astype(np.uint8)
    path = str(tmp_path / "sheet.jpg")
    figures.contact_sheet(path, images[:, ::6, ::6].repeat(6, 1).repeat(6, 2)[:, :218, :178],
                          np.full((16, 8, 2), 80.0))
    assert os.path.getsize(path) < LARGEST


def test_a_picture_that_cannot_be_written_keeps_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    path.write_bytes(b"before")

    def fails(_, file, **__):
        file.write(b"cut")
        raise OSError("no space left")

    monkeypatch.setattr(figures.Figure, "savefig", fails)
    with pytest.raises(OSError, match="loss.png"):
        figures.loss_curves(str(path), [{"step": 1, "loss_align": 1.0}])
    assert path.read_bytes() == b"before"
    assert os.listdir(str(tmp_path)) == ["loss.png"]
