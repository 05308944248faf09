"""Gradients that TensorFlow lacks for the meta-gradient, and only those.

The reference registers a gradient of MaxPoolGrad here, which TensorFlow has had since 1.2. What is
missing in 1.15 and 2.x alike is the second derivative of local response normalisation.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import tensorflow.compat.v1 as tf


def register_missing():
    """Registers the gradient of MaxPoolGrad if this TensorFlow has none; returns whether it did.

    It passes the pooling's own backward routing on to the incoming gradient, and nothing to the
    pooled values: their influence on which entry is the largest has no derivative.
    """
    def gradient(operation, incoming):
        pooled, output = operation.inputs[:2]
        options = {name: operation.get_attr(name) for name in ("ksize", "strides", "padding")}
        chosen = tf.raw_ops.MaxPoolGradGrad(orig_input=pooled, orig_output=output, grad=incoming,
                                            **options)
        return tf.zeros_like(pooled), tf.zeros_like(output), chosen

    try:
        tf.RegisterGradient("MaxPoolGrad")(gradient)
    except KeyError:  # built in
        return False
    return True


def local_response_normalization(x, depth_radius, bias, alpha, beta):
    """tf.nn.lrn from operations that can be differentiated any number of times.

    x / (bias + alpha * sum of x^2 over the 2 * depth_radius + 1 channels around) ** beta; the sum
    over channels is a product with a band matrix, which is as fast as TensorFlow's own kernel.

    Args:
      x: float32 [N, H, W, C] with known C; the other arguments are floats, depth_radius an int.
    Returns:
      float32 [N, H, W, C].
    Source: Krizhevsky et al. 2012, section 3.3; TensorFlow issue 22825 (LRNGrad has no gradient).
    """
    channels = x.shape.as_list()[-1]
    apart = np.abs(np.subtract.outer(np.arange(channels), np.arange(channels)))
    band = tf.constant((apart <= depth_radius).astype(np.float32))  # [C, C]
    squares = tf.matmul(tf.reshape(tf.square(x), [-1, channels]), band)
    return x * tf.pow(bias + alpha * tf.reshape(squares, tf.shape(x)), -beta)
