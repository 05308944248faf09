"""The GAN that is one component of the mixture, and the classifier that weighs the data.

Tolstikhin et al. 2017, section 4.1: networks of two hidden layers of 16 units. Graph and the calls
that run it; no files, no flags. Variable names and shapes are the reference's. The graph is built
once for all components; the named variables are what counts (checkpoints, samples), and a chunk of
training iterations works on copies of them in the form that ops.py describes.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

import npu_session
import ops
from utils import in_batches

HIDDEN = 16
GENERATOR, DISCRIMINATOR, COPY, CLASSIFIER = (
    "GENERATOR", "DISCRIMINATOR", "DISCRIMINATOR_CP", "CLASSIFIER")

# Placeholders real_points, fake_points [n, dim, 1, 1] and noise [n, zdim] with n =
# tf_run_batch_size, and what follows from them: generated [n, dim, 1, 1], logits by name [n, 1],
# losses by name, c_training [n, 1], the classifier's probability that real_points are data.
Evaluation = collections.namedtuple(
    "Evaluation", "real_points fake_points noise generated logits losses c_training")


def build(options, count):
    """The graph of options.unrolled's class, ToyUnrolledGan or ToyGan, in the current graph.

    options: the flags of adagan_gmm.py. count: of training points.
    """
    return (ToyUnrolledGan if options.unrolled else ToyGan)(options, count)


def perceptron(inputs, outputs, activation):
    """(output float32 [n, outputs], [(W, b) of each layer]) in the current variable scope."""
    hidden, first = ops.linear(inputs, HIDDEN, "h0_lin")
    hidden, second = ops.linear(ops.ACTIVATIONS[activation](hidden), HIDDEN, "h1_lin")
    output, last = ops.linear(ops.ACTIVATIONS[activation](hidden), outputs, "h2_lin")
    return output, [first, second, last]


def generator(noise, dim, activation):
    """(G(noise) float32 [n, dim, 1, 1], variables); noise [n, zdim].

    The first one built in a graph ends in the node GENERATOR/output, which exports name.
    """
    with tf.variable_scope(GENERATOR, reuse=tf.AUTO_REUSE):
        output, variables = perceptron(noise, dim, activation)
        return tf.identity(tf.reshape(output, [-1, dim, 1, 1]), "output"), variables


def critic(scope, points, activation):
    """(logits float32 [n, 1], variables) of a discriminator or classifier; points [n, dim, ...]."""
    with tf.variable_scope(scope, reuse=tf.AUTO_REUSE):
        return perceptron(points, 1, activation)


def cross_entropy(logits, label):
    """Mean sigmoid cross-entropy (nats) of logits whose label is 1 or 0 throughout."""
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.fill(tf.shape(logits), float(label)), logits=logits))


def initial_values(shapes, seed, component, init_std, init_bias):
    """Start of a component: W ~ Normal(0, init_std), b = init_bias, from (seed, component, name).

    Args:
      shapes: dict variable name -> shape.
    Returns:
      dict name -> float32 array.
    """
    values = {}
    for name, shape in shapes.items():
        random = np.random.RandomState([seed, component, zlib.crc32(name.encode())])
        draw = init_std * random.standard_normal(shape) if name.endswith("/W") else init_bias
        values[name] = np.full(shape, draw, np.float32)
    return values


class Network:
    """One network's variables, and the copies that the training loop works on.

    Args:
      variables: [(W, b)] of its layers. optimizer: of ops. activation: of its hidden layers.
    """

    def __init__(self, scope, variables, optimizer, activation):
        self.optimizer, self._activation = optimizer, activation
        self._named = [variables] + [
            [tuple(_slot(variable, moment) for variable in layer) for layer in variables]
            for moment in optimizer.moments]
        self._powers = [tf.get_variable(f"{scope}/{name}", initializer=np.float32(value),
                                        trainable=False)
                        for name, value in optimizer.powers.items()]
        self._joined = [self._join(layers, kind) for kind, layers in enumerate(self._named)]
        self._copies = [[scratch(f"loop/{scope}/{kind}/h{number}", matrix.shape.as_list())
                         for number, matrix in enumerate(matrices)]
                        for kind, matrices in enumerate(self._joined)]

    def _join(self, layers, kind):
        always_on = 0.0 if kind else ops.ALWAYS_ON[self._activation]
        return [ops.joined(*layer, always_on) for layer in layers[:-1]] + [
            ops.joined(*layers[-1], None)]

    def parameters(self):
        """The trained variables W, b of each layer, in the order of creation."""
        return [variable for layer in self._named[0] for variable in layer]

    def fresh_slots(self):
        """Optimizer's variables -> float at the start of a component."""
        slots = {slot: 0.0 for layers in self._named[1:] for layer in layers for slot in layer}
        slots.update(zip(self._powers, self.optimizer.powers.values()))
        return slots

    def load_copies(self):
        """Operations that set the copies to the named variables."""
        return [copy.assign(matrix) for copies, matrices in zip(self._copies, self._joined)
                for copy, matrix in zip(copies, matrices)]

    def store_copies(self):
        """Operations that set the named variables to the copies."""
        assignments = []
        for copies, layers in zip(self._copies, self._named):
            for copy, (weights, biases) in zip(copies, layers):
                part = ops.parted(copy, biases.shape.as_list()[0])
                assignments += [weights.assign(part[0]), biases.assign(part[1])]
        return assignments

    def read(self):
        """ops.Weights of the copies."""
        values = [[copy.read_value() for copy in copies] for copies in self._copies]
        return ops.Weights(values[0], values[1:], [power.read_value() for power in self._powers])

    def write(self, weights):
        """Operations that set the copies to ops.Weights."""
        return [variable.assign(value) for variable, value
                in zip(self._flat(ops.Weights(self._copies[0], self._copies[1:], self._powers)),
                       self._flat(weights))]

    @staticmethod
    def _flat(weights):
        moments = [matrix for matrices in weights.moments for matrix in matrices]
        return list(weights.matrices) + moments + list(weights.powers)


def _slot(variable, moment):
    return tf.get_variable(f"{variable.op.name}/{moment}", variable.shape.as_list(),
                           initializer=tf.zeros_initializer(), trainable=False)


def scratch(name, shape, dtype=tf.float32):
    """A variable that no checkpoint holds."""
    return tf.get_variable(name, shape, dtype, tf.zeros_initializer(), trainable=False,
                           collections=[tf.GraphKeys.LOCAL_VARIABLES])


class Chunk:
    """The batches of the next iterations on the device, with the copies of what they train.

    Args:
      networks: list of Network. parts: dict name -> (shape [capacity, ...], dtype) of arrays whose
        row k belongs to iteration k.
    """

    def __init__(self, name, networks, parts):
        self._position = scratch(f"{name}/position", [], tf.int32)
        self._buffers = {part: scratch(f"{name}/{part}", shape, dtype)
                         for part, (shape, dtype) in parts.items()}
        self._sources = {part: tf.placeholder(dtype, shape)
                         for part, (shape, dtype) in parts.items()}
        loads = [operation for network in networks for operation in network.load_copies()]
        stores = [operation for network in networks for operation in network.store_copies()]
        self._begin = tf.group(self._position.assign(0), *loads, *[
            buffer.assign(self._sources[part]) for part, buffer in self._buffers.items()])
        self._end = tf.group(*stores)

    def next_batch(self):
        """({part: row of this iteration}, function that makes the step to the next row)."""
        position = self._position.read_value()
        rows = {part: tf.gather(buffer, position) for part, buffer in self._buffers.items()}
        return rows, lambda: self._position.assign(position + 1)

    @contextlib.contextmanager
    def loaded(self, session, count, **parts):
        """`with`: `count` iterations can run on these arrays [count, ...]; then variables hold."""
        feeds = {}
        for part, source in self._sources.items():
            feeds[source] = np.zeros(source.shape.as_list(), source.dtype.as_numpy_dtype)
            feeds[source][:count] = parts[part]  # one shape: the NPU compiles a graph per shape
        session.run(self._begin, feeds)
        yield
        session.run(self._end)


def targets(batch_size):
    """Labels of a stacked batch, float32 [2 * batch_size, 1]: data 1, then samples 0."""
    return np.repeat(np.float32([[1], [0]]), batch_size, axis=0)


class Gan:
    """What ToyGan and ToyUnrolledGan share.

    Args:
      options: the flags of adagan_gmm.py. count: of training points.
    Attributes:
      loop, classifier_loop: npu_session.Loop over training iterations of the GAN and of the
        mixture classifier. evaluation: Evaluation. networks: dict scope -> Network.
    """

    scopes = activation = None

    def __init__(self, options, count):
        self.options, self.count = options, count
        variables, self.evaluation = self._evaluation()
        self.networks = {
            scope: Network(scope, variables[scope], self._optimizer(scope), self.activation)
            for scope in self.scopes}
        self._points, self._set_points = self._point_set("loop/points")
        self._samples, self._set_samples = self._point_set("loop/samples")
        self._initialisation = self._assignable()
        self.probabilities = tf.sigmoid(critic(CLASSIFIER, self._points[:, :-1],
                                               self.activation)[0])
        batch, chunk = options.batch_size, options.log_every
        trained = [self.networks[scope] for scope in self.scopes if scope != CLASSIFIER]
        self._chunk = Chunk("loop/batches", trained, {
            "ids": ([chunk, batch], tf.int32),
            "noise": ([chunk, batch, options.latent_space_dim], tf.float32)})
        self._classifier_chunk = Chunk("loop/pairs", [self.networks[CLASSIFIER]], {
            "ids": ([chunk, 2, batch], tf.int32)})
        self.loop = npu_session.Loop(self._step, chunk)
        # On the NPU a session can repeat one operation by itself: not also the classifier's step.
        self.classifier_loop = npu_session.Loop(self._classifier_step, 1)

    # ------------------------------------------------------------ graph

    def _optimizer(self, scope):
        options = self.options
        rates = {GENERATOR: options.opt_g_learning_rate, CLASSIFIER: options.opt_learning_rate}
        return ops.optimizer(options.optimizer, rates.get(scope, options.opt_d_learning_rate),
                             options.opt_beta1)

    def _evaluation(self):
        """(variables by scope, Evaluation)."""
        options, act = self.options, self.activation
        shape = [options.tf_run_batch_size, options.toy_dataset_dim, 1, 1]
        real = tf.placeholder(tf.float32, shape, "real_points_ph")
        fake = tf.placeholder(tf.float32, shape, "fake_points_ph")
        noise = tf.placeholder(tf.float32, [shape[0], options.latent_space_dim], "noise_ph")
        made, variables = generator(noise, shape[1], act)
        variables, logits = {GENERATOR: variables}, {}
        for scope in self.scopes[1:]:
            logits[scope, "real"], variables[scope] = critic(scope, real, act)
            logits[scope, "fake"], _ = critic(scope, fake if scope == CLASSIFIER else made, act)
        names = {DISCRIMINATOR: "d_loss", COPY: "d_loss_cp", CLASSIFIER: "c_loss"}
        losses = {names[scope]: (cross_entropy(logits[scope, "real"], 1)
                                 + cross_entropy(logits[scope, "fake"], 0))
                  for scope in self.scopes[1:]}
        losses["g_loss"] = self.generator_loss(losses, logits)
        return variables, Evaluation(real, fake, noise, made, logits, losses,
                                     tf.sigmoid(logits[CLASSIFIER, "real"]))

    def _point_set(self, name):
        """(variable [count, dim + 1] of points with a one, (placeholder, assignment))."""
        shape = [self.count, self.options.toy_dataset_dim]
        source = tf.placeholder(tf.float32, shape)
        variable = scratch(name, [shape[0], shape[1] + 1])
        return variable, (source, variable.assign(ops.with_ones(source)).op)

    def _assignable(self):
        """(dict variable name -> placeholder, operation that assigns all of them)."""
        sources, assignments = {}, []
        for network in self.networks.values():
            for variable in network.parameters():
                source = tf.placeholder(tf.float32, variable.shape.as_list())
                sources[variable.op.name] = source
                assignments.append(variable.assign(source).op)
            assignments += [slot.assign(tf.fill(slot.shape.as_list(), np.float32(value))).op
                            for slot, value in network.fresh_slots().items()]
        return sources, tf.group(*assignments)

    def _step(self):
        """One training iteration on the next batch of the chunk; reports G's last biases."""
        state = {scope: self.networks[scope].read() for scope in self.scopes[:-1]}
        batch, advance = self._chunk.next_batch()
        real = tf.gather(self._points, batch["ids"])  # [B, dim + 1]
        state = self.iteration(state, real, ops.with_ones(batch["noise"]))
        return self._written(state, advance), state[GENERATOR].matrices[-1][-1]

    def _classifier_step(self):
        """One step of the classifier on the next pair of batches; reports its last bias."""
        batch, advance = self._classifier_chunk.next_batch()
        both = tf.concat([tf.gather(self._points, batch["ids"][1]),
                          tf.gather(self._samples, batch["ids"][0])], axis=0)
        state = {CLASSIFIER: self.critic_step(
            CLASSIFIER, self.networks[CLASSIFIER].read(), both)}
        return self._written(state, advance), state[CLASSIFIER].matrices[-1][-1]

    def _written(self, state, advance):
        values = [matrix for weights in state.values() for matrix in weights.matrices]
        with tf.control_dependencies(values):  # all reads come before any write
            return tf.group(*[operation for scope, weights in state.items()
                              for operation in self.networks[scope].write(weights)], advance())

    # ------------------------------------------------------------ one iteration

    def critic_step(self, scope, weights, batch):
        """Weights of a discriminator or classifier after one step on its loss.

        batch: float32 [2 B, dim + 1], data then samples, as of ops.with_ones.
        """
        optimizer, half = self.networks[scope].optimizer, batch.shape.as_list()[0] // 2
        values = ops.forward(batch, weights.matrices, self.activation)
        d_logits = (tf.sigmoid(values[-1]) - targets(half)) * (optimizer.gradient_scale / half)
        deltas = ops.backward(values, weights.matrices, d_logits, self.activation)
        return optimizer.update(weights, ops.matrix_gradients(values, deltas))

    def generator_step(self, weights, noise, made, matrices):
        """Weights of the generator after one step against a critic.

        Args:
          noise: as of ops.with_ones. made: ops.forward of it. matrices: of the critic.
        """
        optimizer, size = self.networks[GENERATOR].optimizer, noise.shape.as_list()[0]
        values = ops.forward(ops.with_ones(made[-1]), matrices, self.activation)
        d_logits = self.generator_slope(tf.sigmoid(values[-1])) * (
            optimizer.gradient_scale / size)
        deltas = ops.backward(values, matrices, d_logits, self.activation)
        d_made = ops.input_gradient(deltas, matrices)
        deltas = ops.backward(made, weights.matrices, d_made, self.activation)
        return optimizer.update(weights, ops.matrix_gradients(made, deltas))

    def iteration(self, state, real, noise):
        """The reference's iteration: d_steps of D, look-ahead, g_steps of G on one batch.

        Args:
          state: dict scope -> ops.Weights. real [B, dim + 1], noise [B, zdim + 1]: with ones.
        Returns:
          The new state. G(z) is computed once for all steps before G changes.
        """
        made = ops.forward(noise, state[GENERATOR].matrices, self.activation)
        batch = tf.concat([real, ops.with_ones(made[-1])], axis=0)
        for _ in range(self.options.d_steps):
            state = dict(state, DISCRIMINATOR=self.critic_step(
                DISCRIMINATOR, state[DISCRIMINATOR], batch))
        state, opponent = self.look_ahead(state, batch)
        for step in range(self.options.g_steps):
            if step > 0:
                made = ops.forward(noise, state[GENERATOR].matrices, self.activation)
            state = dict(state, GENERATOR=self.generator_step(
                state[GENERATOR], noise, made, opponent))
        return state

    # ------------------------------------------------------------ calls

    def set_points(self, session, points):
        """Gives the session the training points [N, dim, 1, 1]."""
        source, assignment = self._set_points
        session.run(assignment, {source: np.reshape(points, source.shape.as_list())})

    def set_samples(self, session, samples):
        """Gives the session the classifier's fake points [N, dim, 1, 1]."""
        source, assignment = self._set_samples
        session.run(assignment, {source: np.reshape(samples, source.shape.as_list())})

    def initialise(self, session, component):
        """Starts a component: all its variables as initial_values says, fresh optimizers."""
        sources, assignment = self._initialisation
        values = initial_values({name: source.shape.as_list() for name, source in sources.items()},
                                self.options.seed, component, self.options.init_std,
                                self.options.init_bias)
        session.run(assignment, {source: values[name] for name, source in sources.items()})

    def train(self, session, ids, noise):
        """Training iterations, at most options.log_every of them, in one go.

        Args:
          ids: int [n, batch_size], of points. noise: [n, batch_size, zdim].
        Returns:
          float32 [n, dim]: what _step reports of every iteration (the NPU: of the last).
        """
        with self._chunk.loaded(session, len(ids), ids=ids, noise=noise):
            return self.loop.run(session, len(ids))

    def train_classifier(self, session, ids):
        """Classifier steps on ids [n, 2, batch_size], of samples and of points; see train."""
        with self._classifier_chunk.loaded(session, len(ids), ids=ids):
            return self.classifier_loop.run(session, len(ids))

    def sample(self, session, noise):
        """G(noise) float32 [n, dim, 1, 1] of noise [n, zdim], any n."""
        def batch(rows):
            return session.run(self.evaluation.generated, {self.evaluation.noise: rows})
        return in_batches(batch, self.options.tf_run_batch_size, np.asarray(noise, np.float32))

    def point_probabilities(self, session):
        """float32 [N]: the classifier's probabilities that the training points are data."""
        return session.run(self.probabilities)[:, 0]

    def losses(self, session, points, noise):
        """{d_loss, g_loss, ..}: float.

        points: [tf_run_batch_size, dim, 1, 1]. noise: [tf_run_batch_size, zdim].
        """
        wanted = {name: loss for name, loss in self.evaluation.losses.items() if name != "c_loss"}
        feeds = {self.evaluation.real_points: points, self.evaluation.noise: noise}
        return {name: float(value) for name, value in session.run(wanted, feeds).items()}


class ToyUnrolledGan(Gan):
    """tanh; G learns against a copy of D that has gone unrolling_steps further on the batch.

    No gradient goes through those steps: this is a look-ahead, not the unrolled GAN of Metz et
    al. 2017. The copy's Adam moments are its own and are not rolled back (reference).
    """

    scopes, activation = (GENERATOR, DISCRIMINATOR, COPY, CLASSIFIER), "tanh"

    def generator_loss(self, losses, logits):
        """Minimax (JS) or non-saturating (JS_modified) loss against the copy of D."""
        if self.options.objective == "JS":
            return -losses["d_loss_cp"]
        return cross_entropy(logits[COPY, "fake"], 1)

    def generator_slope(self, probability):
        """Derivative of generator_loss by a sample's logit (times n), of the probability "data"."""
        return -probability if self.options.objective == "JS" else probability - 1

    def look_ahead(self, state, batch):
        """(state, matrices of the critic for G): the copy starts from D and goes ahead."""
        copy = state[COPY]._replace(matrices=state[DISCRIMINATOR].matrices)
        for _ in range(self.options.unrolling_steps):
            copy = self.critic_step(COPY, copy, batch)
        return dict(state, DISCRIMINATOR_CP=copy), copy.matrices


class ToyGan(Gan):
    """relu; G learns against D itself, with the non-saturating loss whatever the objective."""

    scopes, activation = (GENERATOR, DISCRIMINATOR, CLASSIFIER), "relu"

    def generator_loss(self, _, logits):
        """Non-saturating loss against D."""
        return cross_entropy(logits[DISCRIMINATOR, "fake"], 1)

    def generator_slope(self, probability):
        """Derivative of generator_loss by a sample's logit (times n), of the probability "data"."""
        return probability - 1

    def look_ahead(self, state, _):
        """(state, matrices of the critic for G)."""
        return state, state[DISCRIMINATOR].matrices
