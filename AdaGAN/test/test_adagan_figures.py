"""The pictures: names, what is drawn where, cost, and files that are whole."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import time

import matplotlib.image
import numpy as np
import pytest

import datahandler
import figures

BLUE, RED = (0, 114, 178), (213, 94, 0)
COUNT = 2000


@pytest.fixture(scope="module")
def data():
    """2000 points of the default mixture."""
    return datahandler.load("gmm", 10, 2, COUNT, 15., 821, np.random.RandomState(0))


def pixels(path):
    """uint8 [height, width, 3] of a PNG."""
    return np.round(255 * matplotlib.image.imread(str(path))[..., :3]).astype(int)


def near(image, colour, tolerance=40):
    """Rows and columns of the pixels of about this colour, legend left out."""
    found = np.argwhere(np.abs(image - colour).max(axis=-1) <= tolerance)
    return found[(found[:, 0] > 110) | (found[:, 1] > 240)]


def place(points, side=720, limit=20):
    """Rows and columns at which points [n, 2] are drawn."""
    left, bottom, extent = 0.06 * side, 0.05 * side, 0.9 * side
    x, y = (np.asarray(points) + limit).T / (2 * limit) * extent
    return np.stack([side - bottom - y, left + x], axis=1)


def distance(pixel, points):
    """Largest distance of the pixels from the nearest of the places."""
    return np.sqrt(((pixel[:, None] - points) ** 2).sum(axis=2)).min(axis=1).max()


def draw_all(pictures, data, index):
    """Every picture of a step."""
    weights = np.arange(COUNT) / np.arange(COUNT).sum()
    samples = data.points[::-1][:1000].astype(np.float32)
    pictures.component(index, samples)
    pictures.mixture(index, samples)
    pictures.classifier(index, np.linspace(0, 1, COUNT, dtype=np.float32))
    pictures.data_weights(index, weights)
    pictures.weights(index, weights)
    pictures.training_sample(index, 3, 500, 3500, data.points[:320], samples[:320])


def test_names_and_sizes(data, tmp_path):
    draw_all(figures.Figures(str(tmp_path / "results"), data), data, 7)
    folder = tmp_path / "results"
    names = ["component_mixture07", "mixture07", "weights07", "data_w07", "d_least_mixture07",
             "d_most_mixture07", "c_real_correct_mixture07", "c_real_wrong_mixture07"]
    assert sorted(os.listdir(str(folder))) == sorted(
        ["component_07"] + [name + ".png" for name in names])
    assert os.listdir(str(folder / "component_07")) == ["sample_e0003_mb00500_mixture3500.png"]
    for name in names + ["component_07/sample_e0003_mb00500_mixture3500"]:
        path = folder / (name + ".png")
        assert path.stat().st_size < 300e3
        assert pixels(path).std() > 5


def test_a_picture_is_cheap_once_its_axes_are_drawn(data, tmp_path):
    """Bounded by processor time, loosely: it takes about 0.02 s on one core."""
    pictures = figures.Figures(str(tmp_path), data)
    pictures.mixture(0, data.points)
    started = time.process_time()
    for index in range(10):
        pictures.mixture(index, data.points)
    assert (time.process_time() - started) / 10 < 0.1


def test_points_are_drawn_where_they_are(data, tmp_path):
    pictures = figures.Figures(str(tmp_path), data)
    samples = np.array([[12., 15], [-5, 2], [18, -18]])
    pictures.mixture(0, samples)
    image = pixels(tmp_path / "mixture00.png")
    assert image.shape[:2] == (720, 720)
    assert distance(near(image, BLUE, 70), place(samples)) < 6
    assert distance(place(samples), near(image, BLUE, 70)) < 6
    assert distance(near(image, RED), place(data.points[:500, :, 0, 0])) < 6


def test_pictures_do_not_leave_traces_in_later_ones(data, tmp_path):
    pictures = figures.Figures(str(tmp_path), data)
    for index, place_x in enumerate((15., -15.)):
        pictures.mixture(index, np.array([[place_x, 15.]]))
    first, second = (near(pixels(tmp_path / f"mixture0{k}.png"), BLUE, 60) for k in range(2))
    assert first[:, 1].min() > 500 and second[:, 1].max() < 200
    fresh = figures.Figures(str(tmp_path / "fresh"), data)
    fresh.mixture(1, np.array([[-15., 15.]]))
    np.testing.assert_array_equal(pixels(tmp_path / "fresh" / "mixture01.png"),
                                  pixels(tmp_path / "mixture01.png"))


def test_only_so_many_points_are_drawn(data, tmp_path):
    pictures = figures.Figures(str(tmp_path), data)
    samples = np.concatenate([np.full((100, 2), 15.), np.full((300, 2), -17.)])
    pictures.mixture(0, samples)
    assert near(pixels(tmp_path / "mixture00.png"), BLUE)[:, 0].max() < 360
    pictures.component(0, np.concatenate([np.full((320, 2), 15.), np.full((300, 2), -17.)]))
    assert near(pixels(tmp_path / "component_mixture00.png"), BLUE)[:, 0].max() < 360


def test_selected_points_are_the_extremes(data, tmp_path):
    """Weights that grow with x: the heaviest are right of the lightest; so for probabilities."""
    pictures, x = figures.Figures(str(tmp_path), data), data.points[:, 0, 0, 0]
    rising = (x - x.min()) / (x - x.min()).sum()
    pictures.data_weights(1, rising)
    pictures.classifier(1, rising / rising.max())
    for low, high in (("d_least", "d_most"), ("c_real_wrong", "c_real_correct")):
        left, right = (near(pixels(tmp_path / f"{name}_mixture01.png"), BLUE)[:, 1]
                       for name in (low, high))
        assert left.max() < right.min()


def test_extremes_count_ties_by_row():
    low, high = figures.extremes([[2.], [1], [1], [3], [3]], 2)
    assert low.tolist() == [1, 2] and high.tolist() == [4, 3]
    assert figures.extremes([5., 4], 320)[0].tolist() == [1, 0]


def test_heavy_points_are_bright_and_zeros_dark(data, tmp_path):
    weights = (data.points[:, 0, 0, 0] > 0).astype(float)
    figures.Figures(str(tmp_path), data).weights(2, weights / weights.sum())
    image = pixels(tmp_path / "weights02.png")[120:]
    bright, dark = (np.argwhere(np.abs(image - colour).max(axis=-1) < 10)[:, 1]
                    for colour in ((253, 231, 37), (68, 1, 84)))
    assert bright.min() > 360 and dark.max() < 370 and len(dark) > 100


@pytest.mark.parametrize("dim", [1, 3])
def test_other_dimensions(dim, tmp_path):
    data = datahandler.load("gmm", 3, dim, COUNT, 15., 821, np.random.RandomState(0))
    draw_all(figures.Figures(str(tmp_path), data), data, 0)
    assert (tmp_path / "weights00.png").stat().st_size > 1000


def test_points_beyond_the_axes_are_put_on_the_border():
    found = figures.in_plane(np.array([[30., 1], [-7, -99]])[..., None, None], 20.)
    np.testing.assert_array_equal(found, [[20, 1], [-7, -20]])


def test_axes_hold_all_data():
    for name, modes in (("gmm", 1), ("gmm", 10), ("circle_gmm", 8)):
        data = datahandler.load(name, modes, 2, COUNT, 15., 821, np.random.RandomState(0))
        assert np.abs(data.points).max() <= figures.axis_limit(data) <= 25


def test_few_data_and_few_samples(tmp_path):
    data = datahandler.load("gmm", 2, 2, 5, 15., 821, np.random.RandomState(0))
    pictures = figures.Figures(str(tmp_path), data)
    pictures.mixture(0, np.zeros((1, 2)))
    pictures.data_weights(1, np.full(5, 0.2))
    pictures.weights(1, np.full(5, 0.2))
    pictures.classifier(1, np.full(5, 0.5))


def test_a_picture_that_cannot_be_written_keeps_the_one_before(data, tmp_path, monkeypatch):
    pictures = figures.Figures(str(tmp_path), data)
    pictures.mixture(0, data.points)
    before = (tmp_path / "mixture00.png").read_bytes()

    def fails(file, *_, **__):
        file.write(b"cut")
        raise OSError("no space left")

    monkeypatch.setattr(figures, "imsave", fails)
    with pytest.raises(OSError, match="mixture00.png cannot be written: no space left"):
        pictures.mixture(0, data.points[:5])
    assert (tmp_path / "mixture00.png").read_bytes() == before
    assert os.listdir(str(tmp_path)) == ["mixture00.png"]


# ---------------------------------------------------------------- several runs


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Function (function of figures, *arguments) -> the axes; the PNG is tmp_path/f/a.png."""
    def draw(function, *arguments, **options):
        made, new_figure = [], figures.new_figure
        monkeypatch.setattr(figures, "new_figure",
                            lambda *size: made.append(new_figure(*size)) or made[0])
        function(str(tmp_path / "f" / "a.png"), *arguments, **options)
        monkeypatch.undo()
        assert 5e3 < (tmp_path / "f" / "a.png").stat().st_size < 300e3
        return made[0].axes
    return draw


def runs(seeds=21, steps=4):
    """Two methods whose seeds are equally spread around a rising median."""
    spread = np.linspace(-0.1, 0.1, seeds)[:, None]
    rising = np.linspace(0.6, 0.9, steps)
    return {label: {"C": rising - less + spread, "log_p": -10 + 5 * rising + 10 * spread,
                    "modes_covered": np.round(10 * (rising - less)) + 0 * spread}
            for label, less in (("star", 0.), ("bagging", 0.2))}


def test_curves_are_medians_and_bands_over_seeds(drawn):
    axes = drawn(figures.coverage_over_steps, runs(), {"C": 0.91, "log_p": -2.2}, "10 modes")
    assert [one.get_ylabel() for one in axes] == [
        "coverage C", "log-likelihood of the data (nats)", "modes covered"]
    star, bagging, truth = axes[0].get_lines()
    np.testing.assert_array_equal(star.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(star.get_ydata(), [0.6, 0.7, 0.8, 0.9])
    np.testing.assert_allclose(bagging.get_ydata(), [0.4, 0.5, 0.6, 0.7])
    assert set(truth.get_ydata()) == {0.91}
    band = axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.51) and band[:, 1].max() == pytest.approx(0.99)
    legend = [text.get_text() for text in axes[2].get_legend().get_texts()]
    assert legend[:2] == ["star", "bagging"]


def test_one_seed_one_step_and_missing_metrics(drawn):
    axes = drawn(figures.coverage_over_steps, {"only": {"C": [[0.9]]}})
    assert len(axes) == 1 and axes[0].get_lines()[0].get_ydata().tolist() == [0.9]


def test_runs_of_different_length_and_a_missing_mode(drawn):
    """log_p of one seed at -1700 does not flatten the curves."""
    both = runs(seeds=41)
    both["star"]["log_p"][0] = -1700
    both["short"] = {"C": np.full((3, 2), 0.5), "log_p": np.full((3, 2), -8.)}
    axes = drawn(figures.coverage_over_steps, both)
    assert axes[1].get_ylim()[0] > -20
    assert len(axes[0].get_lines()) == 3 and len(axes[2].get_lines()) == 2


def test_table_of_medians(drawn):
    rows, columns = ["vanilla", "boosted T=10"], [1, 2, 10]
    cells = {("vanilla", 1): (0.97, 0.9, 1.), ("boosted T=10", 10): (0.998, 0.97, 1.)}
    axes, = drawn(figures.coverage_table, rows, columns, cells, {("vanilla", 10): 0.59}, "5 seeds")
    texts = {text.get_text(): text.get_position() for text in axes.texts}
    assert texts == {"0.97  (0.90; 1.00)": (0, 0), "1.00  (0.97; 1.00)": (2, 1),
                     "paper 0.59": (2, 0.3)}
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "10"]
    assert axes.get_title() == "5 seeds"
