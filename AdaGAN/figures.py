"""The pictures of runs: mixtures, components, weights, the classifier, and curves over steps.

What does not change from picture to picture (axes, modes, data) is drawn once and kept as pixels;
a picture costs its few hundred points and the PNG.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

import metrics
import npu_session

SHOWN_DATA = 500  # real points of mixture and weights: the first ones, those of the metric
SHOWN_SAMPLES = 100  # samples in mixture
SHOWN_COMPONENT = 320  # samples of one component, and points in the classifier's pictures
DENSITY_CELLS = 300  # per axis, of the picture of all data
CURVE_POINTS = 1000  # of the 64000 sorted weights
REACH = 4 / 3  # axes go this much further than the outermost mean,
LIMIT_STEP = 5  # to a multiple of this
RED, BLUE = "#D55E00", "#0072B2"  # told apart by colour-blind readers too (Okabe and Ito 2008)
COLOURS = (BLUE, RED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
SIDE = 7.2  # of a square picture, inches of 100 pixels
LINEAR_NATS = 10  # log_p down to minus this is drawn linearly, below logarithmically
PNG = {"format": "png", "pil_kwargs": {"compress_level": 4}}  # 9 is 5 % smaller, 3 times slower

PANELS = (("C", "coverage C"), ("log_p", "log-likelihood of the data (nats)"),
          ("modes_covered", "modes covered"))


class Figures:
    """Pictures of one run.

    Args:
      folder: where they go; made if missing.
      data: datahandler.Data. Points of one dimension are spread vertically in the order given, of
        more than two only the first two coordinates are drawn.
    Every method writes its PNGs whole or not at all, and raises OSError if it cannot. Samples and
    points: [n, dim], axes of length 1 may follow.
    """

    def __init__(self, folder, data):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self._data = data
        self._limit = axis_limit(data)
        self._points = in_plane(data.points, self._limit)
        self._scenes = {}

    def component(self, index, samples):
        """component_mixtureNN: a component's samples over the density of all data."""
        self._draw(f"component_mixture{index:02d}", f"Component {index}",
                   ("all data", "its samples"), self._points[:0], samples[:SHOWN_COMPONENT],
                   density=True)

    def mixture(self, index, samples):
        """mixtureNN: samples of the mixture after component `index`, and data."""
        self._draw(f"mixture{index:02d}", f"Mixture after component {index}",
                   ("data", "samples"), self._points[:SHOWN_DATA], samples[:SHOWN_SAMPLES])

    def scatter(self, name, title, samples):
        """<name>: any samples, and data."""
        self._draw(name, title, ("data", "samples"), self._points[:SHOWN_DATA], samples)

    def training_sample(self, component, epoch, batch, counter, real, samples):
        """component_NN/sample_eEEEE_mbBBBBB_mixtureC: a component in training; real: drawn by W."""
        name = os.path.join(f"component_{component:02d}",
                            f"sample_e{epoch:04d}_mb{batch:05d}_mixture{counter}")
        self._draw(name, f"Component {component}, epoch {epoch + 1}, iteration {counter}",
                   ("data it trains on", "samples"), in_plane(real, self._limit), samples)

    def classifier(self, index, probabilities):
        """c_real_correct_ and c_real_wrong_mixtureNN: the data the classifier tells best and worst.

        probabilities: [N], of being data, for every point.
        """
        wrong, correct = extremes(probabilities, SHOWN_COMPONENT)
        for name, title, rows in (
                ("correct", "Data that the mixture covers least: surest to be real", correct),
                ("wrong", "Data taken for samples of the mixture", wrong)):
            self._draw(f"c_real_{name}_mixture{index:02d}", title, ("data", "selected"),
                       self._points[:SHOWN_DATA], self._data.points[rows])

    def data_weights(self, index, weights):
        """d_least_, d_most_mixtureNN: the lightest and heaviest points; data_wNN: all weights."""
        least, most = extremes(weights, SHOWN_COMPONENT)
        for name, title, rows in (("least", "Lightest training points", least),
                                  ("most", "Heaviest training points", most)):
            self._draw(f"d_{name}_mixture{index:02d}", f"{title} before component {index}",
                       ("data", "selected"), self._points[:SHOWN_DATA], self._data.points[rows])
        self._draw_sorted(index, weights)

    def weights(self, index, weights):
        """weightsNN: data coloured by the weights component `index` was trained with."""
        relative = np.asarray(weights) * len(weights)
        zeros = np.mean(relative == 0)
        title = (f"Weights of component {index}: largest {relative.max():.3g} times the mean, "
                 f"{zeros:.0%} are 0")
        scene = self._scene("weights", lambda: WeightScene(self._data, self._limit))
        scene.draw(self._path(f"weights{index:02d}"), title, self._points[:SHOWN_DATA],
                   relative[:SHOWN_DATA] / relative.max())

    def _draw(self, name, title, labels, real, samples, density=False):
        scene = self._scene(labels, lambda: PointScene(self._data, self._limit, labels,
                                                       self._points if density else None))
        scene.draw(self._path(name), title, real, in_plane(samples, self._limit))

    def _scene(self, key, make):
        if key not in self._scenes:
            self._scenes[key] = make()
        return self._scenes[key]

    def _path(self, name):
        path = os.path.join(self.folder, name + ".png")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def _draw_sorted(self, index, weights):
        """The weights in increasing order, in units of their mean."""
        shares = np.linspace(0, 1, min(CURVE_POINTS, len(weights)))
        relative = np.sort(weights)[np.round(shares * (len(weights) - 1)).astype(int)]
        figure = new_figure(6.4, 4)
        axes = figure.add_subplot(111)
        axes.plot(shares, relative * len(weights), color=BLUE, linewidth=2)
        axes.axhline(1, color="grey", linestyle=":", linewidth=1)
        axes.set(xlim=(0, 1), xlabel="share of the training points, lightest first",
                 ylabel="weight / mean weight")
        axes.set_ylim(bottom=0)
        axes.set_title(f"Training weights before component {index}", fontsize=10)
        axes.grid(alpha=0.3)
        save(figure, self._path(f"data_w{index:02d}"))


class PointScene:
    """Axes with the modes, and two sets of points that change.

    labels: of the two sets. everything: points whose density is the background, None for none.
    """

    def __init__(self, data, limit, labels, everything=None):
        self._figure, self._axes = mode_axes(data, limit)
        if everything is not None:
            draw_density(self._axes, everything, limit)
        self._lines = [self._axes.plot([], [], "o", markersize=size, color=colour, alpha=alpha,
                                       markeredgewidth=0, label=label, animated=True)[0]
                       for label, colour, size, alpha in zip(labels, (RED, BLUE), (3, 3.5),
                                                             (0.5, 0.75))]
        handles = [Line2D([], [], linestyle="", marker="o", markersize=6, markeredgewidth=0,
                          color=line.get_color(), label=line.get_label()) for line in self._lines]
        self._axes.legend(handles=handles, loc="upper left", fontsize=9)
        self._title = changing_title(self._axes)
        self._background = Background(self._figure, self._lines + [self._title])

    def draw(self, path, title, real, samples):
        """Writes the PNG with points float64 [n, 2] as in in_plane."""
        for line, points in zip(self._lines, (real, samples)):
            line.set_data(points[:, 0], points[:, 1])
        self._title.set_text(title)
        self._background.save(path)


class WeightScene:
    """Axes with the modes and points coloured from 0 to 1."""

    def __init__(self, data, limit):
        self._figure, self._axes = mode_axes(data, limit)
        self._dots = self._axes.scatter([], [], s=14, c=[], cmap="viridis", vmin=0, vmax=1,
                                        linewidths=0, animated=True)
        place = self._axes.inset_axes([0.04, 0.94, 0.3, 0.025])
        bar = self._figure.colorbar(self._dots, cax=place, orientation="horizontal", ticks=[0, 1])
        bar.ax.set_xticklabels(["0", "largest"], fontsize=8)
        self._title = changing_title(self._axes)
        self._background = Background(self._figure, [self._dots, self._title])

    def draw(self, path, title, points, values):
        """Writes the PNG with points float64 [n, 2], values float64 [n] in [0, 1]."""
        heaviest_last = np.argsort(values, kind="stable")
        self._dots.set_offsets(points[heaviest_last])
        self._dots.set_array(values[heaviest_last])
        self._title.set_text(title)
        self._background.save(path)


class Background:
    """The pixels of a figure without some of its artists, and pictures of it with them."""

    def __init__(self, figure, artists):
        self._canvas, self._artists = figure.canvas, artists
        self._canvas.draw()  # leaves out animated artists
        self._pixels = self._canvas.copy_from_bbox(figure.bbox)

    def save(self, path):
        """Draws the artists over the background and writes the PNG."""
        self._canvas.restore_region(self._pixels)
        for artist in self._artists:
            artist.axes.draw_artist(artist)
        with npu_session.replacing(path, "wb") as file:
            imsave(file, np.asarray(self._canvas.buffer_rgba())[..., :3], **PNG)


def new_figure(width, height):
    """A figure in inches that needs no display."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure, path):
    """Writes a PNG, whole or not at all; its folder is made if missing."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        figure.savefig(file, dpi=110, bbox_inches="tight", format="png")


def axis_limit(data):
    """Largest coordinate shown."""
    largest = np.abs(data.means).max()
    reach = max(REACH * largest, largest + 4 * np.sqrt(data.variance))
    return float(LIMIT_STEP * np.ceil(reach / LIMIT_STEP))


def in_plane(points, limit):
    """float64 [n, 2] to draw of points [n, dim, ...]; what lies beyond is put on the border."""
    points = np.asarray(points, np.float64)
    points = points.reshape(len(points), int(np.prod(points.shape[1:])))
    if points.shape[1] == 1:
        points = np.column_stack([points, np.linspace(-limit, limit, len(points))])
    return np.clip(points[:, :2], -limit, limit)


def extremes(values, count):
    """Rows of the `count` smallest and of the `count` largest of values [N]; ties by row."""
    order = np.argsort(np.ravel(values), kind="stable")
    return order[:count], order[::-1][:count]


def mode_axes(data, limit):
    """(figure, square axes) with a ring of three standard deviations around every mode."""
    figure = new_figure(SIDE, SIDE)
    figure.set_dpi(100)
    axes = figure.add_axes([0.06, 0.05, 0.9, 0.9])
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    radius = metrics.HIGH_QUALITY_DEVIATIONS * np.sqrt(data.variance)
    for mean in np.reshape(data.means, (len(data.means), -1)):
        if len(mean) == 1:
            axes.axvspan(mean[0] - radius, mean[0] + radius, color="0.9", linewidth=0)
        else:
            axes.add_patch(Ellipse(mean[:2], 2 * radius, 2 * radius, fill=False,
                                   edgecolor="0.55", linewidth=0.8))
    return figure, axes


def draw_density(axes, points, limit):
    """All points as a grey picture: darker where they are denser, on a logarithmic scale."""
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], DENSITY_CELLS,
                                  [[-limit, limit]] * 2)
    shown = np.ma.masked_equal(np.log1p(counts), 0)
    axes.imshow(shown, extent=(-limit, limit, -limit, limit), origin="lower", cmap="Oranges",
                vmin=-0.5 * shown.max(), interpolation="nearest", zorder=0)


def changing_title(axes):
    """A title above the axes that every picture sets anew."""
    return axes.text(0.5, 1.012, "", transform=axes.transAxes, ha="center", va="bottom",
                     fontsize=10, animated=True)


# ---------------------------------------------------------------- several runs


def coverage_over_steps(path, runs, truth=None, note=""):
    """C, log_p and modes covered against the number of components, as the paper's figure.

    Args:
      path: of the PNG.
      runs: dict label -> dict metric -> array [seeds, steps]; metrics "C", "log_p" and
        "modes_covered", any of which may be missing everywhere. The line is the median over the
        seeds, the band goes from the 5th to the 95th percentile.
      truth: dict metric -> what exact samples of the data's distribution score: a dotted line.
      note: title; says which data and settings.
    """
    panels = [panel for panel in PANELS if any(panel[0] in run for run in runs.values())]
    figure = new_figure(4.3 * len(panels), 3.9)
    for position, (metric, name) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), position + 1)
        lowest = draw_curves(axes, metric, runs)
        if truth and metric in truth:
            axes.axhline(truth[metric], color="black", linestyle=":", linewidth=1.2,
                         label="exact samples")
        limit_axis(axes, metric, lowest)
        axes.set(xlabel="components in the mixture", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.suptitle(note, fontsize=10)
    figure.tight_layout()
    save(figure, path)


def draw_curves(axes, metric, runs):
    """Median and band of every run that has the metric; returns the lowest median."""
    lowest = np.inf
    for number, (label, run) in enumerate(runs.items()):
        if metric not in run:
            continue
        median, low, high = metrics.median_and_band(run[metric])
        steps = np.arange(1, len(median) + 1)
        colour = COLOURS[number % len(COLOURS)]
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(steps, median, color=colour, marker=MARKERS[number % len(MARKERS)],
                  markersize=4.5, linewidth=1.5, label=label)
        lowest = min(lowest, median.min())
    return lowest


def limit_axis(axes, metric, lowest):
    """Fits the y axis to the medians: one seed with a missing mode would flatten all the rest."""
    bottom, top = axes.get_ylim()
    highest = max(np.max(line.get_ydata()) for line in axes.lines)
    if metric == "C":
        axes.set_ylim(min(bottom, 0.9), 1.01)
    elif metric == "modes_covered":
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    elif lowest < -LINEAR_NATS:  # a missing mode costs hundreds of nats, a blurred one two
        axes.set_yscale("symlog", linthresh=LINEAR_NATS, linscale=3)
        axes.set_ylim(1.3 * lowest, max(0, highest + 1))
        decades = np.arange(1, np.ceil(np.log10(-1.3 * lowest)))
        axes.set_yticks(list(-10 ** decades) + list(range(2 - LINEAR_NATS, 1, 2)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(max(bottom, lowest - 0.5 * (highest - lowest) - 1), top)


def coverage_table(path, rows, columns, cells, paper=None, note="", column_name="modes"):
    """The paper's Table 1 as a picture: median C (5th; 95th percentile), red where C is low.

    Args:
      path: of the PNG.
      rows: labels of the methods. columns: labels, numbers of modes.
      cells: dict (row, column) -> (median, low, high); a cell that is missing stays empty.
      paper: dict (row, column) -> the paper's median, written below in grey.
      note: title; says which data, seeds and settings.
    """
    medians = np.full((len(rows), len(columns)), np.nan)
    for (row, column), (median, _, _) in cells.items():
        medians[rows.index(row), columns.index(column)] = median
    figure = new_figure(1.35 * len(columns) + 2.2, 0.72 * len(rows) + 1.1)
    axes = figure.add_subplot(111)
    axes.imshow(np.ma.masked_invalid(medians), cmap="RdYlBu", vmin=0.5, vmax=1, alpha=0.65,
                aspect="auto")
    for (row, column), (median, low, high) in cells.items():
        place = columns.index(column), rows.index(row)
        axes.text(*place, f"{median:.2f}  ({low:.2f}; {high:.2f})", ha="center", va="center",
                  fontsize=8.5)
    for (row, column), value in (paper or {}).items():
        axes.text(columns.index(column), rows.index(row) + 0.3, f"paper {value:.2f}", ha="center",
                  va="center", fontsize=7, color="0.35")
    axes.set_xticks(range(len(columns)))
    axes.set_xticklabels(columns)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels(rows)
    axes.set_xlabel(column_name)
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(note, fontsize=9, pad=12)
    save(figure, path)
