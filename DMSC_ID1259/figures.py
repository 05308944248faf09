"""Pictures of a clustering: re-ordered affinity, blocks of C, reconstructions, scores by step."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, PowerNorm, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import npu_session

# Told apart in print and by colour-blind readers too (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
CELLS = 280  # most rows a matrix is drawn with; larger ones are averaged
LEVELS = 20  # colours of a matrix: enough to the eye, and a small file
NUMBERED = 20  # most clusters whose numbers are written on the axes
DPI = 120


def new_figure(width, height):
    """A figure in inches that needs no display."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure, path):
    """Writes a PNG, whole or not at all; its folder is made if missing."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        figure.savefig(file, dpi=DPI, bbox_inches="tight", format="png")


# ---------------------------------------------------------------- matrices


def shrink(matrix, cells=CELLS):
    """Means of blocks: float64 [min(N, cells), min(N, cells)] of a matrix [N, N]."""
    count = min(len(matrix), cells)
    edges = (np.arange(count + 1) * len(matrix)) // count
    sums = np.add.reduceat(np.asarray(matrix, np.float64), edges[:-1], axis=0)
    sums = np.add.reduceat(sums, edges[:-1], axis=1)
    return sums / np.outer(np.diff(edges), np.diff(edges))


def sorted_by(labels, within=None):
    """(order int [N], sorted names of the labels, their borders int [K + 1]).

    Samples with one label stand together, there in the order of `within`, then of their number.
    """
    labels = np.ravel(labels)
    order = np.lexsort((np.zeros(len(labels)) if within is None else np.ravel(within), labels))
    names, counts = np.unique(labels, return_counts=True)
    return order, names, np.concatenate([[0], np.cumsum(counts)])


def dark_to_bright():
    """Colour map magma in LEVELS steps."""
    return ListedColormap(matplotlib.colormaps["magma"](np.linspace(0, 1, LEVELS)))


def draw_blocks(axes, matrix, names, borders, gamma):
    """Draws a sorted, not negative matrix with lines between the blocks; returns the image.

    gamma: power that maps values to brightness; the smaller, the better small values show.
    """
    samples = len(matrix)
    cells = shrink(matrix)
    image = axes.imshow(cells, cmap=dark_to_bright(), interpolation="nearest",
                        norm=PowerNorm(gamma, vmin=0, vmax=cells.max() or 1),
                        extent=(0, samples, samples, 0))
    few = len(names) <= NUMBERED
    for border in borders[1:-1]:
        for line in (axes.axhline, axes.axvline):
            line(border, color="white", linewidth=0.4, alpha=0.6 if few else 0.25)
    axes.set_xticks((borders[:-1] + borders[1:]) / 2 if few else [])
    axes.set_yticks((borders[:-1] + borders[1:]) / 2 if few else [])
    if few:
        axes.set_xticklabels(names, fontsize=8)
        axes.set_yticklabels(names, fontsize=8)
    axes.tick_params(length=0)
    return image


def reordered_affinity(path, affinity, labels, truth=None, note=""):
    """The affinity with the samples of a cluster side by side: a good clustering shows blocks.

    Args:
      path: of the PNG. affinity: float [N, N], not negative. labels: found labels [N].
      truth: true labels [N] or None. A strip on the left then shows the true classes in colours:
        a cluster with more than one colour is mixed.
      note: title; says which data it is.
    """
    order, names, borders = sorted_by(labels, truth)
    figure = new_figure(6.4, 5.6)
    axes = figure.add_axes([0.12, 0.08, 0.72, 0.82])
    image = draw_blocks(axes, np.asarray(affinity)[np.ix_(order, order)], names, borders, 0.3)
    figure.colorbar(image, cax=figure.add_axes([0.86, 0.08, 0.02, 0.82]), label="affinity")
    axes.set_xlabel(f"samples, by the {len(names)} clusters found")
    axes.set_title(note, fontsize=9)
    if truth is not None:
        strip = figure.add_axes([0.055, 0.08, 0.02, 0.82])
        classes = np.unique(truth, return_inverse=True)[1].reshape(-1)[order]
        strip.imshow(classes[:, None], aspect="auto", cmap=class_colours(classes.max() + 1),
                     interpolation="nearest", vmin=-0.5, vmax=classes.max() + 0.5)
        strip.set_xticks([])
        strip.set_yticks([])
        strip.set_ylabel("true class", fontsize=9)
    else:
        axes.set_ylabel("samples")
    save(figure, path)


def class_colours(count):
    """A colour map of `count` colours in which neighbours differ."""
    wheel = np.linspace(0, 1, count, endpoint=False)
    step = next(step for step in range(max(1, int(0.38 * count)), count + 1)
                if np.gcd(step, count) == 1)
    hues = wheel[(step * np.arange(count)) % count]
    colours = [hsv_to_rgb((hue, 0.75, 0.65 + 0.3 * (number % 2)))
               for number, hue in enumerate(hues)]
    return ListedColormap(colours)


def block_shares(C, classes):
    """Where the weights of C lie: float64 [K, K], rows sum to 1, and the share within classes.

    Row k tells from which classes the samples of class k are expressed.
    """
    names, numbers = np.unique(classes, return_inverse=True)
    member = np.eye(len(names))[numbers.reshape(-1)]
    masses = member.T @ np.abs(np.asarray(C, np.float64)) @ member
    sums = masses.sum(axis=1, keepdims=True)
    shares = np.divide(masses, sums, out=np.zeros_like(masses), where=sums > 0)
    return shares, float(np.trace(masses) / (masses.sum() or 1))


def coefficient_blocks(path, C, classes, note=""):
    """|C| with the samples of a class side by side, and how much of it lies between which classes.

    Args:
      path: of the PNG. C: float [N, N], row i expresses sample i. classes: labels [N], the true
        ones if they are known.
      note: title; says which data it is.
    """
    order, names, borders = sorted_by(classes)
    shares, within = block_shares(C, classes)
    figure = new_figure(10.8, 4.9)
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.35})
    image = draw_blocks(left, np.abs(np.asarray(C))[np.ix_(order, order)], names, borders, 0.5)
    figure.colorbar(image, ax=left, fraction=0.046, pad=0.03)
    left.set_title("|C|, samples by class", fontsize=9)
    image = right.imshow(shares, cmap=dark_to_bright(), vmin=0, vmax=shares.max() or 1,
                         interpolation="nearest")
    figure.colorbar(image, ax=right, fraction=0.046, pad=0.03)
    right.set_title(f"share of each class's weights; within classes {100 * within:.1f} %",
                    fontsize=9)
    few = len(names) <= NUMBERED
    for set_ticks, set_labels in ((right.set_xticks, right.set_xticklabels),
                                  (right.set_yticks, right.set_yticklabels)):
        set_ticks(range(len(names)) if few else [])
        set_labels(names if few else [], fontsize=8)
    right.set_xlabel("expressed by class")
    right.set_ylabel("samples of class")
    figure.suptitle(note, fontsize=9, y=0.96)
    save(figure, path)


# ---------------------------------------------------------------- images and curves


def reconstructions(path, originals, reconstructed, names=None, note=""):
    """Images of some samples and what the network makes of them, two rows per modality.

    Args:
      path: of the PNG. originals, reconstructed: lists of M float [n, side, side] or
        [n, side, side, 1], grey levels 0..255. names: of the modalities; default: numbers.
      note: title; says which data it is.
    """
    count = len(originals[0])
    names = names or [f"modality {number}" for number in range(len(originals))]
    figure = new_figure(0.8 * count + 1.4, 1.75 * len(originals))
    for number, pair in enumerate(zip(originals, reconstructed)):
        axes = figure.add_subplot(len(originals), 1, number + 1)
        strips = [np.concatenate(np.reshape(images, np.shape(images)[:3]), axis=1)
                  for images in pair]
        axes.imshow(np.concatenate(strips), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        side = len(strips[0])
        axes.axhline(side - 0.5, color="white", linewidth=1)
        axes.set_yticks([side / 2, 1.5 * side])
        axes.set_yticklabels(["image", "network"], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.set_ylabel(names[number], fontsize=9)
        if number == 0:
            axes.set_title(note, fontsize=9)
    figure.subplots_adjust(hspace=0.08)
    save(figure, path)


def score_curves(path, steps, scores, costs, marked=None, note=""):
    """Scores and costs against training steps, below each other.

    Args:
      path: of the PNG. steps: [T]. scores: dict name -> [T] values of 0..1; empty without labels.
      costs: dict name -> [T] positive values, each with a panel and a logarithmic axis of its own.
      marked: dict name -> step, drawn as vertical lines.
      note: title; says which data it is.
    """
    panels = ([scores] if scores else []) + [{name: values} for name, values in costs.items()]
    heights = [2.0 if panel is scores else 1.0 for panel in panels]
    figure = new_figure(6.4, 1.45 * sum(heights) + 0.8)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False,
                           gridspec_kw={"height_ratios": heights, "hspace": 0.08})[:, 0]
    for axis, panel in zip(axes, panels):
        for number, (name, values) in enumerate(panel.items()):
            number = number if panel is scores else -1
            axis.plot(steps, values, label=name, color=COLOURS[number], linewidth=1.3,
                      marker=MARKERS[number] if len(steps) <= 40 else None, markersize=3.5)
        label_panel(axis, panel, panel is scores)
        for number, step in enumerate((marked or {}).values()):
            axis.axvline(step, color=COLOURS[3 + number], linestyle="--", linewidth=1.1)
    legend_of(axes[0], marked or {}, bool(scores))
    axes[0].set_title(note, fontsize=9)
    axes[-1].set_xlabel("training step")
    save(figure, path)


def label_panel(axis, panel, is_scores):
    """Scale, grid and name of one panel."""
    axis.grid(alpha=0.3)
    if is_scores:
        axis.set_ylim(-0.02, 1.02)
        axis.set_ylabel("score")
        return
    (name, values), = panel.items()
    if np.min(values) > 0:
        axis.set_yscale("log")
    axis.set_ylabel(name, fontsize=9)


def legend_of(axis, marked, has_scores):
    """One legend, in the top panel, of the curves there and of the vertical lines."""
    handles, labels = axis.get_legend_handles_labels() if has_scores else ([], [])
    for number, (name, step) in enumerate(marked.items()):
        handles.append(Line2D([], [], color=COLOURS[3 + number], linestyle="--"))
        labels.append(f"{name}: step {step}")
    if handles:
        axis.legend(handles, labels, fontsize=8, loc="best")
