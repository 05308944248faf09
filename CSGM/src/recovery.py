"""Recovery of images from measurements by a generative prior (Bora et al. 2017, section 3).

z^ = argmin_z |y - G(z) A|^2 / m + lambda |z|^2 from several random starts; the answer is G(z^) of
the start with the lowest objective. All starts of all images are rows of one batch, updated by an
in-graph loop; the loss is the sum over rows divided by the images of ONE reference batch, which
makes every row's gradient that of the reference's separate runs (they carry its batch mean).
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections

import numpy as np
import tensorflow.compat.v1 as tf

import model_def
import npu_session

OPTIMIZERS = ("sgd", "momentum", "rmsprop", "adam", "adagrad")
TERMS = ("total_loss", "m_loss1", "m_loss2", "zp_loss")

Settings = collections.namedtuple(
    "Settings", "mloss1_weight mloss2_weight zprior_weight optimizer_type learning_rate momentum "
                "decay_lr max_update_iter num_random_restarts")
Objective = collections.namedtuple("Objective", ("x_hat", "y_hat") + TERMS)
Graph = collections.namedtuple("Graph", "z matrix y final loop reset back_projection z_encoded")
Estimate = collections.namedtuple("Estimate", "x_hat z total_loss start history")


def objective(z, y, matrix, settings, initializer):
    """The recovery objective of every image and start.

    Args:
      z: float32 [G, S, B, 20]: G groups of B images, each group with a matrix of its own, from S
        starts.
      y: float32 [G, B, m], the measurements.
      matrix: float32 [G, 784, m], or None if the images themselves are measured (projection).
      settings: Settings; its weights are used.
    Returns:
      Objective: x_hat [G, S, B, 784], y_hat [G, S, B, m], the TERMS [G, S, B].
    """
    groups, starts, batch, n_z = z.shape.as_list()
    _, x_hat = model_def.generator(tf.reshape(z, [-1, n_z]), initializer)
    x_hat = tf.reshape(x_hat, [groups, starts * batch, model_def.N_INPUT])
    y_hat = x_hat if matrix is None else tf.matmul(x_hat, matrix)
    y_hat = tf.reshape(y_hat, [groups, starts, batch, y.shape.as_list()[2]])
    difference = y_hat - tf.expand_dims(y, 1)
    m_loss1 = tf.reduce_mean(tf.abs(difference), 3)
    m_loss2 = tf.reduce_mean(tf.square(difference), 3)
    zp_loss = tf.reduce_sum(tf.square(z), 3)
    total_loss = (settings.mloss1_weight * m_loss1 + settings.mloss2_weight * m_loss2
                  + settings.zprior_weight * zp_loss)
    x_hat = tf.reshape(x_hat, [groups, starts, batch, model_def.N_INPUT])
    return Objective(x_hat, y_hat, total_loss, m_loss1, m_loss2, zp_loss)


def learning_rate(settings, step):
    """The rate at an update; with decay_lr it falls by 0.7 every 50 updates."""
    if not settings.decay_lr:
        return settings.learning_rate
    return tf.train.exponential_decay(settings.learning_rate, step, 50, 0.7, staircase=True)


def make_optimizer(settings, step):
    """TensorFlow's optimizer of that name, with TensorFlow's defaults."""
    rate = learning_rate(settings, step)
    return {
        "sgd": lambda: tf.train.GradientDescentOptimizer(rate),
        "momentum": lambda: tf.train.MomentumOptimizer(rate, settings.momentum),
        "rmsprop": lambda: tf.train.RMSPropOptimizer(rate),
        "adam": lambda: tf.train.AdamOptimizer(rate),
        "adagrad": lambda: tf.train.AdagradOptimizer(rate),
    }[settings.optimizer_type]()


def build_graph(settings, groups, starts, batch, measurements, iterations_per_loop, branches=1):
    """Variables z, A, y and the loop of updates.

    Args:
      settings: Settings.
      groups, starts, batch: G, S, B of `objective`.
      measurements: m, or None for projection.
      iterations_per_loop: see npu_session.Loop; its values are the TERMS before each update,
        averaged over images: [S, 4].
      branches: pieces into which the starts are divided. TensorFlow runs them side by side, where
        one matrix product of this size would keep a single core busy.
    """
    initializer = model_def.xavier_uniform(0)  # overwritten by the checkpoint
    back_projection = tf.placeholder(tf.float32, [groups * batch, model_def.N_INPUT])
    z_encoded, _ = model_def.encoder(back_projection, initializer)
    zeros = tf.zeros_initializer()
    matrix = None
    with tf.variable_scope("recovery"):
        z = tf.get_variable("z", [groups, starts, batch, model_def.N_Z], initializer=zeros)
        y = tf.get_variable("y", [groups, batch, measurements or model_def.N_INPUT],
                            initializer=zeros, trainable=False)
        if measurements:
            matrix = tf.get_variable("A", [groups, model_def.N_INPUT, measurements],
                                     initializer=zeros, trainable=False)

    def evaluate():
        shares = np.bincount(np.arange(starts) % min(branches, starts)).tolist()  # sum: starts
        parts = [objective(part, y.read_value(), None if matrix is None else matrix.read_value(),
                           settings, initializer)
                 for part in tf.split(z.read_value(), shares, axis=1)]
        return Objective(*[tf.concat(values, 1) for values in zip(*parts)])

    final, step_counter = evaluate(), tf.train.get_or_create_global_step()

    def update():
        now = evaluate()
        loss = tf.reduce_sum(now.total_loss) / batch
        train_op = make_optimizer(settings, step_counter).minimize(loss, step_counter, [z])
        return train_op, tf.stack([tf.reduce_mean(getattr(now, term), [0, 2]) for term in TERMS], 1)

    loop = npu_session.Loop(update, iterations_per_loop)
    loop.check(settings.max_update_iter)
    own = [variable for variable in tf.global_variables()
           if not variable.op.name.startswith(("enc/", "gen/"))]
    return Graph(z, matrix, y, final, loop, tf.variables_initializer(own), back_projection,
                 z_encoded)


class Recovery:
    """A recovery graph with its session and a VAE's weights, usable for many measured batches.

    Args:
      settings: Settings.
      checkpoint_dir: folder with the VAE's checkpoint.
      groups, batch: measured batches per run, images per batch.
      measurements: m, or None for projection.
      encoder_start: add a start from the encoder of the linear estimate of each image.
      config: tf.ConfigProto.
      iterations_per_loop: updates per session.run.
    Raises:
      InputError: no readable checkpoint, one of another architecture, or max_update_iter is not
        a multiple of iterations_per_loop on the NPU.
    """

    def __init__(self, settings, checkpoint_dir, groups, batch, measurements, encoder_start,
                 config, iterations_per_loop=50):
        self.settings, self.encoder_start = settings, encoder_start
        self._iterations = iterations_per_loop
        graph = npu_session.new_graph()
        with graph.as_default():
            self.graph = build_graph(settings, groups,
                                     settings.num_random_restarts + bool(encoder_start), batch,
                                     measurements, iterations_per_loop,
                                     npu_session.branches(config))
            weights = [variable for variable in tf.global_variables()
                       if variable.op.name in model_def.VARIABLES]
            checkpoints = npu_session.Checkpoints(checkpoint_dir, weights)
        self._session = tf.Session(graph=graph, config=config)
        with graph.as_default():
            checkpoints.restore(self._session, required=True)
            self.graph.loop.prepare(self._session)
        graph.finalize()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session.close()

    def run(self, matrix, y, z0, back_projection=None, after_updates=None):
        """Recovers G x B images.

        Args:
          matrix: [G, 784, m], or None for projection.
          y: [G, B, m].
          z0: [G, S, B, 20], the random starts.
          back_projection: [G, B, 784], the encoder's input for the extra start.
          after_updates: function(updates done, get_x_hat) called every iterations_per_loop
            updates; get_x_hat() gives the images [G, S, B, 784] at that point.
        Returns:
          Estimate: x_hat [G, B, 784], z [G, B, 20], total_loss [G, B] and start [G, B] of the best
          start, and history [updates, S, 4]: the TERMS before each update, mean over images.
        Raises:
          FloatingPointError: some image has no start with a finite objective.
        """
        session, graph = self._session, self.graph
        if self.encoder_start:
            flat = np.reshape(back_projection, (-1, model_def.N_INPUT))
            encoded = session.run(graph.z_encoded, {graph.back_projection: flat})
            groups, _, batch, n_z = graph.z.shape.as_list()
            z0 = np.concatenate([z0, encoded.reshape(groups, 1, batch, n_z)], axis=1)
        session.run(graph.reset)
        graph.z.load(np.asarray(z0, np.float32), session)
        graph.y.load(np.asarray(y, np.float32), session)
        if graph.matrix is not None:
            graph.matrix.load(np.asarray(matrix, np.float32), session)
        history = self._update(after_updates)
        return best_start(*session.run([graph.final.x_hat, graph.z, graph.final.total_loss]),
                          history, self.settings)

    def _update(self, after_updates):
        done, history = 0, []
        while done < self.settings.max_update_iter:
            count = min(self._iterations, self.settings.max_update_iter - done)
            history.append(self.graph.loop.run(self._session, count))
            done += count
            if after_updates:
                after_updates(done, lambda: self._session.run(self.graph.final.x_hat))
        return np.concatenate(history)


def best_start(x_hat, z, total_loss, history, settings):
    """Keeps for each image the start with the lowest total_loss, the first of equals.

    Args: x_hat [G, S, B, 784], z [G, S, B, 20], total_loss [G, S, B] as evaluated.
    """
    total = np.where(np.isfinite(total_loss), total_loss, np.inf)
    lost = np.argwhere(~np.isfinite(total.min(axis=1)))
    if len(lost):
        raise FloatingPointError(
            f"the objective of image {lost[0][1]} in its batch is not finite from any start: try "
            f"a smaller --learning_rate than {settings.learning_rate}")
    start = total.argmin(axis=1)  # [G, B]
    groups, images = np.indices(start.shape)
    return Estimate(x_hat[groups, start, images], z[groups, start, images],
                    total[groups, start, images], start, history)
