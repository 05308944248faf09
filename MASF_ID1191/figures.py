"""Pictures of a run: confusion matrix, embeddings by class and domain, curves, methods compared."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import metrics
import npu_session

# One colour per class, told apart in print and by colour-blind readers too (Okabe and Ito 2008).
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
DARK = 0.55  # share of a row above which its number is written in white


def new_figure(width, height):
    """A figure in inches that needs no display."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure, path):
    """Writes a PNG, whole or not at all; its folder is made if missing."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        figure.savefig(file, dpi=130, bbox_inches="tight", format="png")


def confusion(path, matrix, names, title=""):
    """A confusion matrix as a table, shaded by the share of each row.

    Args:
      path: of the PNG. matrix: int [C, C], rows true, as metrics.confusion_matrix.
      names: of the C classes. title: says which data, method and iteration.
    """
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = new_figure(5.6, 5.0)
    axes = figure.add_subplot(111)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(column, row, str(count), ha="center", va="center", fontsize=9,
                  color="white" if shares[row, column] > DARK else "black")
    axes.set_xticks(range(len(names)))
    axes.set_xticklabels(names, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(len(names)))
    recalls = metrics.per_class_accuracy(matrix)
    axes.set_yticklabels(["{}  {}".format(name, "–" if np.isnan(recall) else f"{recall:.0%}")
                          for name, recall in zip(names, recalls)], fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true, share recognised")
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=9)
    save(figure, path)


def embeddings(path, points, labels, domains, class_names, domain_names, title="", unseen=None):
    """The first two principal components of embeddings, coloured by class and by domain.

    Args:
      points: float [N, D]. labels: int [N], of class_names. domains: int [N], of domain_names.
      unseen: number of the domain that was not trained on; it gets crosses.
    """
    coordinates, shares = metrics.principal_components(points)
    figure = new_figure(10.4, 4.6)
    panels = ((np.asarray(labels), class_names, "class", COLOURS),
              (np.asarray(domains), domain_names, "domain", COLOURS))
    for number, (groups, names, kind, colours) in enumerate(panels):
        axes = figure.add_subplot(1, 2, number + 1)
        for group, name in enumerate(names):
            seen_label = name
            for crossed in (False, True):
                chosen = (groups == group) & ((np.asarray(domains) == unseen) == crossed)
                if chosen.any():
                    axes.scatter(*coordinates[chosen].T, s=26 if crossed else 15, alpha=0.75,
                                 color=colours[group % len(colours)], linewidths=0.9,
                                 marker="x" if crossed else "o", label=seen_label)
                    seen_label = None
        axes.set_title(f"by {kind}", fontsize=10)
        axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)", fontsize=8)
        axes.set_ylabel(f"second ({shares[1]:.0%})", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="best", framealpha=0.7)
    crosses = "" if unseen is None else f"; crosses: {domain_names[unseen]}, not trained on"
    figure.suptitle(title + crosses, fontsize=9)
    save(figure, path)


def curves(path, panels, title="", x_label="iteration"):
    """Curves side by side, for example losses and accuracies of a run.

    Args:
      panels: {name of the vertical axis: {label: (x, y)}}, none empty.
    """
    figure = new_figure(5.2 * len(panels), 3.8)
    for number, (y_label, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for index, (label, (x, y)) in enumerate(lines.items()):
            axes.plot(x, y, label=label, color=COLOURS[index % len(COLOURS)], linewidth=1.4,
                      marker=MARKERS[index % len(MARKERS)] if len(x) < 25 else None, markersize=4)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    save(figure, path)


def comparison(path, results, targets, title="", y_label="accuracy on the unseen domain"):
    """Groups of bars: one group per target domain and one for their mean, one bar per method.

    Args:
      results: {method: float [targets, seeds]}, in the order of `targets`.
    """
    figure = new_figure(1.5 * (len(targets) + 1) + 1, 3.8)
    axes = figure.add_subplot(111)
    width = 0.8 / len(results)
    for number, (method, values) in enumerate(results.items()):
        values = np.asarray(values, np.float64)
        groups = list(values) + [values.mean(axis=0)]
        means, deviations = np.array([metrics.mean_std(group) for group in groups]).T
        place = np.arange(len(groups)) + (number - (len(results) - 1) / 2) * width
        axes.bar(place, means, 0.92 * width, yerr=deviations, capsize=3, label=method,
                 color=COLOURS[(number + 1) % len(COLOURS)], error_kw={"elinewidth": 1})
        for x, mean, deviation in zip(place, means, deviations):
            axes.text(x, mean + deviation + 0.012, f"{mean:.2f}", ha="center", fontsize=7)
    axes.set_xticks(range(len(targets) + 1))
    axes.set_xticklabels(list(targets) + ["mean"])
    axes.axvline(len(targets) - 0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_ylabel(y_label)
    axes.set_ylim(0, 1.18 * axes.get_ylim()[1])
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncol=len(results), loc="upper left")
    axes.set_title(title, fontsize=9)
    save(figure, path)
