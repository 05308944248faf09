"""Deep multimodal subspace clustering networks (Abavisani and Patel 2018, arXiv 1804.06498).

Per modality a convolutional encoder and decoder around ONE self-expression matrix Theta [N, N]
(the variable Coef) that all modalities share: affinity fusion. The paper's spatial fusion merges
the modalities into one code instead. Graph only; variable names and shapes are the reference's.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

import npu_session

SIDE = 32  # pixels
KERNELS, STRIDES, CHANNELS = (5, 3, 3), (2, 1, 2), (10, 20, 30)
SIZES = (16, 16, 16, 8)  # side of the maps before (packed) and after each layer of the encoder
COEF_START = 1e-4
RECONSTRUCTION_WEIGHTS = (0.6, 0.1)  # of modality 0 and of each other; from the reference
SELF_EXPRESSION_WEIGHTS = (0.3, 0.05)
# Layers that each modality has for itself before the modalities are joined along the channels.
OWN_LAYERS = {"early": 0, "intermediate": 1, "late": 3}
FUSIONS = ("affinity",) + tuple(OWN_LAYERS)
# As the Ascend port's: exponential in stage 1; fixed, without a check for overflows, in stage 2.
PRETRAIN_LOSS_SCALE = {"init_loss_scale": 2 ** 14, "incr_every_n_steps": 1000,
                       "decr_every_n_nan_or_inf": 1, "decr_ratio": 0.5}
AFFINITY_LOSS_SCALE = {"loss_scale": 2 ** 7, "enable_overflow_check": False}
AFFINITY_TERMS = ("cost", "reconstruction", "regularisation", "self_expression",
                  "relative_residual")

Weights = collections.namedtuple("Weights", "own fused decoders coef")
Pass = collections.namedtuple("Pass", "codes expressed reconstructed")
Constants = collections.namedtuple(
    "Constants", "reconstruction self_expression regularisation residual")


# ---------------------------------------------------------------- variables


def glorot_normal(name, shape, seed):
    """float32 tensor: normal with variance 2 / (fan_in + fan_out), cut at two deviations.

    Fixed by (seed, variable name) and stateless, so that TensorFlow 1.15 and 2.x start alike.
    """
    area = shape[0] * shape[1]
    deviation = np.sqrt(2.0 / (area * (shape[2] + shape[3])))
    key = [seed, zlib.crc32(name.encode()) & 0x7FFFFFFF]
    # Cutting takes part of the variance away; the quotient gives it back, as TensorFlow's does.
    return lambda: tf.random.stateless_truncated_normal(
        shape, seed=key, stddev=deviation / 0.87962566103423978)


def _layer(scope, kernel_name, bias_name, shape, biases, seed):
    """(kernel, bias) variables of one layer; shape: of the kernel."""
    with tf.variable_scope(scope):
        kernel = tf.get_variable(f"{scope}_{kernel_name}", dtype=tf.float32, initializer=(
            glorot_normal(f"{scope}/{scope}_{kernel_name}", shape, seed)))
        bias = tf.get_variable(f"{scope}_{bias_name}", [biases], tf.float32,
                               tf.zeros_initializer())
        return kernel, bias


def _encoder(scope, layers, depth, seed):
    """Variables of the encoder layers with these numbers; depth: channels of the first's input."""
    made = []
    for number in layers:
        size, channels = KERNELS[number], CHANNELS[number]
        made.append(_layer(scope, f"enc_w{number}", f"enc_b{number}",
                           (size, size, depth, channels), channels, seed))
        depth = channels
    return made


def _decoder(scope, depth, seed):
    """Variables of a decoder whose code has `depth` channels; kernels are [h, w, out, in]."""
    made = []
    for number, channels in enumerate(CHANNELS[1::-1] + (1,)):
        size = KERNELS[2 - number]
        made.append(_layer(scope, f"dec1_w{number}", f"dec_b{number}",
                           (size, size, channels, depth), channels, seed))
        depth = channels
    return made


def create_weights(modalities, samples, seed, fusion="affinity"):
    """Makes all trainable variables.

    Args:
      modalities: M, number of modalities.
      samples: N; None leaves the matrix Coef [N, N] out (a plain autoencoder).
      seed: of the initial values.
      fusion: one of FUSIONS.
    Returns:
      Weights: own and decoders, per modality a list of (kernel, bias) per layer; fused, the list
      of the joint encoder's layers (empty for affinity and late fusion); coef, or None.
    """
    own_layers, own, decoders, fused = OWN_LAYERS.get(fusion, 3), [], [], []
    joined = (CHANNELS[own_layers - 1] if own_layers else 1) * modalities
    depth = joined if fusion == "late" else CHANNELS[-1]
    for number in range(modalities):
        own.append(_encoder(str(number), range(own_layers), 1, seed))
        decoders.append(_decoder(str(number), depth, seed))
    if fusion in ("early", "intermediate"):
        fused = _encoder("fused", range(own_layers, 3), joined, seed)
    coef = samples and tf.get_variable("Coef", [samples, samples], tf.float32,
                                       tf.constant_initializer(COEF_START))
    return Weights(own, fused, decoders, coef)


def autoencoder_variables(weights):
    """The variables of encoders and decoders: all but Coef."""
    towers = [own + decoder for own, decoder in zip(weights.own, weights.decoders)]
    return [variable for tower in towers + [weights.fused] for layer in tower for variable in layer]


# ---------------------------------------------------------------- forward pass


def pack(images):
    """[N, 32, 32, 1] -> [N, 16, 16, 4]: 2 x 2 pixels become 4 channels, row by row (NumPy arrays).

    On packed images the 5 x 5 layers of stride 2 are 3 x 3 layers of stride 1 (see pack_kernel),
    which are up to twice as fast.
    """
    half = SIDE // 2
    blocks = np.reshape(images, (-1, half, 2, half, 2)).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(-1, half, half, 4)


def unpack(packed):
    """The inverse of pack."""
    half = SIDE // 2
    pixels = np.reshape(packed, (-1, half, half, 2, 2)).transpose(0, 1, 3, 2, 4)
    return pixels.reshape(-1, SIDE, SIDE, 1)


def pack_kernel(kernel):
    """[5, 5, d, c] -> [3, 3, 4 d, c], the same layer (or its transpose) on packed images.

    Output pixel i of the layer sees the pixels 2i - 1 to 2i + 3, those of the blocks i - 1 to
    i + 1 but the first, whose weight is 0.
    """
    depth, channels = kernel.shape.as_list()[2:]
    blocks = tf.reshape(tf.pad(kernel, [[1, 0], [1, 0], [0, 0], [0, 0]]),
                        [3, 2, 3, 2, depth, channels])
    return tf.reshape(tf.transpose(blocks, [0, 2, 4, 1, 3, 5]), [3, 3, 4 * depth, channels])


def encode(weights, images, fusion="affinity"):
    """Codes of packed images, a list of M float32 [B, 16, 16, 4] with pixels 0..255.

    Returns:
      List of M float32 [B, 8, 8, 30] for affinity fusion, of one [B, 8, 8, C] for the others.
    """
    maps = [_convolve(image, layers) for image, layers in zip(images, weights.own)]
    if fusion == "affinity":
        return maps
    return [_convolve(tf.concat(maps, axis=3), weights.fused, OWN_LAYERS[fusion])]


def activate(maps):
    """Every layer's activation, the last one's too: pixels are not negative."""
    return tf.nn.relu(maps)


def _convolve(maps, layers, first=0):
    for number, (kernel, bias) in enumerate(layers, first):
        stride = STRIDES[number]
        if number == 0:
            kernel, stride = pack_kernel(kernel), 1
        maps = tf.nn.conv2d(maps, kernel, [1, stride, stride, 1], "SAME")
        maps = activate(tf.nn.bias_add(maps, bias))
    return maps


def decode(weights, codes):
    """Packed images, a list of M float32 [B, 16, 16, 4], of the codes that `encode` returns."""
    shared = codes * len(weights.decoders) if len(codes) == 1 else codes
    return [_deconvolve(code, layers) for code, layers in zip(shared, weights.decoders)]


def _deconvolve(maps, layers):
    batch = maps.shape.as_list()[0]
    for number, (kernel, bias) in zip((2, 1, 0), layers):
        stride = STRIDES[number]
        if number == 0:
            kernel, stride, bias = pack_kernel(kernel), 1, tf.tile(bias, [4])
        shape = [batch, SIZES[number], SIZES[number], kernel.shape.as_list()[2]]
        maps = tf.nn.conv2d_transpose(maps, kernel, shape, [1, stride, stride, 1], "SAME")
        maps = activate(tf.nn.bias_add(maps, bias))
    return maps


def without_diagonal(coef):
    """Theta [N, N] = Coef with zeros on the diagonal, where its gradient is exactly 0."""
    return coef - tf.diag(tf.diag_part(coef))


def express(theta, codes):
    """theta Z^i of every code: list of maps [rows of theta, ...], by one product for all codes.

    Rows of Z are samples, each code flattened in H, W, C order.
    """
    rows, shapes = theta.shape.as_list()[0], [code.shape.as_list() for code in codes]
    sizes = [int(np.prod(shape[1:])) for shape in shapes]
    latent = tf.concat([tf.reshape(code, [shape[0], size])
                        for code, shape, size in zip(codes, shapes, sizes)], axis=1)
    parts = tf.split(tf.matmul(theta, latent), sizes, axis=1)
    return [tf.reshape(part, [rows] + shape[1:]) for part, shape in zip(parts, shapes)]


def forward(weights, images, theta, fusion="affinity", rows=None, compute_dtype=tf.float32):
    """The whole network.

    Args:
      weights, images, fusion: see create_weights and encode.
      theta: float32 [N, N]; None decodes the codes themselves.
      rows: int32, samples to express and decode; None: all.
      compute_dtype: of all layers and of the product with theta.
    Returns:
      Pass: codes Z^i (list of maps), expressed theta Z^i, reconstructed (list of M packed images);
      all float32.
    """
    weights = weights._replace(own=_cast(weights.own, compute_dtype),
                               fused=_cast(weights.fused, compute_dtype),
                               decoders=_cast(weights.decoders, compute_dtype))
    codes = encode(weights, _cast(images, compute_dtype), fusion)
    expressed = codes
    if theta is not None:
        theta = theta if rows is None else tf.gather(theta, rows)
        expressed = express(tf.cast(theta, compute_dtype), codes)
    return _cast(Pass(codes, expressed, decode(weights, expressed)), tf.float32)


def _cast(tensors, dtype):
    """Tensors in nested lists and tuples, in another type."""
    return tf.nest.map_structure(lambda tensor: tf.cast(tensor, dtype), tensors)


# ---------------------------------------------------------------- losses


def spread(weights, modalities):
    """One weight per modality, from that many or from (the first's, each other's)."""
    if len(weights) == modalities:
        return list(weights)
    if len(weights) == 2:
        return [weights[0]] + [weights[1]] * (modalities - 1)
    raise npu_session.InputError(
        f"{len(weights)} weights for {modalities} modalities: give one per modality, or two, of "
        "the first modality and of each other")


def default_residual_weight(clusters):
    """The reference's lambda_2 = 10^(K / 10 - 3), made for pixels of 0..255."""
    return 10.0 ** (clusters / 10.0 - 3.0)


def _weighted(weights, terms):
    return tf.add_n([np.float32(weight) * term for weight, term in zip(weights, terms)])


def pretrain_loss(result, images, weights):
    """Stage 1: sum over modalities of weight_i MSE(reconstruction_i, image_i).

    Args: result: a Pass. images: what it should reproduce. weights: M numbers.
    Returns:
      (loss, list of the M mean squared errors in squared grey levels).
    """
    errors = [tf.reduce_mean(tf.squared_difference(made, image))
              for made, image in zip(result.reconstructed, images)]
    return _weighted(weights, errors), errors


def affinity_loss(result, images, theta, constants):
    """Stage 2: reconstruction + l1 |Theta|^2 + l2 sum of weight_i |Z^i - Theta Z^i|^2.

    All norms are plain sums of squares over samples and pixels or features.

    Args: result: a Pass. theta: without diagonal. constants: Constants, the weights per modality
      of the first and last term, and l1 (regularisation) and l2 (residual).
    Returns:
      (cost, float32 [5] AFFINITY_TERMS): the terms without their factors l1 and l2; the last one,
      the weighted |Z - Theta Z|^2 / |Z|^2, is there to judge a solution without labels.
    """
    reconstruction = _weighted(constants.reconstruction, [
        tf.reduce_sum(tf.squared_difference(made, image))
        for made, image in zip(result.reconstructed, images)])
    regularisation = tf.reduce_sum(tf.square(theta))
    weights = constants.self_expression
    if len(result.codes) == 1 != len(weights):  # one code for all modalities
        weights = [sum(weights)]
    residual, energy = (
        _weighted(weights, [tf.reduce_sum(tf.square(part)) for part in parts]) for parts in (
            [code - made for code, made in zip(result.codes, result.expressed)], result.codes))
    cost = (reconstruction + np.float32(constants.regularisation) * regularisation
            + np.float32(constants.residual) * residual)
    return cost, tf.stack([cost, reconstruction, regularisation, residual, residual / energy])


# ---------------------------------------------------------------- training steps


class Adam(tf.train.AdamOptimizer):
    """Adam (0.9, 0.999, 1e-8) whose variables are named alike on every device.

    The NPU's loss scaling applies updates within a tf.cond, which would put its own name before
    those of beta1_power and beta2_power: a CPU could not continue such a run.
    """

    def apply_gradients(self, *arguments, **options):
        """As tf.train.Optimizer's."""
        with tf.name_scope(None):
            return super().apply_gradients(*arguments, **options)


def _apply(optimizer, gradients):
    """Applies (gradient, variable) pairs; `applied_steps` counts what an overflow did not stop."""
    applied = get_counter()
    return tf.group(optimizer.apply_gradients(gradients, applied),
                    tf.train.get_or_create_global_step().assign_add(1))


def get_counter():
    """The variable that counts updates: global_step less the steps skipped for an overflow."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        return tf.get_variable("applied_steps", [], tf.int64, tf.zeros_initializer(),
                               trainable=False)


def pretrain_step(weights, images, loss_weights, learning_rate, fusion="affinity",
                  compute_dtype=tf.float32):
    """One Adam update (0.9, 0.999, 1e-8) of stage 1 on packed images of every modality.

    Coef keeps its diagonal here. weights.coef None: a plain autoencoder, for any B.
    compute_dtype: see forward; variables, losses and updates are float32 in any case.
    Returns:
      (train_op, float32 [1 + M]: the loss and each modality's error, before the update).
    """
    result = forward(weights, images, weights.coef, fusion, compute_dtype=compute_dtype)
    loss, errors = pretrain_loss(result, images, loss_weights)
    optimizer = npu_session.wrap_optimizer(Adam(learning_rate),
                                           PRETRAIN_LOSS_SCALE)
    return _apply(optimizer, optimizer.compute_gradients(loss)), tf.stack([loss] + errors)


def affinity_step(weights, images, constants, learning_rate, theta_before, fusion="affinity",
                  compute_dtype=tf.float32):
    """One Adam update of stage 2 on all samples.

    Args: as before; constants: see affinity_loss. theta_before: variable [N, N] that receives
      Theta as it was before this update, which is the one the reference evaluates.
    Returns:
      (train_op, float32 [5]: AFFINITY_TERMS before the update).
    """
    theta = without_diagonal(weights.coef)
    result = forward(weights, images, theta, fusion, compute_dtype=compute_dtype)
    cost, terms = affinity_loss(result, images, theta, constants)
    optimizer = npu_session.wrap_optimizer(Adam(learning_rate),
                                           AFFINITY_LOSS_SCALE)
    gradients = optimizer.compute_gradients(cost)
    keep = theta_before.assign(theta)
    with tf.control_dependencies([keep.op if hasattr(keep, "op") else keep]):
        return _apply(optimizer, gradients), terms
