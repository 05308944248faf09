"""Layers and losses as pure functions of tensors, and the types of the flags.

Sources: the reference's utils.py; Dou et al. 2019 (arXiv 1910.13580), sections 3.2 and 3.3.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import tensorflow.compat.v1 as tf

import special_grads

LEAKY_SLOPE = 0.2
LRN = {"depth_radius": 2, "bias": 1.0, "alpha": 1e-5, "beta": 0.75}  # Caffe's alpha/5 is 2e-5
TEMPERATURE = 2.0  # tau of the softened class distributions
SMALLEST_PROBABILITY = 1e-8  # keeps the divergences finite
NO_SAMPLES = 1e-16  # added to the sizes of classes, so that an absent one has mean 0

# ---------------------------------------------------------------- flags


def flag_type(convert, accepts, text):
    """argparse type that converts and accepts only some values, described by `text`."""
    def parse(value):
        number = convert(value)
        if not accepts(number):
            raise ValueError(value)
        return number
    parse.__name__ = text
    return parse


POSITIVE_INT = flag_type(int, lambda number: number > 0, "integer above 0")
POSITIVE = flag_type(float, lambda number: 0 < number < np.inf, "number above 0")
WEIGHT = flag_type(float, lambda number: 0 <= number < np.inf, "number of at least 0")
PROBABILITY = flag_type(float, lambda number: 0 < number <= 1, "number above 0 and at most 1")

# ---------------------------------------------------------------- layers


def conv_block(inputs, weights, biases, stride, groups):
    """SAME convolution, bias, ReLU.

    Args:
      inputs: float32 [N, H, W, C].
      weights: float32 [k, k, C / groups, outputs]. With two groups, each half of the outputs sees
        its half of the input channels, as AlexNet's two GPUs did.
      biases: float32 [outputs]. stride, groups: ints.
    """
    def convolve(x, kernel):
        return tf.nn.conv2d(x, kernel, strides=[1, stride, stride, 1], padding="SAME")

    if groups == 1:
        outputs = convolve(inputs, weights)
    else:
        halves = zip(tf.split(inputs, groups, 3), tf.split(weights, groups, 3))
        outputs = tf.concat([convolve(x, kernel) for x, kernel in halves], 3)
    return tf.nn.relu(tf.nn.bias_add(outputs, biases))


def max_pool(x):
    """3 x 3 maximum, stride 2, no padding."""
    return tf.nn.max_pool(x, [1, 3, 3, 1], [1, 2, 2, 1], "VALID")


def lrn(x, twice_differentiable=False):
    """Local response normalisation of AlexNet over channels; x float32 [N, H, W, C]."""
    if twice_differentiable:
        return special_grads.local_response_normalization(x, **LRN)
    return tf.nn.lrn(x, **LRN)


def dropout(x, keep_prob, key):
    """Zeroes entries of x with probability 1 - keep_prob and divides the others by keep_prob.

    key: integer tensor [2] that fixes which; not read when keep_prob is 1.
    """
    if keep_prob == 1:
        return x
    kept = tf.random.stateless_uniform(x.shape.as_list(), seed=key) < keep_prob
    return x * (tf.cast(kept, tf.float32) / keep_prob)


def fc(x, weights, biases, activation=None):
    """activation(x weights + bias); x [N, in], weights [in, out]; "relu", "leaky_relu" or None."""
    outputs = tf.matmul(x, weights) + biases
    if activation == "relu":
        return tf.nn.relu(outputs)
    if activation == "leaky_relu":
        return tf.nn.leaky_relu(outputs, LEAKY_SLOPE)
    return outputs


# ---------------------------------------------------------------- losses


def xent(logits, labels):
    """Cross entropy per sample; logits, labels float32 [..., C]; a row without a label gives 0."""
    return tf.nn.softmax_cross_entropy_with_logits_v2(labels=labels, logits=logits)


def accuracy(logits, labels):
    """Per cent of samples whose largest logit is at the label; both float32 [N, C]."""
    right = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
    return 100.0 * tf.reduce_mean(tf.cast(right, tf.float32))


def class_distributions(logits, labels):
    """Softened class distributions s_c = softmax(mean logits of class c / tau).

    Args:
      logits, labels: float32 [N, C]; labels one-hot.
    Returns:
      float32 [C, C], row c for class c, entries clipped to [1e-8, 1]; uniform for absent classes.
    """
    sums = tf.matmul(labels, logits, transpose_a=True)  # [C, C]
    means = sums / (tf.reduce_sum(labels, 0)[:, tf.newaxis] + NO_SAMPLES)
    return tf.clip_by_value(tf.nn.softmax(means / TEMPERATURE), SMALLEST_PROBABILITY, 1.0)


def present(labels):
    """float32 [C], 1 for classes that occur in one-hot labels [N, C] (a row of zeros: class 0)."""
    classes = labels.shape.as_list()[1]
    return tf.reduce_max(tf.one_hot(tf.argmax(labels, 1), classes), 0)


def _kl(p, q):
    return tf.reduce_sum(p * tf.log(p / q), 1)


def symmetric_kl(p, q):
    """1/2 [KL(p || q) + KL(q || p)] of the rows of p, q [C, C]: float32 [C], nats."""
    return (_kl(p, q) + _kl(q, p)) / 2.0


def jensen_shannon(p, q):
    """1/2 [KL(p || m) + KL(q || m)] with m = (p + q) / 2, as for symmetric_kl."""
    middle = (p + q) / 2.0
    return (_kl(p, middle) + _kl(q, middle)) / 2.0


DIVERGENCES = {"kl": symmetric_kl, "js": jensen_shannon}


def kd(logits1, labels1, logits2, labels2, indicator, divergence=symmetric_kl):
    """Global class alignment of two domains: l_global of the paper.

    Args:
      logits1, labels1, logits2, labels2: float32 [N, C] and one-hot float32 [N, C].
      indicator: float32 [C], 1 for classes that count.
      divergence: symmetric_kl (the paper's) or jensen_shannon.
    Returns:
      The mean over all C classes, also the absent ones, float32 scalar; and both domains'
      class_distributions.
    """
    soft1, soft2 = (class_distributions(logits, labels)
                    for logits, labels in ((logits1, labels1), (logits2, labels2)))
    return tf.reduce_mean(indicator * divergence(soft1, soft2)), soft1, soft2


def squared_distances(x):
    """Squared Euclidean distances of the rows of float32 [N, D]: [N, N], diagonal exactly 0."""
    squares = tf.reduce_sum(tf.square(x), 1)
    distances = squares[:, tf.newaxis] + squares - 2.0 * tf.matmul(x, x, transpose_b=True)
    positive = tf.cast(distances > 0, tf.float32) * (1.0 - tf.eye(x.shape.as_list()[0]))
    return distances * positive


def triplet_semihard_loss(labels, embeddings, margin):
    """Triplet loss with semi-hard negatives: L_local of the paper.

    For every pair (i, j) of one class the negative n* is the smallest distance D_ik to another
    class beyond D_ij, or the largest to another class if none is beyond (0 without other classes).

    Args:
      labels: integers [N]. embeddings: float32 [N, D], not normalised.
      margin: in squared units of the embeddings.
    Returns:
      Mean over the ordered pairs of max(0, margin + D_ij - n*), float32 scalar; 0 without pairs.
    """
    distances = squared_distances(embeddings)  # [N, N]
    same = tf.equal(labels[:, tf.newaxis], labels)
    other = tf.logical_not(same)
    beyond = other[:, tf.newaxis, :] & (distances[:, tf.newaxis, :] > distances[:, :, tf.newaxis])
    to_k = tf.broadcast_to(distances[:, tf.newaxis, :], tf.shape(beyond))  # [i, j, k]
    nearest = tf.reduce_min(tf.where(beyond, to_k, tf.fill(tf.shape(beyond), tf.float32.max)), 2)
    farthest = tf.reduce_max(tf.where(other, distances, tf.zeros_like(distances)), 1)
    farthest = tf.broadcast_to(farthest[:, tf.newaxis], tf.shape(distances))
    negative = tf.where(tf.reduce_any(beyond, 2), nearest, farthest)
    pairs = tf.cast(same, tf.float32) * (1.0 - tf.eye(labels.shape.as_list()[0]))
    losses = tf.maximum((margin + distances - negative) * pairs, 0.0)
    return tf.reduce_sum(losses) / tf.maximum(tf.reduce_sum(pairs), 1.0)


def compute_distance(features1, labels1, features2, labels2):
    """How far apart two domains are: Euclidean distances of the rows i of numpy [N, D] and [N, D].

    Returns:
      (mean over rows of one class, mean over rows of different classes), NaN without such rows.
    """
    difference = np.asarray(features1, np.float64) - np.asarray(features2, np.float64)
    distances, same = np.sqrt(np.sum(difference ** 2, 1)), np.equal(labels1, labels2)
    return tuple(float(distances[rows].mean()) if rows.any() else float("nan")
                 for rows in (same, ~same))
