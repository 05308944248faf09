"""Pictures of landmarks: the reference's, and one with the landmarks in their places."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import matplotlib
import matplotlib.cm
import numpy as np
import tensorflow.compat.v1 as tf

DISC_RADIUS, RIM = 4.5, 1.5  # pixels of the enlarged picture: a landmark, its dark edge


def landmark_colors(K):
    """float32 [K + 1, 3] in [0, 1]: black, then the K landmarks' hues."""
    maps = getattr(matplotlib, "colormaps", None)
    hsv = maps["hsv"] if maps else matplotlib.cm.get_cmap("hsv")
    return np.array([[0, 0, 0]] + [hsv(k / K)[:3] for k in range(K)], np.float32)


def draw_landmarks(images, heat_maps):
    """Marks the peak of every heat map on the images, as the reference does.

    It stretches the map over the whole image, although the map covers only pixels 22.5 to 104.5:
    marks lie 1.52 times too far from the centre.

    Args:
      images: float32 [B, n, n, 3] in [-1, 1].
      heat_maps: float32 [B, m, m, K].
    Returns:
      float32 [B, n, n, 3] in [0, 1].
    """
    size, K = images.shape.as_list()[1:3], heat_maps.shape.as_list()[3]
    peaks = tf.equal(heat_maps, tf.reduce_max(heat_maps, [1, 2], keepdims=True))
    numbers = tf.reduce_max(tf.where(peaks, tf.ones_like(heat_maps) * tf.range(1.0, K + 1),
                                     tf.zeros_like(heat_maps)), 3)  # the highest of several
    colors = tf.gather(landmark_colors(K), tf.cast(numbers, tf.int32))
    enlarged = tf.image.resize_bilinear(colors, size)
    marked = tf.image.resize_area(tf.cast(numbers > 0, tf.float32)[..., None], size) > 0
    marked = tf.tile(marked, [1, 1, 1, 3])
    return tf.where(marked, enlarged, (images + 1) / 2)


def mark_landmarks(image, points):
    """An image at twice its size with a disc for every landmark, in its colour.

    Args:
      image: float [n, n, 3] in [0, 1].
      points: [K, 2], (x, y) in pixels of the image.
    Returns:
      uint8 [2n, 2n, 3].
    """
    picture = enlarge(enlarge(np.asarray(image, np.float64)).transpose(1, 0, 2)).transpose(1, 0, 2)
    rows, columns = np.ogrid[:picture.shape[0], :picture.shape[1]]
    for (x, y), color in zip(2 * np.asarray(points) + 0.5, landmark_colors(len(points))[1:]):
        distance = np.hypot(rows - y, columns - x)[:, :, None]
        for radius, paint in ((DISC_RADIUS + RIM, 0.0), (DISC_RADIUS, color)):
            covered = np.clip(radius - distance + 0.5, 0, 1)
            picture = covered * paint + (1 - covered) * picture
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def enlarge(picture):
    """Twice as many rows, linearly interpolated."""
    above = np.concatenate([picture[:1], picture[:-1]])
    below = np.concatenate([picture[1:], picture[-1:]])
    pairs = np.stack([0.75 * picture + 0.25 * above, 0.75 * picture + 0.25 * below], 1)
    return pairs.reshape((-1,) + picture.shape[1:])
