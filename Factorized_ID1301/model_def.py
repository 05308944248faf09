"""The landmark network of Thewlis, Bilen and Vedaldi, ICCV 2017, its losses and training step.

Graph only. Variable names, shapes and order are those of the reference, so checkpoints
interchange. A pair of pictures runs through one network as a batch of 2B pictures; batch norm
takes the statistics of each half apart, as the reference's two towers do.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import zlib

import tensorflow.compat.v1 as tf

import npu_session
from utils import drawing
from utils.warp import MAP_SIZE, cells

CHANNELS = (20, 48, 64, 80, 256)  # of layers 1 to 5; layer 6 has K
KERNEL = 5
FILTER_DEVIATION = 0.02  # of the initial filters
NORM_DECAY = 0.9  # of the moving averages
NORM_EPSILON = 0.001
CENTRE = (MAP_SIZE - 1) / 2  # cells: the losses count from the middle, where numbers are small
LOSS_TERMS = ("loss_align", "loss_diversity", "loss_decay", "loss", "align_spread",
              "align_distance")  # what a step reports, in this order

Layer = collections.namedtuple("Layer", "filter beta gamma moving_mean moving_variance")
Towers = collections.namedtuple("Towers", "scores activations moments updates")
Losses = collections.namedtuple("Losses", "align diversity decay total spread distance")
TrainStep = collections.namedtuple("TrainStep", "train_op loss_terms")
Evaluation = collections.namedtuple("Evaluation", "scores heat_maps coordinates drawn")


def create_variables(K, seed):
    """The network's variables: six Layers, the last with K channels. Call once per graph.

    Filters are normal with deviation 0.02, fixed by (seed, variable name): stateless, so that
    TensorFlow 1.15 and 2.x start from the same numbers.
    """
    layers, inputs = [], 3
    for number, outputs in enumerate(CHANNELS + (K,), 1):
        with tf.variable_scope(f"cnn_tower/layer_{number}"):
            layers.append(_create_layer([KERNEL, KERNEL, inputs, outputs], seed))
        inputs = outputs
    return layers


def _create_layer(shape, seed):
    name = f"{tf.get_variable_scope().name}/conv/filter"
    key = [seed, zlib.crc32(name.encode()) & 0x7FFFFFFF]

    def initial_filter():
        return FILTER_DEVIATION * tf.random.stateless_normal(shape, seed=key)

    def vector(kind, value, trainable=True):
        return tf.get_variable(f"BatchNorm/{kind}", [shape[3]], trainable=trainable,
                               initializer=tf.constant_initializer(value))

    return Layer(tf.get_variable("conv/filter", initializer=initial_filter, dtype=tf.float32),
                 vector("beta", 0.0), vector("gamma", 1.0), vector("moving_mean", 0.0, False),
                 vector("moving_variance", 1.0, False))


def _convolutions(halves, layer, conv_dtype=tf.float32):
    """One convolution of all pictures [.., h, w, c] in `halves`; float32, divided as they were.

    conv_dtype: of the operands; sums are float32 in any case.
    """
    x = tf.concat([tf.cast(half, conv_dtype) for half in halves], 0)
    x = tf.nn.conv2d(x, tf.cast(layer.filter, conv_dtype), [1, 1, 1, 1], "VALID")
    return [tf.cast(half, tf.float32) for half in tf.split(x, len(halves))]


def _pooled(x):
    """Only the first layer's output is pooled: [.., 124, 124, 20] -> [.., 62, 62, 20]."""
    return tf.nn.max_pool(x, [1, 2, 2, 1], [1, 2, 2, 1], "VALID")


def _normalised(halves, layer):
    """Normalises the pictures of A and of B each by their own statistics.

    Returns:
      [A, B] normalised; ((mean, variance) of A, of B), the variances with Bessel's correction; and
      the update of the moving averages by A, then B. (The reference's order is a race.)
    """
    normalised, means, variances = zip(*(
        tf.nn.fused_batch_norm(half, layer.gamma, layer.beta, epsilon=NORM_EPSILON)
        for half in halves))
    updates = []
    for moving, (of_a, of_b) in ((layer.moving_mean, means), (layer.moving_variance, variances)):
        after_a = NORM_DECAY * moving + (1 - NORM_DECAY) * of_a
        updates.append(moving.assign(NORM_DECAY * after_a + (1 - NORM_DECAY) * of_b))
    return normalised, tuple(zip(means, variances)), updates


def towers(images, deformed, layers, conv_dtype=tf.float32):
    """The network in training mode.

    Args:
      images, deformed: float32 [B, 128, 128, 3] in [-1, 1].
      layers: of create_variables.
      conv_dtype: of the convolutions' operands.
    Returns:
      Towers: scores float32 [2B, 42, 42, K], at least 0, of the images, then of the deformed ones;
      and per layer the two activations (the first after pooling), the moments (see _normalised)
      and the updates of moving averages.
    """
    halves, activations, moments, updates = [images, deformed], [], [], []
    for number, layer in enumerate(layers, 1):
        halves, layer_moments, layer_updates = _normalised(
            _convolutions(halves, layer, conv_dtype), layer)
        halves = [tf.nn.relu(half) for half in halves]
        if number == 1:
            halves = [_pooled(half) for half in halves]
        activations.append(halves)
        moments.append(layer_moments)
        updates.extend(layer_updates)
    return Towers(tf.concat(halves, 0), activations, moments, updates)


def tower(images, layers):
    """The network with its moving averages: images [B, 128, 128, 3] -> scores [B, 42, 42, K].

    The last operation is named as exporters of the reference expect it,
    cnn_tower/layer_6/BatchNorm/Relu.
    """
    x = images
    for number, layer in enumerate(layers, 1):
        with tf.name_scope(f"cnn_tower/layer_{number}/BatchNorm/"):
            x = tf.nn.fused_batch_norm(
                _convolutions([x], layer)[0], layer.gamma, layer.beta, layer.moving_mean,
                layer.moving_variance, NORM_EPSILON, is_training=False)[0]
            x = tf.nn.relu(x, "Relu")
        if number == 1:
            x = _pooled(x)
    return x


def probability_maps(scores):
    """Softmax over positions: scores [N, 42, 42, K] -> float32 [N, K, 42 * 42]."""
    by_landmark = tf.transpose(tf.cast(scores, tf.float32), [0, 3, 1, 2])
    return tf.nn.softmax(tf.reshape(by_landmark, [-1, scores.shape.as_list()[3], MAP_SIZE ** 2]))


def expectation(maps, positions):
    """Mean position and spread of probability maps.

    Args:
      maps: float32 [N, K, 42 * 42]; every map sums to 1.
      positions: float32 [N or 1, 42, 42, 2] (row, column), in cells.
    Returns:
      means, float32 [N, K, 2] (row, column), in cells; spreads, float32 [N, K]: the expected
      squared distance from the mean, in squared cells.
    """
    planes = tf.reshape(positions - CENTRE, [-1, 1, MAP_SIZE ** 2, 2])
    means, spreads = [], []
    for plane in tf.unstack(planes, axis=3):
        mean = tf.reduce_sum(maps * plane, 2, keepdims=True)
        means.append(mean)
        spreads.append(tf.reduce_sum(maps * tf.square(plane - mean), 2))
    return tf.concat(means, 2) + CENTRE, tf.add_n(spreads)


def alignment(maps_a, maps_b, positions_b):
    """The equivariance loss: sum over u, v of |u - g(v)|^2 p(u|x) p(v|x'), mean over B and K.

    As the maps sum to 1, it is the spread of p, the spread of p' carried back by g, and the
    squared distance between the two means. That form, unlike the reference's difference of
    moments, loses no digits (3400 - 3395 there); the values are the same.

    Args:
      maps_a, maps_b: float32 [B, K, 42 * 42], of the images and of the deformed ones.
      positions_b: float32 [B, 42, 42, 2], g(v) of every cell v (row, column).
    Returns:
      float32 scalars, squared cells: the spreads' mean sum, and the squared distance's mean.
    Source: Thewlis et al. 2017, L_align.
    """
    mean_a, spread_a = expectation(maps_a, cells()[None])
    mean_b, spread_b = expectation(maps_b, positions_b)
    distance = tf.reduce_sum(tf.square(mean_a - mean_b), 2)
    return tf.reduce_mean(spread_a + spread_b), tf.reduce_mean(distance)


def diversity(maps, window):
    """The diversity loss per image: K - sum over positions of the highest of the K pooled maps.

    Args:
      maps: float32 [N, K, 42 * 42].
      window: side of the averaging window (M), in cells.
    Returns:
      float32 [N]; 0 where the K maps are apart, K - 1 where they coincide (and a little more,
      since windows at the border average fewer cells).
    """
    count = maps.shape.as_list()[1]
    by_position = tf.transpose(tf.reshape(maps, [-1, count, MAP_SIZE, MAP_SIZE]), [0, 2, 3, 1])
    pooled = tf.nn.avg_pool(by_position, [1, window, window, 1], [1, 1, 1, 1], "VALID")
    return count - tf.reduce_sum(tf.reduce_max(pooled, 3), [1, 2])


def losses(scores, positions, layers, args):
    """All terms of the objective.

    Args:
      scores: float32 [2B, 42, 42, K], of towers.
      positions: float32 [B, 42, 42, 2], see alignment.
      layers: of create_variables.
      args: M, align_weight, diversity_weight, weight_decay.
    Returns:
      Losses, float32 scalars; diversity is the sum of both towers', decay carries its weight.
    """
    maps = probability_maps(scores)
    spread, distance = alignment(*tf.split(maps, 2), positions)
    both = 2 * tf.reduce_mean(diversity(maps, args.M))
    decay = args.weight_decay * tf.add_n([tf.nn.l2_loss(layer.filter) for layer in layers])
    align = spread + distance
    total = args.align_weight * align + args.diversity_weight * both + decay
    return Losses(align, both, decay, total, spread, distance)


def learning_rate(step, args):
    """Adam's rate in an update: args.learning_rate, a tenth of it after args.lower_rate_after."""
    if args.lower_rate_after is None:
        return args.learning_rate
    return args.learning_rate * tf.where(step < args.lower_rate_after, 1.0, 0.1)


def train_step(images, deformed, positions, layers, args):
    """One Adam update (beta2 0.999, epsilon 1e-8) on one batch of pairs.

    Args:
      images, deformed: float32 [B, 128, 128, 3] in [-1, 1].
      positions, layers: see losses.
      args: those of losses and learning_rate, and beta1, conv_dtype.
    Returns:
      TrainStep; loss_terms float32 [6] are LOSS_TERMS on this batch, before the update.
    """
    network = towers(images, deformed, layers, tf.as_dtype(args.conv_dtype))
    terms = losses(network.scores, positions, layers, args)
    step = tf.train.get_or_create_global_step()
    with tf.name_scope("train/"):  # gives Adam's powers of beta the reference's names
        optimizer = npu_session.wrap_optimizer(
            tf.train.AdamOptimizer(learning_rate(step, args), args.beta1))
        update = optimizer.minimize(terms.total, step)
    values = npu_session.average(tf.stack([terms.align, terms.diversity, terms.decay, terms.total,
                                           terms.spread, terms.distance]))
    return TrainStep(tf.group(update, *network.updates), values)


def build_evaluation(images, K, seed=0):
    """The network as used after training, with variables of its own graph.

    Args:
      images: float32 [B, 128, 128, 3] in [-1, 1].
      K: landmarks. seed: of the filters before a checkpoint is restored.
    Returns:
      Evaluation: scores float32 [B, 42, 42, K]; heat_maps, their softmax over positions;
      coordinates float32 [B, K, 2], expected (row, column) in cells (cell u looks at pixel
      2 u + 22.5 of the image); drawn float32 [B, 128, 128, 3] in [0, 1], the reference's picture
      of the landmarks, in which they lie too far from the centre (see utils.drawing).
    """
    return evaluate(images, create_variables(K, seed))


def evaluate(images, layers):
    """build_evaluation with given variables."""
    scores = tower(images, layers)
    maps = probability_maps(scores)
    coordinates, _ = expectation(maps, cells()[None])
    K = scores.shape.as_list()[3]
    heat_maps = tf.transpose(tf.reshape(maps, [-1, K, MAP_SIZE, MAP_SIZE]), [0, 2, 3, 1])
    return Evaluation(scores, heat_maps, coordinates, drawing.draw_landmarks(images, heat_maps))
