"""Pictures: landmarks on images where they really are, contact sheets, loss curves, error bars."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import matplotlib.patheffects
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import npu_session
from utils.drawing import landmark_colors

COLUMNS = 8  # images side by side in a contact sheet
CURVES = {  # metrics.jsonl's name -> (label, colour): told apart by colour-blind readers too
    "loss_align": ("alignment", "#0072B2"),
    "loss_diversity": ("diversity", "#D55E00"),
    "loss_decay": ("weight decay", "#009E73"),
}
BAR_COLOURS = ("#0072B2", "#56B4E9", "#999999")
JPEG_QUALITY = 85
SMOOTHED = 40  # parts of a curve over which the running mean goes


def new_figure(width, height):
    """A figure in inches that needs no display."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure, path, dpi=110):
    """Writes a .png or, for photographs, a .jpg, whole or not at all; makes its folder."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    kind = os.path.splitext(path)[1][1:]
    options = {"pil_kwargs": {"quality": JPEG_QUALITY}} if kind == "jpg" else {}
    with npu_session.replacing(path, "wb") as file:
        figure.savefig(file, dpi=dpi, bbox_inches="tight", format=kind, **options)


def show_image(axes, image):
    """Draws an image, uint8 or float in [0, 1], without axes; pixel centres are whole numbers."""
    axes.imshow(image, interpolation="bilinear", aspect="equal")
    height, width = np.shape(image)[:2]
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])


def mark_landmarks(axes, points, numbered=False):
    """Marks landmarks [K, 2] (x, y), each in its colour of the reference's table."""
    colours = landmark_colors(len(points))[1:]
    axes.scatter(points[:, 0], points[:, 1], s=26, c=colours, edgecolors="black", linewidths=0.8,
                 zorder=3)
    outline = [matplotlib.patheffects.withStroke(linewidth=1.5, foreground="black")]
    for number, (x, y) in enumerate(points if numbered else (), 1):
        axes.annotate(str(number), (x, y), (3, 3), textcoords="offset points", fontsize=7,
                      color="white", path_effects=outline)


def mark_truth(axes, predicted, truth):
    """Marks predicted points [P, 2] by crosses, tied to rings at the annotated ones."""
    for (x, y), (true_x, true_y) in zip(predicted, truth):
        axes.plot([x, true_x], [y, true_y], color="white", linewidth=0.8, zorder=2)
    axes.plot(truth[:, 0], truth[:, 1], "o", markersize=6, markerfacecolor="none",
              markeredgecolor="#00FF66", markeredgewidth=1.3, zorder=3)
    axes.plot(predicted[:, 0], predicted[:, 1], "x", markersize=5, color="#FF3333",
              markeredgewidth=1.3, zorder=3)


def sheet(count, title, columns=COLUMNS, aspect=218 / 178):
    """A figure with `count` axes in a grid; aspect: height of an image by its width."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(1.15 * columns + 0.1, 1.15 * aspect * rows + 0.4)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    top = 1 - 0.35 / (1.15 * aspect * rows + 0.4)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=top, wspace=0.03, hspace=0.03)
    figure.suptitle(title, fontsize=9, y=0.99)
    return figure, axes


def contact_sheet(path, images, points, title="", predicted=None, truth=None):
    """Images with their unsupervised landmarks, one colour per landmark.

    Args:
      path: of the .jpg or .png.
      images: [N] of [H, W, 3], uint8 or float in [0, 1].
      points: [N, K, 2], (x, y) in pixels of the images.
      predicted, truth: None, or [N, 5, 2]: a second row under each row of images shows regressed
        points (crosses) and annotated ones (rings).
    """
    height, width = np.shape(images[0])[:2]
    both = predicted is not None
    columns = min(COLUMNS, len(images))
    rows = [range(first, min(first + columns, len(images)))
            for first in range(0, len(images), columns)]
    figure, axes = sheet(columns * len(rows) * (1 + both), title, columns, height / width)
    places = iter(axes)
    for row in rows:
        for drawn in (False, True)[:1 + both]:
            for number in row:
                place = next(places)
                show_image(place, images[number])
                if drawn:
                    mark_truth(place, predicted[number], truth[number])
                else:
                    mark_landmarks(place, np.asarray(points[number]), numbered=number == row[0])
            for _ in range(columns - len(row)):
                next(places).set_axis_off()
    save(figure, path)


def equivariance_sheet(path, images, deformed, points, deformed_points, sent, title=""):
    """Pairs, the image above its deformed copy: dots are found landmarks, rings where they belong.

    Args:
      images, deformed: float [N, 128, 128, 3] in [0, 1].
      points, deformed_points: [N, K, 2], found in each, (x, y) in pixels.
      sent: [N, K, 2]: where the warp sends `points` in the deformed images.
    """
    count = len(images)
    figure, axes = sheet(2 * count, title, count, 1.0)
    colours = landmark_colors(np.shape(points)[1])[1:]
    for number in range(count):
        upper, lower = axes[number], axes[count + number]
        show_image(upper, images[number])
        mark_landmarks(upper, np.asarray(points[number]))
        show_image(lower, deformed[number])
        mark_landmarks(lower, np.asarray(deformed_points[number]))
        lower.scatter(sent[number][:, 0], sent[number][:, 1], s=60, facecolors="none",
                      edgecolors=colours, linewidths=1.2, zorder=2)
        lower.set_xlim(upper.get_xlim())
        lower.set_ylim(upper.get_ylim())
    save(figure, path)


def running_mean(values, window):
    """Mean over the last `window` values (fewer at the start) of a sequence, float64 [N]."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    last = np.arange(1, len(total))
    first = np.maximum(last - window, 0)
    return (total[last] - total[first]) / (last - first)


def loss_curves(path, records, title=""):
    """Loss terms against steps on logarithmic axes: as logged pale, running mean strong.

    Args:
      path: of the PNG.
      records: dicts of metrics.jsonl; those with a `step` and the names in CURVES are drawn.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot(111)
    for name, (label, colour) in CURVES.items():
        kept = [record for record in records if name in record]
        steps = [record["step"] for record in kept]
        values = [record[name] for record in kept]
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(values, max(1, len(values) // SMOOTHED)), color=colour,
                  linewidth=1.6, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (strong: running mean)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(title, fontsize=9)
    save(figure, path)


def error_bars(path, errors, point_names, title=""):
    """Landmark error per annotated point, and its mean.

    Args:
      path: of the PNG.
      errors: dict label -> (mean, [P] per point), percent of the inter-ocular distance.
      point_names: P names.
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot(111)
    places, width = np.arange(len(point_names) + 1), 0.8 / len(errors)
    for number, (label, (mean, per_point)) in enumerate(errors.items()):
        heights = list(per_point) + [mean]
        shift = (number - (len(errors) - 1) / 2) * width
        axes.bar(places + shift, heights, width * 0.94, label=label,
                 color=BAR_COLOURS[number % len(BAR_COLOURS)])
        for place, height in zip(places + shift, heights):
            axes.annotate(f"{height:.1f}", (place, height), (0, 2), textcoords="offset points",
                          ha="center", fontsize=7)
    axes.set_xticks(places)
    axes.set_xticklabels(list(point_names) + ["mean"], fontsize=8)
    axes.set_ylabel("error, % of inter-ocular distance")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncol=len(errors), loc="upper center")
    axes.set_title(title, fontsize=9)
    save(figure, path)
