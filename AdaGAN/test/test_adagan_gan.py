"""Networks, losses, hand-written gradients, the training loop: golden values, tf.gradients."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import adagan_gmm
import gan
import npu_session
import ops
from golden_rules import BATCH, BATCHES, assert_close, fill, find_seed, inputs, load

POINTS = BATCH * BATCHES
CASES = {
    "unrolled_js_sgd": [], "unrolled_js_sgd_native": [],
    "unrolled_jsmod_adam": ["--objective=JS_modified", "--optimizer=adam"],
    "unrolled_js_sgd_d2g2u3": ["--d_steps=2", "--g_steps=2", "--unrolling_steps=3"],
    "toy_sgd": ["--unrolled=False"]}
LOSS_SCOPES = {"d_loss": gan.DISCRIMINATOR, "d_loss_cp": gan.COPY, "g_loss": gan.GENERATOR,
               "c_loss": gan.CLASSIFIER}
BATCH_IDS = np.arange(POINTS).reshape(BATCHES, BATCH)


def rows(array, batch):
    return array[BATCH * batch:BATCH * (batch + 1)]


class Case:
    """The GAN of a golden case in a session, filled by the golden rule, REAL as its points."""

    def __init__(self, name, flags):
        self.golden, self.inputs = load("gan_" + name), inputs(find_seed())
        self.model = gan.build(options(*flags), POINTS)
        self.names = [variable.op.name for network in self.model.networks.values()
                      for variable in network.parameters()]
        self.native = name.endswith("native")
        self.session = None

    def begin(self):
        """State S0."""
        session = self.session
        session.run(tf.global_variables_initializer())
        self.model.initialise(session, 0)
        for variable in tf.trainable_variables():
            variable.load(fill(variable.op.name, variable.shape.as_list(), find_seed(),
                               self.native), session)
        self.model.set_points(session, self.inputs.real)
        self.model.set_samples(session, self.inputs.fake)

    def feeds(self, batch):
        """Evaluation's placeholders on one batch."""
        evaluation = self.model.evaluation
        return {evaluation.real_points: rows(self.inputs.real, batch),
                evaluation.fake_points: rows(self.inputs.fake, batch),
                evaluation.noise: rows(self.inputs.noise, batch)}

    def train(self, *batches):
        """The iterations of these batches in one run of the loop; its reports."""
        noise = self.inputs.noise.reshape(BATCHES, BATCH, -1)
        return self.model.train(self.session, BATCH_IDS[list(batches)], noise[list(batches)])

    def variables(self):
        values = self.session.run(tf.trainable_variables())
        return dict(zip([variable.op.name for variable in tf.trainable_variables()], values))

    def assert_variables(self, prefix, scope=""):
        for name, value in self.variables().items():
            if name.startswith(scope):
                assert_close(value, self.golden[prefix + name], what=prefix + name)

    def assert_evaluation(self, prefix, batch):
        evaluation, names = self.model.evaluation, self.model.evaluation.losses
        made, losses = self.session.run([evaluation.generated, names], self.feeds(batch))
        assert_close(made[..., 0, 0], self.golden[prefix + "G"], what=prefix + "G")
        for name in names:
            assert_close(losses[name], self.golden[prefix + name], what=prefix + name)


def options(*flags):
    """Flags of the golden cases: the reference's, but small batches everywhere."""
    return adagan_gmm.parse_args(["--tf_run_batch_size=64", "--log_every=3"] + list(flags))


class Pieces:
    """The steps of an iteration one by one, on the loop's copies, with losses in between."""

    def __init__(self, model):
        self.model = model
        self.state = {scope: model.networks[scope].read() for scope in model.scopes[:-1]}
        self.values = {}

    def iteration(self, real, noise):
        """Adds the traces of one iteration on real [B, dim, 1, 1] and noise [B, zdim]."""
        model, opponent = self.model, gan.DISCRIMINATOR
        noise, made = ops.with_ones(tf.constant(noise)), None
        made = ops.forward(noise, self.state[gan.GENERATOR].matrices, model.activation)
        batch = tf.concat([ops.with_ones(tf.constant(np.float32(real[..., 0, 0]))),
                           ops.with_ones(made[-1])], axis=0)
        for _ in range(model.options.d_steps):
            self.note("d_loss_before", self.critic_loss(gan.DISCRIMINATOR, batch))
            self.step(gan.DISCRIMINATOR, batch)
            self.note("d_loss_after", self.critic_loss(gan.DISCRIMINATOR, batch))
        if gan.COPY in model.scopes:
            opponent = gan.COPY
            self.state[gan.COPY] = self.state[gan.COPY]._replace(
                matrices=self.state[gan.DISCRIMINATOR].matrices)
            self.note("d_loss_cp_rollback", self.critic_loss(gan.COPY, batch))
            for _ in range(model.options.unrolling_steps):
                self.step(gan.COPY, batch)
                self.note("d_loss_cp_unroll", self.critic_loss(gan.COPY, batch))
        for _ in range(model.options.g_steps):
            made = ops.forward(noise, self.state[gan.GENERATOR].matrices, model.activation)
            self.note("g_loss_before", self.generator_loss(opponent, batch, made))
            self.state[gan.GENERATOR] = model.generator_step(
                self.state[gan.GENERATOR], noise, made, self.state[opponent].matrices)
            made = ops.forward(noise, self.state[gan.GENERATOR].matrices, model.activation)
            self.note("g_loss_after", self.generator_loss(opponent, batch, made))

    def note(self, name, value):
        self.values.setdefault("trace/" + name, []).append(value)

    def step(self, scope, batch):
        self.state[scope] = self.model.critic_step(scope, self.state[scope], batch)

    def logits(self, scope, points):
        return ops.forward(points, self.state[scope].matrices, self.model.activation)[-1]

    def critic_loss(self, scope, batch):
        logits = self.logits(scope, batch)
        return gan.cross_entropy(logits[:BATCH], 1) + gan.cross_entropy(logits[BATCH:], 0)

    def generator_loss(self, scope, batch, made):
        """Of the samples, and of the data in the case of JS, which contribute no gradient."""
        fake, model = self.logits(scope, ops.with_ones(made[-1])), self.model
        if isinstance(model, gan.ToyUnrolledGan) and model.options.objective == "JS":
            return -(gan.cross_entropy(self.logits(scope, batch[:BATCH]), 1)
                     + gan.cross_entropy(fake, 0))
        return gan.cross_entropy(fake, 1)


@pytest.fixture(scope="module", params=sorted(CASES))
def shared(request):
    """(Case, Pieces) in a session that the golden tests of one case share."""
    with npu_session.new_graph().as_default():
        case = Case(request.param, CASES[request.param])
        pieces = Pieces(case.model)
        for batch in range(BATCHES):
            pieces.iteration(rows(case.inputs.real, batch), rows(case.inputs.noise, batch))
        config = npu_session.session_config(adagan_gmm.parse_args(["--threads=1"]))
        with tf.Session(config=config) as case.session:
            yield case, pieces


@pytest.fixture
def case(shared):
    """The Case in state S0."""
    shared[0].begin()
    return shared[0]


# ---------------------------------------------------------------- golden values


def test_golden_start(case):
    """Names, shapes, samples, logits, losses and their gradients in state S0."""
    assert case.names == list(case.golden["var_names"])
    case.assert_evaluation("init/", 0)
    evaluation, tags = case.model.evaluation, {
        gan.DISCRIMINATOR: "d", gan.COPY: "cp", gan.CLASSIFIER: "c"}
    logits, training = case.session.run([evaluation.logits, evaluation.c_training],
                                        case.feeds(0))
    for (scope, kind), value in logits.items():
        key = f"init/logits/{tags[scope]}_{kind}"
        assert_close(value[:, 0], case.golden[key], what=key)
    assert_close(training[:, 0], case.golden["init/c_training"])
    for loss, tensor in evaluation.losses.items():
        variables = tf.trainable_variables(LOSS_SCOPES[loss] + "/")
        gradients = case.session.run(tf.gradients(tensor, variables), case.feeds(0))
        for variable, gradient in zip(variables, gradients):
            key = f"init/grad/{loss}/{variable.op.name}"
            assert_close(gradient, case.golden[key], what=key)


def test_golden_iterations(case):
    """All variables and losses after iteration 1, and after two more in one run of the loop."""
    reports = [case.train(0)]
    case.assert_variables("it1/var/")
    case.assert_evaluation("it1/", 0)
    reports.append(case.train(1, 2))
    case.assert_variables("it3/var/")
    case.assert_evaluation("it3/", 2)
    for report, prefix in ((reports[0][0], "it1"), (reports[1][1], "it3")):
        assert_close(report, case.golden[prefix + "/var/GENERATOR/h2_lin/b"])
    assert_close(case.model.sample(case.session, case.inputs.noise)[..., 0, 0],
                 case.golden["final/sample"])


def test_golden_classifier(case):
    """Three steps with their losses before and after, and the probabilities of all points."""
    case.train(0, 1, 2)
    loss = case.model.evaluation.losses["c_loss"]
    for batch in range(BATCHES):
        for when, key in ((0, "c/loss_before_"), (1, "c/loss_after_")):
            if when:
                ids = np.stack([BATCH_IDS[batch]] * 2)[None]
                case.model.train_classifier(case.session, ids)
            found = case.session.run(loss, case.feeds(batch))
            assert_close(found, case.golden[f"{key}{batch}"], what=key)
        if batch in (0, 2):
            case.assert_variables(f"c{batch + 1}/var/", gan.CLASSIFIER)
    assert_close(case.model.point_probabilities(case.session), case.golden["c3/prob_real"])


def test_golden_trace_of_every_step(case, shared):
    """Losses before and after every single step of D, its copy and G, in three iterations."""
    _, pieces = shared
    case.session.run([operation for network in case.model.networks.values()
                      for operation in network.load_copies()])
    for key, values in case.session.run(pieces.values).items():
        assert_close(values, case.golden[key], what=key)


# ---------------------------------------------------------------- the loop's own mathematics


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_hand_written_gradients_equal_tensorflows(activation):
    """Also for the unit that is always on: its column gets no gradient at all."""
    random = np.random.RandomState(3)
    with tf.Graph().as_default(), tf.Session() as session:
        layers = [[tf.constant(random.standard_normal(shape), tf.float32)
                   for shape in ((size, units), (units,))]
                  for size, units in ((3, 16), (16, 16), (16, 1))]
        always_on = ops.ALWAYS_ON[activation]
        matrices = [ops.joined(*layers[0], always_on), ops.joined(*layers[1], always_on),
                    ops.joined(*layers[2], None)]
        points = tf.constant(random.standard_normal((20, 3)), tf.float32)
        hidden = points
        for weights, biases in layers[:-1]:
            hidden = ops.ACTIVATIONS[activation](tf.matmul(hidden, weights) + biases)
        output = tf.matmul(hidden, layers[-1][0]) + layers[-1][1]
        values = ops.forward(ops.with_ones(points), matrices, activation)
        slope = tf.constant(random.standard_normal((20, 1)), tf.float32)
        deltas = ops.backward(values, matrices, slope, activation)
        ours = ops.matrix_gradients(values, deltas) + [ops.input_gradient(deltas, matrices)]
        flat = [tensor for layer in layers for tensor in layer]
        expected = tf.gradients(output, flat + [points], slope)
        ours, expected, outputs = session.run([ours, expected, [values[-1], output]])
    assert_close(outputs[0], outputs[1], 1e-6)
    for number, matrix in enumerate(ours[:-1]):
        units = layers[number][1].shape.as_list()[0]
        assert_close(matrix[:-1, :units], expected[2 * number], 1e-6)
        assert_close(matrix[-1, :units], expected[2 * number + 1], 1e-6)
        np.testing.assert_array_equal(matrix[:, units:], 0)
    assert_close(ours[-1], expected[-1], 1e-6)


def trained(*flags, counts=(6,), dim=2):
    """[{name: value}] of all variables after 6 iterations, for each number of them per run."""
    args = adagan_gmm.parse_args(["--batch_size=8", "--tf_run_batch_size=5", "--threads=1",
                                  "--log_every=6", f"--dim={dim}"] + list(flags))
    random, found = np.random.RandomState(0), []
    points, ids = random.standard_normal((50, dim, 1, 1)), random.randint(50, size=(6, 8))
    noise = random.standard_normal((6, 8, args.latent_space_dim))
    with npu_session.new_graph().as_default():
        model, variables = gan.build(args, 50), tf.global_variables()
        with tf.Session(config=npu_session.session_config(args)) as session:
            session.run(tf.global_variables_initializer())
            model.set_points(session, points)
            for count in counts:
                model.initialise(session, 0)
                for first in range(0, 6 if count else 0, count or 1):
                    model.train(session, ids[first:first + count], noise[first:first + count])
                values = session.run(variables)
                found.append(dict(zip([variable.op.name for variable in variables], values)))
    return found


@pytest.mark.parametrize("flags", [
    [], ["--optimizer=adam"], ["--unrolled=False"], ["--unrolled=False", "--optimizer=adam"]])
def test_the_number_of_iterations_per_run_does_not_matter(flags):
    """Bit for bit: copies are loaded and stored at every boundary."""
    whole, *others = trained(*flags, counts=(6, 1, 4))
    for parts in others:
        for name, value in whole.items():
            np.testing.assert_array_equal(parts[name], value, err_msg=name)


@pytest.mark.parametrize("steps", ["--d_steps=0", "--g_steps=0", "--unrolling_steps=0"])
def test_steps_left_out_leave_their_network_alone(steps):
    still = {"--d_steps=0": gan.DISCRIMINATOR, "--g_steps=0": gan.GENERATOR}.get(steps)
    before, after = trained(steps, counts=(0, 6))
    for name, value in after.items():
        if still and name.startswith(still + "/"):
            np.testing.assert_array_equal(value, before[name])
    if steps == "--unrolling_steps=0":  # then the copy is D
        for layer in ("h0_lin/W", "h2_lin/b"):
            np.testing.assert_array_equal(after[f"{gan.COPY}/{layer}"],
                                          after[f"{gan.DISCRIMINATOR}/{layer}"])


def test_other_dimensions_and_latent_spaces():
    values, = trained("--zdim=3", dim=4)
    assert values["GENERATOR/h0_lin/W"].shape == (3, 16)
    assert values["GENERATOR/h2_lin/W"].shape == (16, 4)
    assert values["DISCRIMINATOR/h0_lin/W"].shape == (4, 16)
    assert all(np.isfinite(value).all() for value in values.values())


def test_adam_has_tensorflows_slots():
    values, = trained("--optimizer=adam")
    for scope in (gan.GENERATOR, gan.DISCRIMINATOR, gan.COPY, gan.CLASSIFIER):
        for slot in ("Adam", "Adam_1"):
            assert values[f"{scope}/h0_lin/W/{slot}"].shape == values[f"{scope}/h0_lin/W"].shape
    assert values["GENERATOR/beta1_power"] == pytest.approx(0.5 ** 7)  # ready for the seventh step
    assert values["DISCRIMINATOR_CP/beta1_power"] == pytest.approx(0.5 ** 31)
    assert values["CLASSIFIER/beta1_power"] == pytest.approx(0.5)


def test_initial_values_follow_seed_component_and_name():
    shapes = {"GENERATOR/h0_lin/W": [5, 16], "GENERATOR/h1_lin/W": [16, 16],
              "GENERATOR/h0_lin/b": [16]}
    values = gan.initial_values(shapes, 1, 0, 0.8, 0.25)
    assert 0.7 < values["GENERATOR/h1_lin/W"].std() < 0.9
    assert np.all(values["GENERATOR/h0_lin/b"] == 0.25)
    again = gan.initial_values(shapes, 1, 0, 0.8, 0.25)
    for name, value in values.items():
        np.testing.assert_array_equal(again[name], value)
        assert value.dtype == np.float32 and list(value.shape) == shapes[name]
    for seed, component in ((2, 0), (1, 1)):
        other = gan.initial_values(shapes, seed, component, 0.8, 0.25)
        assert np.any(other["GENERATOR/h0_lin/W"] != values["GENERATOR/h0_lin/W"])


def test_the_output_node_has_the_name_exports_use():
    with npu_session.new_graph().as_default() as graph:
        model = gan.build(options(), POINTS)
        assert model.evaluation.generated is graph.get_tensor_by_name("GENERATOR/output:0")
        assert graph.get_tensor_by_name("noise_ph:0").shape.as_list() == [64, 5]
