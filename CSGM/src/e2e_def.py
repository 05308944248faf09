"""The end-to-end baseline of Bora et al. 2017 (arXiv 1703.03208).

A measurement matrix A, learned or fixed, and a net trained to decode y = x A: the graph, and what
recovery needs of a trained one. Variable names and shapes are those of the reference
(src/mnist_model_def.py and mnist_e2e of AshishBora/csgm), so checkpoints interchange.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import glob
import os
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

import model_def
import npu_session
import util
from npu_session import InputError

HIDDEN = (50, 200)  # units of the layers hidden0, hidden1
LEARNING_RATE = 0.001
NO_CHECKPOINT = ("{} holds no readable checkpoint of the end-to-end model: train it with python "
                 "src/train_e2e.py --num_measurements={} (and --fixed_matrix=True for a matrix "
                 "that is not learned)")

EndToEnd = collections.namedtuple("EndToEnd", "y logits x_hat loss")


def checkpoint_folder(output_dir, measurements, learned, learning_rate=LEARNING_RATE):
    """The reference's folder for a run with this number of measurements and kind of matrix."""
    return os.path.join(output_dir, "optimization", "mnist-e2e", "checkpoints",
                        f"adam_{learning_rate}_{measurements}_{bool(learned)}")


def normal(seed):
    """Initialiser of A: N(0, std 1/m), fixed by (seed, variable name); see xavier_uniform."""
    def initializer(name, shape):
        key = [seed, zlib.crc32(name.encode()) & 0x7FFFFFFF]
        return lambda: tf.random.stateless_normal(shape, seed=key, stddev=1.0 / shape[1])
    return initializer


def measurement_matrix(measurements, learned, seed=0):
    """The variable A [784, m]; trainable if it is learned."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        shape = [model_def.N_INPUT, measurements]
        return tf.get_variable("A", initializer=normal(seed)("A", shape), dtype=tf.float32,
                               trainable=learned)


def dense(inputs, scope, units, seed):
    """inputs [B, in] -> [B, units] with the variables <scope>/weights and <scope>/biases."""
    shape = [inputs.shape.as_list()[1], units]
    initializer = model_def.xavier_uniform(seed)(scope + "/weights", shape)
    with tf.variable_scope(scope, reuse=tf.AUTO_REUSE):
        weights = tf.get_variable("weights", initializer=initializer, dtype=tf.float32)
        biases = tf.get_variable("biases", [units], initializer=tf.zeros_initializer())
        return tf.matmul(inputs, weights) + biases


def decoder_logits(y, seed=0):
    """Measurements y [B, m] -> logits [B, 784]; `seed` fixes the initial weights."""
    hidden = y
    for number, units in enumerate(HIDDEN):
        hidden = tf.nn.relu(dense(hidden, f"hidden{number}", units, seed))
    return dense(hidden, "sigmoid_logits", model_def.N_INPUT, seed)


def decoder(y, seed=0):
    """Measurements y [B, m] -> x_hat [B, 784], the images in [0,1]."""
    return tf.nn.sigmoid(decoder_logits(y, seed))


def end_to_end(x, noise, noise_std, learned, seed):
    """Measures and decodes images; grey values are soft labels.

    Args:
      x: float32 [B, 784], pixels in [0,1].
      noise: float32 [B, m], standard normal.
      noise_std: y = x A + noise_std * noise; the reference trains without noise, 0.
      learned: whether A is trained.
      seed: fixes the initial values.
    Returns:
      EndToEnd; loss is the sigmoid cross entropy (nats), a mean over all pixels of the batch.
    """
    y = tf.matmul(x, measurement_matrix(noise.shape.as_list()[1], learned, seed))
    y += noise_std * noise
    logits = decoder_logits(y, seed)
    loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits))
    return EndToEnd(y, logits, tf.nn.sigmoid(logits), loss)


def train_step(x, noise, noise_std, learned, seed, learning_rate):
    """One Adam update (0.9, 0.999, 1e-8) on one batch; all arguments but the last as above.

    Returns:
      model_def.TrainStep; loss_terms float32 [1] is the loss before the update.
    """
    model = end_to_end(x, noise, noise_std, learned, seed)
    optimizer = npu_session.wrap_optimizer(tf.train.AdamOptimizer(learning_rate))
    update = optimizer.minimize(model.loss, tf.train.get_or_create_global_step())
    return model_def.TrainStep(update, tf.expand_dims(model.loss, 0))


def restore_matrix(checkpoint_dir, measurements=None):
    """A of the checkpoint that Decoder uses, float32 [784, m].

    Args:
      checkpoint_dir: folder of the training run, see checkpoint_folder.
      measurements: m, or None to take whatever the folder holds.
    Raises:
      InputError: as Decoder.
    """
    with Decoder(checkpoint_dir, measurements or _stored_measurements(checkpoint_dir)) as decoder:
        return decoder.matrix


def _stored_measurements(checkpoint_dir):
    """m of a folder's checkpoints, which all have the same, from any that can be opened."""
    for path in glob.glob(os.path.join(glob.escape(checkpoint_dir), "*.index")):
        with contextlib.suppress(tf.errors.OpError, KeyError):
            checkpoint = tf.train.load_checkpoint(path[:-len(".index")])
            return checkpoint.get_variable_to_shape_map()["A"][1]
    raise InputError(NO_CHECKPOINT.format(checkpoint_dir, "M"))


class Decoder:
    """A trained decoder with its session, usable for many measured batches.

    All variables come from one checkpoint, so that a damaged newest one cannot lead to the matrix
    of one step and the decoder of another.

    Args:
      checkpoint_dir: folder of the training run, see checkpoint_folder.
      measurements: m.
      batch: images per session.run.
      config: tf.ConfigProto.
    Attributes:
      matrix: A, float32 [784, m].
    Raises:
      InputError: no readable checkpoint, or one with another number of measurements.
    """

    def __init__(self, checkpoint_dir, measurements, batch=1, config=None):
        graph = npu_session.new_graph()
        with graph.as_default():
            matrix = measurement_matrix(measurements, learned=False)
            self._y = tf.placeholder(tf.float32, [batch, measurements])
            self._x_hat = decoder(self._y)
            checkpoints = npu_session.Checkpoints(checkpoint_dir)
        if not checkpoints.found():
            raise InputError(NO_CHECKPOINT.format(checkpoint_dir, measurements))
        self._session = tf.Session(graph=graph, config=config)
        checkpoints.restore(self._session, required=True)
        self.matrix = self._session.run(matrix)
        graph.finalize()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session.close()

    def run(self, y):
        """Decodes y [N, m] of any N > 0 to x_hat float32 [N, 784]."""
        def decode(rows):
            return self._session.run(self._x_hat, {self._y: rows})
        return util.in_batches(decode, self._y.shape.as_list()[0], np.asarray(y, np.float32))
