"""The paper's figures: error curves with confidence bars, and grids of recovered images."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from npu_session import InputError

LABELS = {"vae": "VAE", "vae-reg": "VAE+Reg", "vae-sparse": "VAE+Reg+sparse", "lasso": "Lasso",
          "omp": "OMP", "learned": "Learned A"}
# One colour per curve, told apart in print and by colour-blind readers too (Okabe and Ito 2008).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*x"


def new_figure(width, height):
    """A figure in inches that needs no display."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def window(width, height):
    """A figure in inches on the screen; InputError without a display."""
    from matplotlib import pyplot  # looks for a display, which nothing else here needs
    if pyplot.get_backend().lower() == "agg":
        raise InputError("--image-matrix 1 and 3 open a window and there is no display: use 2")
    return pyplot.figure(figsize=(width, height))


def save(figure, path):
    """Writes a PNG; its folder is made if missing."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def error_curves(path, curves, x_label="Number of measurements", note="", limits=None,
                 baselines=None):
    """Reconstruction error against the number of measurements (or the noise), logarithmic x.

    Args:
      path: of the PNG.
      curves: dict label -> (x values, mean errors, half widths of the 95 % bars).
      note: title; says which data and settings the curves are from.
      limits: x limits, default a little beyond the values.
      baselines: dict label -> error that does not depend on x, drawn as a dotted line.
    """
    figure = new_figure(6, 4)
    axes = figure.add_subplot(111)
    for (label, (x, mean, bar)), colour, marker in zip(curves.items(), COLOURS, MARKERS):
        axes.errorbar(x, mean, yerr=bar, label=label, color=colour, marker=marker, markersize=4,
                      linewidth=1.5, capsize=3)
    for label, error in (baselines or {}).items():
        axes.axhline(error, color="grey", linestyle=":", label=label)
    ticks = sorted({value for x, _, _ in curves.values() for value in x})
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.set_xticklabels([f"{tick:g}" for tick in ticks], rotation=90)
    axes.minorticks_off()
    axes.set_xlim(*(limits or (ticks[0] * 0.9, ticks[-1] * 1.1)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel("Reconstruction error (per pixel)")
    axes.set_title(note, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)


def image_matrix(rows, path=None, show=False, columns=10):
    """Rows of 28 x 28 images with their names on the left.

    Args:
      rows: dict name -> images [N, 784] in [0,1]; the first `columns` are drawn.
      path: of the PNG, None for none.
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
    figure.subplots_adjust(hspace=0.06)
    if path:
        save(figure, path)
    if show:
        figure.show()
        figure.waitforbuttonpress(-1)
