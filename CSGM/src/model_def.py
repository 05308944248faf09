"""The MNIST VAE of Bora et al. 2017 (arXiv 1703.03208).

Encoder q(z|x) and generator G: R^20 -> [0,1]^784. Graph only. Variable names, shapes and creation
order are those of the reference (mnist_vae/src/model_def.py), so checkpoints interchange.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import zlib

import tensorflow.compat.v1 as tf

import npu_session

N_INPUT = 784  # 28 x 28 pixels
N_HIDDEN = 500
N_Z = 20
VARIABLES = tuple(f"{scope}/{kind}{number}" for scope, layers in (("enc", 4), ("gen", 3))
                  for number in range(1, layers + 1) for kind in "wb")  # in creation order

Vae = collections.namedtuple(
    "Vae", "z_mean z_log_sigma_sq z logits x_reconstr_mean reconstr_loss latent_loss total_loss")
Evaluation = collections.namedtuple("Evaluation", "x eps model z sample")
TrainStep = collections.namedtuple("TrainStep", "train_op loss_terms")
LOSS_TERMS = ("loss", "reconstr_loss", "latent_loss")  # what a step reports, in this order


def xavier_uniform(seed):
    """Initialiser: uniform in +-sqrt(6 / (fan_in + fan_out)), fixed by (seed, variable name).

    Stateless, so that TensorFlow 1.15 and 2.x start from the same numbers.
    """
    def initializer(name, shape):
        limit = (6.0 / (shape[0] + shape[1])) ** 0.5
        key = [seed, zlib.crc32(name.encode()) & 0x7FFFFFFF]
        return lambda: tf.random.stateless_uniform(shape, seed=key, minval=-limit, maxval=limit)
    return initializer


def dense(inputs, number, units, initializer):
    """inputs [B, in] -> [B, units] with variables w<number>, b<number> of the current scope."""
    shape = [inputs.shape.as_list()[1], units]
    name = f"{tf.get_variable_scope().name}/w{number}"
    weights = tf.get_variable(f"w{number}", initializer=initializer(name, shape),
                              dtype=tf.float32)
    biases = tf.get_variable(f"b{number}", [units], initializer=tf.zeros_initializer())
    return tf.matmul(inputs, weights) + biases


def encoder(x, initializer):
    """q(z|x): x [B, 784] in [0,1] -> z_mean, z_log_sigma_sq, each [B, 20]."""
    with tf.variable_scope("enc", reuse=tf.AUTO_REUSE):
        hidden = tf.nn.softplus(dense(x, 1, N_HIDDEN, initializer))
        hidden = tf.nn.softplus(dense(hidden, 2, N_HIDDEN, initializer))
        return dense(hidden, 3, N_Z, initializer), dense(hidden, 4, N_Z, initializer)


def generator(z, initializer):
    """G: z [B, 20] -> logits [B, 784] and their sigmoid, the image in [0,1]."""
    with tf.variable_scope("gen", reuse=tf.AUTO_REUSE):
        hidden = tf.nn.softplus(dense(z, 1, N_HIDDEN, initializer))
        hidden = tf.nn.softplus(dense(hidden, 2, N_HIDDEN, initializer))
        logits = dense(hidden, 3, N_INPUT, initializer)
        return logits, tf.nn.sigmoid(logits)


def vae(x, eps, initializer):
    """The whole VAE with its loss (negative evidence lower bound, grey values as soft labels).

    Args:
      x: float32 [B, 784], pixels in [0,1].
      eps: float32 [B, 20], the noise of z = z_mean + sigma * eps.
      initializer: see xavier_uniform.
    Returns:
      Vae; reconstr_loss and latent_loss are per image [B] (nats), total_loss their mean sum.
    """
    z_mean, z_log_sigma_sq = encoder(x, initializer)
    z = z_mean + tf.sqrt(tf.exp(z_log_sigma_sq)) * eps
    logits, x_reconstr_mean = generator(z, initializer)
    reconstr_loss = tf.reduce_sum(
        tf.nn.sigmoid_cross_entropy_with_logits(labels=x, logits=logits), 1)
    latent_loss = -0.5 * tf.reduce_sum(
        1 + z_log_sigma_sq - tf.square(z_mean) - tf.exp(z_log_sigma_sq), 1)
    total_loss = tf.reduce_mean(reconstr_loss + latent_loss, name="total_loss")
    return Vae(z_mean, z_log_sigma_sq, z, logits, x_reconstr_mean, reconstr_loss, latent_loss,
               total_loss)


def evaluation(batch_size, initializer):
    """The VAE on fed images and noise, and the generator on a fed z, all of one batch size.

    Operations have the reference's names: x_ph, x_ph_1 (which is z), gen/Sigmoid, gen_1/Sigmoid.
    """
    x = tf.placeholder(tf.float32, [batch_size, N_INPUT], "x_ph")
    eps = tf.placeholder(tf.float32, [batch_size, N_Z], "eps")
    model = vae(x, eps, initializer)
    z = tf.placeholder(tf.float32, [batch_size, N_Z], "x_ph")
    return Evaluation(x, eps, model, z, generator(z, initializer)[1])


def train_step(x, eps, initializer, learning_rate, epoch_loss):
    """One Adam update (0.9, 0.999, 1e-8) of all variables on one batch.

    Args:
      x, eps, initializer: as for vae.
      learning_rate: float.
      epoch_loss: float32 variable that gathers the sum of the losses since it was last zeroed.
    Returns:
      TrainStep; loss_terms float32 [3] are the batch means of LOSS_TERMS before the update.
    """
    model = vae(x, eps, initializer)
    optimizer = npu_session.wrap_optimizer(tf.train.AdamOptimizer(learning_rate))
    update = optimizer.minimize(model.total_loss, tf.train.get_or_create_global_step())
    loss_terms = npu_session.average(tf.stack([
        model.total_loss, tf.reduce_mean(model.reconstr_loss), tf.reduce_mean(model.latent_loss)]))
    gather = epoch_loss.assign_add(loss_terms[0])
    return TrainStep(tf.group(update, gather), loss_terms)
