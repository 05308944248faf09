"""MASF: AlexNet, the metric net, and one episode with its three Adam updates. Graph only.

Dou, Coelho de Castro, Kamnitsas, Glocker, "Domain Generalization via Model-Agnostic Learning of
Semantic Features", NeurIPS 2019 (arXiv 1910.13580), algorithm 1. Variable names and shapes are
those of the reference (biomedia-mira/masf), so checkpoints interchange.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import zlib

import tensorflow.compat.v1 as tf

import npu_session
import utils

NUM_CLASSES = 7
SIDE = 227  # pixels
LOCAL_WEIGHT = 0.005  # beta_2 of the paper; beta_1 is 1

Convolution = collections.namedtuple("Convolution", "kernel stride groups normalised pooled")
CONVOLUTIONS = collections.OrderedDict([
    ("conv1", Convolution((11, 11, 3, 96), 4, 1, True, True)),  # SAME: 57 x 57, Caffe's VALID: 55
    ("conv2", Convolution((5, 5, 48, 256), 1, 2, True, True)),
    ("conv3", Convolution((3, 3, 256, 384), 1, 1, False, False)),
    ("conv4", Convolution((3, 3, 192, 384), 1, 2, False, False)),
    ("conv5", Convolution((3, 3, 192, 256), 1, 2, False, True)),
])
DENSE = collections.OrderedDict([("fc6", (6 * 6 * 256, 4096)), ("fc7", (4096, 4096)),
                                 ("fc8", (4096, NUM_CLASSES))])
METRIC = collections.OrderedDict([("metric/w1", (4096, 1024)), ("metric/b1", (1024,)),
                                  ("metric/w2", (1024, 256)), ("metric/b2", (256,))])
PRETRAINED = tuple(CONVOLUTIONS) + ("fc6", "fc7")  # layers that bvlc_alexnet.npy provides

# Standard deviations of the random start where He's rule does not serve. The features of an
# untrained AlexNet on images of -124..151 are some ten times those of the trained one: a small
# fc8 starts the loss near ln 7, a small metric net the distances near the margin.
RANDOM_START_STD = {"fc8/weights": 1e-4, "metric/w1": 4e-4, "metric/w2": 0.02}

Settings = collections.namedtuple(
    "Settings", "inner_lr outer_lr metric_lr margin clip_norm keep_prob episodic global_alignment "
                "local_clustering divergence second_order seed meta_lr",
    defaults=[None])  # meta_lr: None for outer_lr
Forward = collections.namedtuple("Forward", "logits features fc6")
Domains = collections.namedtuple("Domains", "logits task_losses forward")  # [D, B, 7], [D, B]
Losses = collections.namedtuple(
    "Losses", "kd_b_a kd_b_a1 soft_b soft_a soft_a1 global_loss local_loss metric_loss embedding")
Episode = collections.namedtuple(
    "Episode", "logits task_losses source_loss fast_weights fast_logits fast_task_losses "
               "group_features losses inner_gradients task_gradients meta_gradients "
               "metric_gradients terms")
TERMS = ("source_loss", "source_accuracy", "metatrain_source_1_loss", "metatrain_source_2_loss",
         "metatrain_source_1_accuracy", "metatrain_source_2_accuracy", "metatrain_global_loss",
         "metatrain_metric_loss", "metatest_loss")  # what a step reports, then the class counts


# ---------------------------------------------------------------- variables


def variable_shapes():
    """Shapes of the 20 trainable variables by name without `model/`, in the reference's order."""
    shapes = collections.OrderedDict()
    for name, kernel in [(name, layer.kernel) for name, layer in CONVOLUTIONS.items()] + list(
            DENSE.items()):
        shapes[name + "/weights"], shapes[name + "/biases"] = kernel, kernel[-1:]
    shapes.update(METRIC)
    return shapes


def _key(seed, name):
    return [seed, zlib.crc32(name.encode()) & 0x7FFFFFFF]


def glorot_uniform(seed):
    """Initialiser: uniform in +-sqrt(6 / (fan_in + fan_out)), also for biases, as the reference's.

    The fans of a bias [n] are n and n. Stateless: fixed by (seed, name) in every TensorFlow.
    """
    def initializer(name, shape):
        field = 1
        for size in shape[:-2]:
            field *= size
        fans = 2 * shape[0] if len(shape) == 1 else field * (shape[-2] + shape[-1])
        limit = (6.0 / fans) ** 0.5
        return lambda: tf.random.stateless_uniform(shape, seed=_key(seed, name), minval=-limit,
                                                   maxval=limit)
    return initializer


def random_start(seed):
    """Initialiser for training without bvlc_alexnet.npy: He normal, biases 0.

    He's standard deviation is sqrt(2 / fan_in); RANDOM_START_STD overrules it.
    """
    def initializer(name, shape):
        if len(shape) == 1:
            return lambda: tf.zeros(shape)
        fan_in = 1
        for size in shape[:-1]:
            fan_in *= size
        std = RANDOM_START_STD.get(name, (2.0 / fan_in) ** 0.5)
        return lambda: std * tf.random.stateless_normal(shape, seed=_key(seed, name))
    return initializer


def create_variables(initializer):
    """Makes the 20 variables below `model/` and the global step; returns the former by name.

    initializer: function (name, shape) -> function that draws; see glorot_uniform, random_start.
    """
    with tf.variable_scope("model"):
        variables = collections.OrderedDict(
            (name, tf.get_variable(name, initializer=initializer(name, shape), dtype=tf.float32))
            for name, shape in variable_shapes().items())
        tf.get_variable("Variable", [], tf.int32, tf.zeros_initializer(), trainable=False,
                        collections=[tf.GraphKeys.GLOBAL_VARIABLES, tf.GraphKeys.GLOBAL_STEP])
    return variables


# ---------------------------------------------------------------- networks


def convolutions(images, weights, twice_differentiable=False):
    """conv1 to pool5: float32 [N, 227, 227, 3], BGR, mean removed -> OrderedDict of activations.

    The last one, "pool5", is float32 [N, 6, 6, 256].
    """
    activations, hidden = collections.OrderedDict(), images
    for name, layer in CONVOLUTIONS.items():
        hidden = utils.conv_block(hidden, weights[name + "/weights"], weights[name + "/biases"],
                                  layer.stride, layer.groups)
        activations[name] = hidden
        if layer.normalised:
            hidden = utils.lrn(hidden, twice_differentiable)
            activations[name.replace("conv", "norm")] = hidden
        if layer.pooled:
            hidden = utils.max_pool(hidden)
            activations[name.replace("conv", "pool")] = hidden
    return activations


def dense(x, weights, name, activation=None):
    """Layer fc6, fc7 or fc8 on x [N, in]."""
    return utils.fc(x, weights[name + "/weights"], weights[name + "/biases"], activation)


def no_dropout(x, _):
    """For evaluation."""
    return x


def alexnet(images, weights, dropout=no_dropout, twice_differentiable=False):
    """The feature extractor and the task net.

    Args:
      images: as for convolutions. weights: tensors or variables by name.
      dropout: function (x, "dropout6" or "dropout7") -> x with entries zeroed.
    Returns:
      Forward: logits [N, 7], features = fc7 before its dropout [N, 4096], fc6 before its dropout.
    """
    pool5 = convolutions(images, weights, twice_differentiable)["pool5"]
    fc6 = dense(tf.reshape(pool5, [-1, DENSE["fc6"][0]]), weights, "fc6", "relu")
    features = dense(dropout(fc6, "dropout6"), weights, "fc7", "relu")
    return Forward(dense(dropout(features, "dropout7"), weights, "fc8"), features, fc6)


def embed(features, weights):
    """The metric net: features [N, 4096] -> embedding [N, 256], not normalised."""
    hidden = utils.fc(features, weights["metric/w1"], weights["metric/b1"], "leaky_relu")
    return utils.fc(hidden, weights["metric/w2"], weights["metric/b2"], "leaky_relu")


# ---------------------------------------------------------------- one episode


def episode(images, labels, weights, settings, step):
    """Losses and gradients of one episode, all at the current weights; updates nothing.

    The same numbers as the reference's six forward and four backward passes: a and a1 go through
    the network at theta together and give the inner and the task gradient in one; a, a1 and b go
    through it at theta' together, and the metric group reuses their fc6.

    Several processes with a share of the images each compute what one would with all of them: the
    inner gradient is summed over them, and each has the semantic losses of all samples.

    Args:
      images: float32 [3, B, 227, 227, 3]: meta-train a, meta-train a1, meta-test b.
      labels: one-hot float32 [3, B, 7].
      weights: the 20 tensors by name. settings: Settings. step: integer tensor, for the dropout.
    Returns:
      Episode. Gradients, not clipped, are OrderedDicts by variable name; meta and metric ones are
      empty if their losses are switched off. Without `episodic`, theta' = theta and the task loss
      is the mean over all three domains, as in plain training.
    """
    theta = collections.OrderedDict((name, weights[name]) for name in weights
                                    if name not in METRIC)
    if settings.episodic:
        source = domains_forward(images[:2], labels[:2], theta, settings, step, "inner")
        own = _gradients(tf.reduce_sum(source.task_losses) / 2.0, theta)
        inner = _scaled(_averaged(own), npu_session.size())
        task = _scaled(inner, 1.0 / (npu_session.size() * images.shape.as_list()[1]))
        fast_weights = inner_step(theta, inner, settings)
        outer = domains_forward(images, labels, fast_weights, settings, step, "outer")
    else:
        source = outer = domains_forward(images, labels, theta, settings, step, "outer")
        task = _averaged(_gradients(tf.reduce_mean(source.task_losses), theta))
        fast_weights, inner = theta, collections.OrderedDict()
    group = group_features(outer.forward, labels, fast_weights, settings, step)
    losses = semantic_losses(outer.logits, labels, group, weights, settings)
    meta = _averaged(_gradients(_meta_loss(losses, outer.task_losses, settings), weights))
    metric = (_averaged(_gradients(losses.metric_loss, {name: weights[name] for name in METRIC}))
              if settings.local_clustering else collections.OrderedDict())
    return Episode(source.logits, source.task_losses, tf.reduce_mean(source.task_losses),
                   fast_weights, outer.logits, outer.task_losses, group, losses, inner, task, meta,
                   metric, _terms(labels, source, outer, losses))


def domains_forward(images, labels, weights, settings, step, name):
    """Domains [D, B, ...] through the network as one batch: Domains.

    name: of the pass, for its dropout.
    """
    domains, batch = images.shape.as_list()[:2]
    forward = alexnet(tf.reshape(images, [domains * batch, SIDE, SIDE, 3]), weights,
                      dropout_layers(settings, step, name), settings.second_order)
    logits = tf.reshape(forward.logits, [domains, batch, NUM_CLASSES])
    return Domains(logits, utils.xent(logits, labels), forward)


def dropout_layers(settings, step, name):
    """The `dropout` of alexnet, its masks fixed by (seed, step) and the pass's name."""
    def dropout(x, layer):
        process = f"/{npu_session.rank()}" if npu_session.rank() else ""  # masks of its own
        seed = _key(0, f"{name}/{layer}{process}")[1] ^ settings.seed
        return utils.dropout(x, settings.keep_prob,
                             tf.stack([tf.constant(seed, tf.int32), tf.cast(step, tf.int32)]))
    return dropout


def inner_step(theta, gradients, settings):
    """theta' = theta - alpha * clip(gradient), the gradient a constant unless second_order."""
    fast = collections.OrderedDict(theta)
    for name, gradient in clipped(gradients, settings.clip_norm).items():
        constant = gradient if settings.second_order else tf.stop_gradient(gradient)
        fast[name] = theta[name] - settings.inner_lr * constant
    return fast


def group_features(forward, labels, weights, settings, step):
    """Features of the metric group, the first third of each of the three domains: [B, 4096].

    With dropout the group gets a mask of its own on fc6, as in the reference's own pass for it.
    """
    batch = labels.shape.as_list()[1]
    if settings.keep_prob == 1:
        return _first_third(forward.features, batch)
    fc6 = dropout_layers(settings, step, "group")(_first_third(forward.fc6, batch), "dropout6")
    return dense(fc6, weights, "fc7", "relu")


def _first_third(rows, batch):
    """[3 * B, n] -> [3 * (B // 3), n]: the first third of each domain."""
    width = rows.shape.as_list()[1]
    return tf.reshape(tf.reshape(rows, [3, batch, width])[:, :batch // 3], [-1, width])


def semantic_losses(logits, labels, group, weights, settings):
    """L_global and L_local of the meta-test domain with both meta-train domains.

    Args:
      logits, labels: float32 [3, B, 7]. group: features of the metric group [3 * (B // 3), 4096].
        Of several processes: this one's; the losses are of the samples of all.
    Returns:
      Losses: the two alignments and softened distributions, their mean global_loss; local_loss,
      metric_loss = 0.005 * local_loss, the group's embedding.
    """
    batch, divergence = labels.shape.as_list()[1], utils.DIVERGENCES[settings.divergence]
    group_labels = npu_session.gathered(
        _first_third(tf.reshape(labels, [-1, NUM_CLASSES]), batch))
    logits, labels = ([npu_session.gathered(domain) for domain in tf.unstack(array)]
                      for array in (logits, labels))
    pairs = []
    for other in (0, 1):
        both = utils.present(labels[2]) * utils.present(labels[other])
        pairs.append(utils.kd(logits[2], labels[2], logits[other], labels[other], both,
                              divergence))
    (kd_a, soft_b, soft_a), (kd_a1, _, soft_a1) = pairs
    embedding = npu_session.gathered(embed(group, weights))
    local_loss = utils.triplet_semihard_loss(tf.argmax(group_labels, 1), embedding,
                                             settings.margin)
    return Losses(kd_a, kd_a1, soft_b, soft_a, soft_a1, (kd_a + kd_a1) / 2.0, local_loss,
                  LOCAL_WEIGHT * local_loss, embedding)


def _meta_loss(losses, fast_task_losses, settings):
    """What the switches leave of the outer loss; None if nothing.

    The episodic scheme alone needs some loss of the meta-test domain: its cross entropy at theta'
    (as in MLDG, Li et al. 2018).
    """
    parts = [losses.global_loss] * settings.global_alignment
    parts += [losses.metric_loss] * settings.local_clustering
    if not parts and settings.episodic:
        parts = [tf.reduce_mean(fast_task_losses[2])]
    return tf.add_n(parts) if parts else None


def _gradients(loss, weights):
    """OrderedDict of d loss / d weight for the weights that the loss depends on."""
    gradients = tf.gradients(loss, list(weights.values())) if loss is not None else ()
    return collections.OrderedDict((name, gradient) for name, gradient in zip(weights, gradients)
                                   if gradient is not None)


def _averaged(gradients):
    """Their means over all processes."""
    return collections.OrderedDict(zip(gradients, npu_session.average_gradients(
        list(gradients.values()))))


def _scaled(gradients, factor):
    return collections.OrderedDict((name, factor * gradient)
                                   for name, gradient in gradients.items())


def clipped(gradients, norm):
    """OrderedDict of each gradient with at most this L2 norm; unchanged for norm None."""
    if norm is None:
        return gradients
    return collections.OrderedDict((name, tf.clip_by_norm(gradient, norm))
                                   for name, gradient in gradients.items())


def _terms(labels, source, outer, losses):
    """float32 [9 + 7]: TERMS, then the samples per category of the metric group."""
    means = [tf.reduce_mean(source.task_losses[domain]) for domain in (0, 1)]
    accuracies = [utils.accuracy(source.logits[domain], labels[domain]) for domain in (0, 1)]
    third = labels.shape.as_list()[1] // 3
    terms = tf.stack([tf.reduce_mean(source.task_losses), (accuracies[0] + accuracies[1]) / 2.0]
                     + means + accuracies + [losses.global_loss, losses.metric_loss,
                                             tf.reduce_mean(outer.task_losses[2])])
    counts = npu_session.size() * tf.reduce_sum(labels[:, :third], [0, 1])
    return npu_session.average(tf.concat([terms, counts], 0))


# ---------------------------------------------------------------- updates


def updates(gradients, variables, settings):
    """The three Adam updates (0.9, 0.999, 1e-8, separate slots), after all gradients are there.

    The reference leaves their order to chance, so that the first may change weights which the
    others still read; the paper's algorithm takes all gradients at the same weights.

    Args:
      gradients: Episode. variables: of create_variables.
    Returns:
      Operation; the first update advances the global step.
    """
    plan = [(gradients.task_gradients, settings.outer_lr),
            (clipped(gradients.meta_gradients, settings.clip_norm),
             settings.outer_lr if settings.meta_lr is None else settings.meta_lr),
            (gradients.metric_gradients, settings.metric_lr)]
    ready = [gradients.terms] + [gradient for part, _ in plan for gradient in part.values()]
    update, step = tf.group(*ready), tf.train.get_global_step()
    for part, rate in plan:
        if not part:
            continue
        with tf.control_dependencies([update]):
            optimizer = npu_session.wrap_optimizer(tf.train.AdamOptimizer(rate))
            update = optimizer.apply_gradients(
                [(gradient, variables[name]) for name, gradient in part.items()],
                global_step=step if part is gradients.task_gradients else None)
    return update


def train_step(images, labels, variables, settings):
    """One episode and its updates: (train_op, terms float32 [9 + 7], see TERMS)."""
    weights = collections.OrderedDict(
        (name, variable.read_value()) for name, variable in variables.items())
    step = tf.identity(tf.train.get_global_step())
    gradients = episode(images, labels, weights, settings, step)
    return updates(gradients, variables, settings), gradients.terms


def evaluation(images, variables):
    """Forward without dropout: (logits [N, 7], features [N, 4096], embedding [N, 256])."""
    forward = alexnet(images, variables)
    return forward.logits, forward.features, embed(forward.features, variables)
