"""The paper's figures: error curves with confidence bars, and grids of recovered images."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import npu_session
from npu_session import InputError

LABELS = {"vae": "VAE", "vae-sparse": "VAE+sparse", "lasso": "Lasso", "omp": "OMP",
          "learned": "End to end"}
# One colour per curve, told apart in print and by colour-blind readers too (Okabe and Ito 2008).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
APART = 0.005  # of the x axis: neighbouring curves are moved apart so that none hides another
CLOSEST_LABELS = 0.04  # of the x axis: labels that stand nearer than this would overlap
MARGIN = 0.05  # of the x axis, left and right of the values


def new_figure(width, height):
    """A figure in inches that needs no display."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def check_display():
    """InputError without a display."""
    from matplotlib import pyplot  # looks for a display, which nothing else here needs
    if pyplot.get_backend().lower() == "agg":
        raise InputError("--image-matrix 1 and 3 open a window and there is no display: use 2")


def window(width, height):
    """A figure in inches on the screen; InputError without a display."""
    check_display()
    from matplotlib import pyplot
    return pyplot.figure(figsize=(width, height))


def save(figure, path):
    """Writes a PNG, whole or not at all; its folder is made if missing."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        figure.savefig(file, dpi=150, bbox_inches="tight", format="png")


def error_curves(path, curves, x_label="Number of measurements", note="", baselines=None,
                 styles=None):
    """Reconstruction error against the number of measurements (or the noise), logarithmic x.

    Args:
      path: of the PNG.
      curves: dict label -> (x values above 0, mean errors, half widths of the 95 % bars), at least
        one, none empty.
      note: title; says which data and settings the curves are from.
      baselines: dict label -> error that does not depend on x, drawn as a dotted line.
      styles: dict label -> number of its colour and marker; default: in order.
    """
    figure = new_figure(6.4, 4.3)
    axes = figure.add_subplot(111)
    ticks = sorted({value for x, _, _ in curves.values() for value in x})
    span = np.log(ticks[-1] / ticks[0]) or 1.0
    for index, (label, (x, mean, bar)) in enumerate(curves.items()):
        style = (styles or {}).get(label, index) % len(COLOURS)
        moved = np.asarray(x) * np.exp(span * APART * (index - (len(curves) - 1) / 2))
        axes.errorbar(moved, mean, yerr=bar, label=label, color=COLOURS[style],
                      marker=MARKERS[style], markersize=5, linewidth=1.3, capsize=2.5,
                      elinewidth=1, markeredgecolor="white", markeredgewidth=0.5)
    for label, error in (baselines or {}).items():
        axes.axhline(error, color="grey", linestyle=":", label=label)
    label_axes(axes, ticks, span, x_label)
    axes.set_title(note, fontsize=9)
    handles, labels = axes.get_legend_handles_labels()
    last = sorted(range(len(labels)), key=lambda k: labels[k] in (baselines or {}))
    axes.legend([handles[k] for k in last], [labels[k] for k in last], fontsize=8)
    save(figure, path)


def label_axes(axes, ticks, span, x_label):
    """Scales, ticks and names of the axes of error_curves; span: of log x between the ticks."""
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    shown = spaced(ticks, CLOSEST_LABELS * span)
    axes.set_xticklabels([f"{tick:g}" if tick in shown else "" for tick in ticks],
                         rotation=90)
    axes.minorticks_off()
    axes.set_xlim(ticks[0] * np.exp(-MARGIN * span), ticks[-1] * np.exp(MARGIN * span))
    top = axes.get_ylim()[1]
    axes.set_ylim(-0.015 * top, top)  # a little below 0, so that markers at 0 are whole
    axes.set_xlabel(x_label)
    axes.set_ylabel("Reconstruction error (per pixel)")
    axes.grid(alpha=0.3)


def spaced(ticks, distance):
    """The sorted ticks without those nearer than `distance` (of log x) to one kept before."""
    kept = ticks[:1]
    for tick in ticks[1:]:
        if np.log(tick / kept[-1]) >= distance:
            kept.append(tick)
    return kept


def image_matrix(rows, path=None, title="", show=False, columns=10):
    """Rows of 28 x 28 images with their names on the left.

    Args:
      rows: dict name -> images [N, 784] in [0,1]; the first `columns` are drawn.
      path: of the PNG, None for none.
      title: says which data and measurements.
      show: open a window (InputError without a display).
    """
    count = min(columns, min(len(images) for images in rows.values()))
    size = (0.62 * count + 1.3, 0.66 * len(rows))
    figure = window(*size) if show else new_figure(*size)
    for index, (name, images) in enumerate(rows.items()):
        axes = figure.add_subplot(len(rows), 1, index + 1)
        strip = np.reshape(images[:count], (count, 28, 28)).transpose(1, 0, 2).reshape(28, -1)
        axes.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        if index == 0:
            axes.set_title(title, fontsize=9)
    figure.subplots_adjust(hspace=0.06)
    if path:
        save(figure, path)
    if show:
        figure.show()
        figure.waitforbuttonpress(-1)
