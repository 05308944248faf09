"""Layers and optimizers of AdaGAN's small networks, once plainly and once for the training loop.

The loop multiplies matrices so small that every graph operation costs as much as its arithmetic.
There a layer's weights and biases are one matrix, inputs end in a column of ones, and a hidden
unit that is always on hands the ones to the next layer: a bias costs no operation of its own,
neither forward nor backward. Backpropagation is written out, since the losses' gradients with
respect to the logits are one subtraction.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np
import tensorflow.compat.v1 as tf

# What the loop carries of a network: matrices, one per layer; moments, for each of Adam's two a
# list like matrices (none for sgd); powers of beta1 and beta2 so far (none for sgd).
Weights = collections.namedtuple("Weights", "matrices moments powers")
# Pre-activation of the unit that is always on: where its activation is exactly 1 in float32.
ALWAYS_ON = {"tanh": 20.0, "relu": 1.0}
ACTIVATIONS = {"tanh": tf.tanh, "relu": tf.nn.relu}


def linear(inputs, outputs, name):
    """x W + b with variables <scope>/<name>/W and b; inputs [n, ...] are flattened to [n, in].

    Returns:
      (float32 [n, outputs], (W, b)).
    """
    size = int(np.prod(inputs.shape.as_list()[1:]))
    with tf.variable_scope(name):
        weights = tf.get_variable("W", [size, outputs], initializer=tf.zeros_initializer())
        biases = tf.get_variable("b", [outputs], initializer=tf.zeros_initializer())
    return tf.matmul(tf.reshape(inputs, [-1, size]), weights) + biases, (weights, biases)


# ---------------------------------------------------------------- the loop's form of a network


def joined(weights, biases, always_on):
    """One matrix of W [in, out] and b [out]: [in + 1, out + 1], or [in + 1, out] of a last layer.

    always_on: pre-activation of the further unit; None for a last layer, which has none.
    """
    matrix = tf.concat([weights, biases[None]], axis=0)
    if always_on is None:
        return matrix
    unit = np.zeros((weights.shape.as_list()[0] + 1, 1), np.float32)
    unit[-1] = always_on
    return tf.concat([matrix, unit], axis=1)


def parted(matrix, outputs):
    """(W, b) of a matrix from `joined`."""
    return matrix[:-1, :outputs], matrix[-1, :outputs]


def with_ones(points):
    """[n, d] -> [n, d + 1]: the column of ones that the loop's networks expect."""
    return tf.concat([points, tf.ones([points.shape.as_list()[0], 1])], axis=1)


def forward(inputs, matrices, activation):
    """Inputs of every layer, float32 [n, .] each, and the output [n, out], as one list.

    inputs: as of with_ones. activation: "tanh" or "relu", of the hidden layers.
    """
    values = [inputs]
    for matrix in matrices[:-1]:
        values.append(ACTIVATIONS[activation](tf.matmul(values[-1], matrix)))
    return values + [tf.matmul(values[-1], matrices[-1])]


def backward(values, matrices, d_output, activation):
    """Gradients with respect to every layer's pre-activation, from that of the output.

    Args:
      values: of forward. d_output: [n, out].
    """
    deltas = [d_output]
    for value, matrix in zip(values[-2:0:-1], matrices[:0:-1]):
        d_value = tf.matmul(deltas[0], matrix, transpose_b=True)
        deltas.insert(0, _through(activation, value, d_value))
    return deltas


def _through(activation, value, d_value):
    """Gradient before the activation; 0 for the unit that is always on."""
    if activation == "tanh":
        return tf.raw_ops.TanhGrad(y=value, dy=d_value)  # 1 - 1^2 = 0 for that unit
    trained = np.ones((1, value.shape.as_list()[1]), np.float32)
    trained[0, -1] = 0
    return tf.raw_ops.ReluGrad(gradients=d_value, features=value) * trained


def matrix_gradients(values, deltas):
    """Gradients with respect to the matrices; values of forward, deltas of backward."""
    return [tf.matmul(value, delta, transpose_a=True) for value, delta in zip(values, deltas)]


def input_gradient(deltas, matrices):
    """Gradient with respect to the inputs [n, d], without the column of ones."""
    return tf.matmul(deltas[0], matrices[0], transpose_b=True)[:, :-1]


# ---------------------------------------------------------------- optimizers


class Sgd:
    """Gradient descent on Weights.

    gradient_scale: what losses' gradients must be multiplied by before `update`; it goes into the
    gradient of the logits, where it costs least.
    """

    moments, powers = (), {}

    def __init__(self, rate):
        self.gradient_scale = -rate

    def update(self, weights, gradients):
        """Weights after one step."""
        return weights._replace(matrices=[matrix + gradient for matrix, gradient
                                          in zip(weights.matrices, gradients)])


class Adam:
    """Adam on Weights, with the formula and the slot names of tf.train.AdamOptimizer."""

    moments = ("Adam", "Adam_1")
    beta2, epsilon, gradient_scale = 0.999, 1e-8, 1.0

    def __init__(self, rate, beta1):
        self.rate, self.beta1 = rate, beta1
        self.powers = {"beta1_power": beta1, "beta2_power": self.beta2}  # as before the first step

    def update(self, weights, gradients):
        """Weights after one step."""
        power1, power2 = weights.powers
        rate = self.rate * tf.sqrt(1 - power2) / (1 - power1)
        first = [moment + (1 - self.beta1) * (gradient - moment)
                 for moment, gradient in zip(weights.moments[0], gradients)]
        second = [moment + (1 - self.beta2) * (tf.square(gradient) - moment)
                  for moment, gradient in zip(weights.moments[1], gradients)]
        matrices = [matrix - rate * m / (tf.sqrt(v) + self.epsilon)
                    for matrix, m, v in zip(weights.matrices, first, second)]
        return Weights(matrices, [first, second], [power1 * self.beta1, power2 * self.beta2])


def optimizer(name, rate, beta1):
    """Sgd or Adam."""
    return {"sgd": lambda: Sgd(rate), "adam": lambda: Adam(rate, beta1)}[name]()
