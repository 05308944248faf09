"""Thin plate spline warps of images (Bookstein 1989) with bilinear sampling.

A transformation T [B, 2, 3 + P] maps an output position (x, y) to the source position
T (1, x, y, r_1 .. r_P), in coordinates from -1 to 1 with x to the right and y down; r_j =
d^2 log(d^2 + 1e-6), d the distance to control point j. Where the last P columns of T are 0, it is
affine and needs no control points.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import tensorflow.compat.v1 as tf

EPSILON = 1e-6  # keeps the logarithm finite at the control points


def ThinPlateSpline2(U, source, target, out_size):
    """Warps U so that the control points `source` of the output show what U has at `target`.

    Args:
      U: float32 [B, H, W, C].
      source, target: float32 [B, P, 2], (x, y) in [-1, 1].
      out_size: (height, width) of the output.
    Returns:
      The output, float32 [B, height, width, C], and the solved T, float32 [B, 2, 3 + P].
    """
    T = solve(source, target)
    return ThinPlateSpline3(U, source, T, out_size), T


def ThinPlateSpline3(U, source, T, out_size):
    """Warps U by a given transformation.

    Args:
      U: float32 [B, H, W, C].
      source: control points, float32 [B, P, 2]; None where T is affine.
      T: float32 [B, 2, 3 + P].
      out_size: (height, width) of the output.
    Returns:
      float32 [B, height, width, C]; 0 wherever one of the four source pixels does not exist.
    """
    height, width = out_size
    x, y = transform(T, ends(width), ends(height), source)
    x, y = to_pixels(x, y, *U.shape.as_list()[1:3])
    return tf.reshape(interpolate(U, x, y), [-1, height, width, U.shape.as_list()[3]])


def ends(count):
    """`count` positions from -1 to 1, both included: float32 [count], a numpy constant (inside
    tf.data nothing would fold an operation), equal to tf.linspace to the last bit."""
    step = np.float32(2) / np.float32(max(count - 1, 1))
    positions = np.float32(-1) + step * np.arange(count, dtype=np.float32)
    positions[-1] = 1
    return positions


def to_pixels(x, y, height, width):
    """Coordinates in [-1, 1] as pixels of a picture, in the reference's convention.

    It multiplies by n, not n - 1: the identity magnifies slightly and the last row and column of
    the output lie outside.
    """
    return (x + 1.0) * width / 2.0, (y + 1.0) * height / 2.0


def radial(squared_distance):
    """The spline's basis function of squared distances."""
    return squared_distance * tf.log(squared_distance + EPSILON)


def squared_distances(x, y, points):
    """Of positions x, y [N] or [B, N] to points [B, P, 2]: float32 [B, P, N]."""
    x, y = (tf.expand_dims(v, -2) for v in (x, y))  # [.., 1, N]
    return tf.square(x - points[:, :, :1]) + tf.square(y - points[:, :, 1:])


def transform(T, columns, rows, control_points=None):
    """Applies T to a grid of positions.

    The affine part is the sum of a term per row and one per column, in the order of additions that
    gives the reference's positions to the last bit.

    Args:
      T: float32 [B, 2, 3 + P].
      columns: float32 [w], x of the positions. rows: float32 [h], y. Both numpy arrays.
      control_points: float32 [B, P, 2]; None where T is affine, which is much cheaper.
    Returns:
      x and y of the source, float32 [B, h * w] each, row by row.
    """
    by_row = T[:, :, 0:1] + T[:, :, 2:3] * rows
    by_column = T[:, :, 1:2] * columns
    count = len(rows) * len(columns)
    source = tf.reshape(by_row[:, :, :, None] + by_column[:, :, None, :], [-1, 2, count])
    if control_points is not None:
        x, y = np.tile(columns, len(rows)), np.repeat(rows, len(columns))
        source += tf.matmul(T[:, :, 3:], radial(squared_distances(x, y, control_points)))
    return source[:, 0], source[:, 1]


def solve(source, target):
    """T [B, 2, 3 + P] of the spline that sends `source` to `target`, both [B, P, 2]."""
    ones = tf.ones_like(source[:, :, :1])
    p = tf.concat([ones, source], 2)  # [B, P, 3]
    x, y = source[:, :, 0], source[:, :, 1]
    right = tf.concat([radial(squared_distances(x, y, source)), tf.transpose(p, [0, 2, 1])], 1)
    left = tf.concat([p, tf.zeros_like(p[:, :3])], 1)
    wanted = tf.concat([target, tf.zeros_like(target[:, :3])], 1)
    return tf.transpose(tf.matrix_solve(tf.concat([left, right], 2), wanted), [0, 2, 1])


def interpolate(images, x, y):
    """Bilinear samples at pixel positions.

    Args:
      images: float32 [B, H, W, C] of known H, W, C.
      x, y: float32 [B, N], columns and rows.
    Returns:
      float32 [B, N, C]. A sample with a neighbour outside the image is 0, also between the last
      pixel's centre and its edge, as in the reference.
    """
    height, width, channels = images.shape.as_list()[1:]
    left, top = tf.floor(x), tf.floor(y)
    nearest_left, nearest_top = (tf.clip_by_value(left, 0, width - 2),
                                 tf.clip_by_value(top, 0, height - 2))
    inside = tf.cast(tf.logical_and(tf.equal(left, nearest_left), tf.equal(top, nearest_top)),
                     tf.float32)
    right_part, lower = x - left, (y - top) * inside
    left_part, upper = 1 - right_part, inside - lower
    first = tf.range(tf.shape(images)[0]) * (height * width)
    corner = first[:, None] + tf.cast(nearest_top * width + nearest_left, tf.int32)
    corner = corner[:, :, None]  # of the upper left neighbour among all pixels
    pixels = tf.reshape(images, [-1, channels])

    def neighbour(offset, weight):
        return weight[:, :, None] * tf.gather_nd(pixels, corner + offset)  # faster than gather

    return (neighbour(0, left_part * upper) + neighbour(width, left_part * lower)
            + neighbour(1, right_part * upper) + neighbour(width + 1, right_part * lower))
