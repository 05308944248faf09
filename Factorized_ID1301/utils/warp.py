"""The random warps of Thewlis et al. 2017 as the reference draws and applies them.

A warp sends a position v of the warped picture to its source g(v). Frames are square pictures of
`crop_size` pixels; the network sees the 128 x 128 cut that begins at pixel 5 of a frame.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import tensorflow.compat.v1 as tf

from utils import ThinPlateSplineB as spline

INPUT_SIZE = 128  # pixels: side of what the network sees
CUT_START = 5  # pixels: its first row and column in a frame
MAP_SIZE = 42  # cells: side of a heat map
CELL_PIXELS = 2  # pixels of the input between neighbouring cells
FIRST_CELL = 22.5  # pixels: where in the input the first cell looks
PADDING = 3  # cells around a heat map while it is warped; the reference's number
CORNERS = ((-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0))  # control points, (x, y)
DRAWS = 5  # numbers that make an affine warp

PAIR_WARP = 0.1  # w of the warp between the two pictures of a pair; the first warp has w = 0
MAX_ROTATION = 0.5  # radians
SCALES = (0.8, 1.1)  # limits of the scale at w = 0
ASPECT_DEVIATION = 0.1  # standard deviation of y scale - x scale


def draw(normal, uniform, w):
    """Numbers of random warps from random numbers.

    Args:
      normal: float32 [B, 3], standard normal. uniform: float32 [B, 2] in [0, 1).
      w: strength of shift and scale, a number or float32 [B].
    Returns:
      float32 [B, 5]: rotation (radians), x shift, y shift, x scale, y scale - x scale.
    """
    low, high = SCALES[0] - w, SCALES[1] + w
    return tf.stack([MAX_ROTATION * (2 * uniform[:, 0] - 1), w * normal[:, 0], w * normal[:, 1],
                     low + (high - low) * uniform[:, 1], ASPECT_DEVIATION * normal[:, 2]], 1)


def transformations(draws, bending=None):
    """T, float32 [B, 2, 7], of draws [B, 5].

    bending: float32 [B, 2, 4], weights of the spline at the four corners; None: zeros, which is
    what the reference has and makes every warp affine.
    """
    rotation, x_shift, y_shift, x_scale, aspect = tf.unstack(draws, axis=1)
    y_scale = x_scale + aspect
    cosine, sine = tf.cos(rotation), tf.sin(rotation)
    affine = tf.stack([tf.stack([x_shift, x_scale * cosine, -y_scale * sine], 1),
                       tf.stack([y_shift, x_scale * sine, y_scale * cosine], 1)], 1)
    if bending is None:
        return tf.pad(affine, [[0, 0], [0, 0], [0, len(CORNERS)]])
    return tf.concat([affine, bending], 2)


def corners(T, is_affine):
    """Control points, float32 [B, 4, 2], that transform needs; None for an affine T."""
    return None if is_affine else tf.tile(tf.constant([CORNERS]), [tf.shape(T)[0], 1, 1])


def image_warping2(images, T, is_affine=True, cut=None):
    """Warps frames.

    Args:
      images: float32 [B, n, n, C]. T: float32 [B, 2, 7].
      is_affine: T's last four columns are 0.
      cut: (start, size): only these rows and columns of the result, which saves the others.
    Returns:
      float32 [B, size, size, C]; what comes from outside the frame is 0, mid grey.
    """
    side, channels = images.shape.as_list()[2:]
    start, size = cut or (0, side)
    ends = spline.ends(side)[start:start + size]
    x, y = spline.transform(T, ends, ends, corners(T, is_affine))
    x, y = spline.to_pixels(x, y, side, side)
    return tf.reshape(spline.interpolate(images, x, y), [-1, size, size, channels])


def feature_warping2(feature, T, padding, is_affine=True):
    """Warps maps [B, n, n, C] that span a frame once `padding` zeros are put around them."""
    side = feature.shape.as_list()[1]
    around = [padding, padding]
    padded = tf.pad(feature, [[0, 0], around, around, [0, 0]])
    return image_warping2(padded, T, is_affine, (padding, side))


def cells():
    """Row and column numbers of a heat map's cells, numpy float32 [42, 42, 2]."""
    return np.stack(np.mgrid[:MAP_SIZE, :MAP_SIZE], 2).astype(np.float32)


def warped_cells(T, is_affine=True):
    """g of every cell by the reference's geometry, float32 [B, 42, 42, 2] (row, column), in cells.

    It treats map and padding as spanning the frame, as if a cell were 3 pixels instead of 2, and
    gives 0 for what lies outside the padded map. See warped_cells_exactly.
    """
    planes = tf.tile(cells()[None], [tf.shape(T)[0], 1, 1, 1])
    return feature_warping2(planes, T, PADDING, is_affine)


def warped_cells_exactly(T, frame_size, is_affine=True):
    """g of every cell, float32 [B, 42, 42, 2] (row, column), in cells: where the warp of frames of
    frame_size pixels really takes the pixel that the cell looks at; may lie outside the map."""
    first = FIRST_CELL + CUT_START  # pixels of the frame
    ends = np.float32(2 * (CELL_PIXELS * np.arange(MAP_SIZE) + first) / (frame_size - 1) - 1)
    x, y = spline.transform(T, ends, ends, corners(T, is_affine))
    x, y = spline.to_pixels(x, y, frame_size, frame_size)
    return tf.reshape((tf.stack([y, x], 2) - first) / CELL_PIXELS, [-1, MAP_SIZE, MAP_SIZE, 2])
