"""AdaGAN on a mixture of Gaussians: trains the components, evaluates the mixture at every step.

Method: adagan.py, gan.py, reweighting.py. Metrics: metrics.py, explained in metrics.md. The data
are drawn, nothing is read.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf

import adagan
import datahandler
import draws
import gan
import metrics
import npu_session
import reweighting
from figures import Figures
from mixture import Mixture, load
from npu_session import InputError
from utils import COUNT, DECAY, NUMBER, POSITIVE, POSITIVE_INT, log

EVALUATED_POINTS = 500  # the first training points, and the validation samples (reference)
TEST_SAMPLES = 10000  # for the metrics that know the true mixture
# What a resumed run must not change: all that its numbers depend on.
FIXED = ("seed", "random_seed", "dataset", "gmm_modes_num", "toy_dataset_size", "toy_dataset_dim",
         "gmm_max_val", "unrolled", "unrolling_steps", "objective", "optimizer", "batch_size",
         "d_steps", "g_steps", "latent_space_dim", "latent_space_distr", "init_std", "init_bias",
         "gan_epoch_num", "max_steps", "mixture_c_epoch_num", "opt_g_learning_rate",
         "opt_d_learning_rate", "opt_learning_rate", "opt_beta1", "is_bagging", "beta_heur",
         "beta_constant", "weights_heur", "topk_constant", "samples_per_component",
         "eval_points_num", "reference_stream", "pictures_drawn")
# Values of flags under one name; a flag that is given goes before it.
PRESETS = {
    # Sharper components: Adam at low rates, the non-saturating loss, 40 epochs.
    "sharp": {"optimizer": "adam", "objective": "JS_modified", "opt_g_learning_rate": 0.0003,
              "opt_d_learning_rate": 0.001, "gan_epoch_num": 40},
}
# The reference's options in its order, with the values of those that this experiment ignores.
OPTIONS = {
    "random_seed": None, "dataset": None, "unrolled": None, "unrolling_steps": None,
    "data_dir": "mnist", "trained_model_path": "models",
    "mnist_trained_model_file": "mnist_trainSteps_19999_yhat", "gmm_max_val": None,
    "toy_dataset_size": None, "toy_dataset_dim": None, "mnist3_dataset_size": 128,
    "mnist3_to_channels": False, "input_normalize_sym": False, "adagan_steps_total": None,
    "samples_per_component": None, "work_dir": None, "is_bagging": None, "beta_heur": None,
    "weights_heur": None, "beta_constant": None, "topk_constant": None, "init_std": None,
    "init_bias": None, "latent_space_distr": None, "optimizer": None, "batch_size": None,
    "d_steps": None, "g_steps": None, "verbose": None, "tf_run_batch_size": None,
    "objective": None, "gmm_modes_num": None, "latent_space_dim": None, "gan_epoch_num": None,
    "mixture_c_epoch_num": None, "opt_learning_rate": None, "opt_d_learning_rate": None,
    "opt_g_learning_rate": None, "opt_beta1": None, "batch_norm_eps": 1e-5,
    "batch_norm_decay": 0.9, "d_num_filters": 16, "g_num_filters": 16, "conv_filters_dim": 4,
    "early_stop": -1, "plot_every": None, "eval_points_num": None,
    "digit_classification_threshold": 0.999, "inverse_metric": False, "inverse_num": 1}


# ---------------------------------------------------------------- flags


def parse_args(argv=None):
    """Flags of the experiment; defaults are the reference's."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--output_dir", "--workdir", "--work_dir",
                        help="run folder: samples, pictures, ckpt/, metrics, result.json; "
                             "default results")
    parser.add_argument("--ckpt_dir", help="checkpoints; default <output_dir>/ckpt")
    parser.add_argument("--preset", choices=sorted(PRESETS),
                        help="sharp: closer to the data, slower; the same as --optimizer=adam "
                             "--objective=JS_modified --g_learning_rate=0.0003 "
                             "--d_learning_rate=0.001 --epochs=40, each of which may be given")
    for add in (add_boosting_flags, add_data_flags, add_gan_flags, add_run_flags):
        add(parser)
    npu_session.add_flags(parser, precision_mode="allow_fp32_to_fp16")
    preset = parser.parse_args(argv).preset
    parser.set_defaults(**PRESETS.get(preset, {}))
    return parser.parse_args(argv)


def switch(group, name, default, text):
    """Adds --name=True|False."""
    group.add_argument(name, type=npu_session.boolean, nargs="?", const=True, default=default,
                       metavar="True|False", help=text)


def add_boosting_flags(parser):
    """Flags of Algorithm 1."""
    group = parser.add_argument_group("boosting")
    group.add_argument("--steps", "--adagan_steps_total", dest="adagan_steps_total",
                       type=POSITIVE_INT, default=10, help="components of the mixture")
    group.add_argument("--weights_heur", choices=["theory_star", "theory_dagger", "topk"],
                       default="theory_star", help="how training points are weighed")
    group.add_argument("--topk_constant", type=NUMBER, default=0.5,
                       help="topk: share of the points that keep a weight, in (0, 1]")
    group.add_argument("--beta_heur", choices=["uniform", "constant"], default="uniform",
                       help="weight of a new component: 1 / their number, or --beta_constant")
    group.add_argument("--beta_constant", type=NUMBER, default=0.5, help="in (0, 1)")
    switch(group, "--is_bagging", False, "all components equal, on data that are not weighed")
    group.add_argument("--samples_per_component", type=POSITIVE_INT, default=5000,
                       help="stored samples of a component, from which the mixture is sampled")
    group.add_argument("--mixture_c_epoch_num", type=POSITIVE_INT, default=5,
                       help="epochs of the classifier of data against mixture")
    group.add_argument("--learning_rate", "--opt_learning_rate", dest="opt_learning_rate",
                       type=POSITIVE, default=0.008, help="of that classifier")
    group.add_argument("--eval_points_num", type=POSITIVE_INT, default=1000,
                       help="samples of the mixture in C and log_p")


def add_data_flags(parser):
    """Flags of the data that are drawn."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=datahandler.NAMES, default="gmm",
                       help="means in a square or on a circle")
    group.add_argument("--modes", "--gmm_modes_num", dest="gmm_modes_num", type=int, default=10,
                       help="number of Gaussians")
    group.add_argument("--dim", "--dims", "--toy_dataset_dim", dest="toy_dataset_dim", type=int,
                       default=2, help="coordinates of a point")
    group.add_argument("--toy_dataset_size", type=int, default=64000, help="training points")
    group.add_argument("--gmm_max_val", type=NUMBER, default=15.0,
                       help="largest coordinate of a mean; radius of the circle")
    group.add_argument("--random_seed", type=npu_session.seed_number, default=821,
                       help="of the means")
    switch(group, "--input_normalize_sym", False, "for images only: True is refused")


def add_gan_flags(parser):
    """Flags of one component."""
    group = parser.add_argument_group("component")
    switch(group, "--unrolled", True, "ToyUnrolledGan; False: ToyGan")
    group.add_argument("--unrolling_steps", type=COUNT, default=5,
                       help="steps that the discriminator's copy goes ahead")
    group.add_argument("--objective", choices=["JS", "JS_modified"], default="JS",
                       help="of the unrolled generator: minimax or non-saturating loss")
    group.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    group.add_argument("--adam_beta1", "--opt_beta1", dest="opt_beta1", type=DECAY, default=0.5,
                       help="of adam")
    group.add_argument("--epochs", "--gan_epoch_num", dest="gan_epoch_num", type=POSITIVE_INT,
                       default=15, help="epochs of each component")
    group.add_argument("--max_steps", type=POSITIVE_INT,
                       help="stop each component after this many iterations")
    group.add_argument("--batch_size", type=POSITIVE_INT, default=64, help="points per iteration")
    group.add_argument("--g_learning_rate", "--opt_g_learning_rate", dest="opt_g_learning_rate",
                       type=POSITIVE, default=0.01, help="of the generator")
    group.add_argument("--d_learning_rate", "--opt_d_learning_rate", dest="opt_d_learning_rate",
                       type=POSITIVE, default=0.004, help="of the discriminator and its copy")
    group.add_argument("--d_steps", type=COUNT, default=1, help="discriminator steps an iteration")
    group.add_argument("--g_steps", type=COUNT, default=1, help="generator steps an iteration")
    group.add_argument("--zdim", "--latent_space_dim", dest="latent_space_dim", type=POSITIVE_INT,
                       default=5, help="coordinates of the latent vectors")
    group.add_argument("--latent_space_distr", choices=["normal", "uniform"], default="normal",
                       help="of the latent vectors")
    group.add_argument("--init_std", type=POSITIVE, default=0.8, help="of the initial weights")
    group.add_argument("--init_bias", type=NUMBER, default=0.0, help="initial biases")


def add_run_flags(parser):
    """Flags of the run itself."""
    group = parser.add_argument_group("run")
    switch(group, "--reference_stream", False, "draw every random number as the reference does, "
                                               "in its order (slower)")
    group.add_argument("--log_every", type=POSITIVE_INT, default=500,
                       help="iterations per session.run")
    group.add_argument("--plot_every", type=int, default=500,
                       help="iterations between pictures of the training; 0 or less: none")
    group.add_argument("--tf_run_batch_size", type=POSITIVE_INT, default=100,
                       help="batch outside of training")
    switch(group, "--verbose", True, "log the classifier's probabilities and draw its pictures "
                                     "and those of the training")
    switch(group, "--plots", True, "draw pictures")
    switch(group, "--use_tqdm", True, "progress bars")
    group.add_argument("--obs_dir", help="as --train_url, which goes before it")
    group.add_argument("--result", "--modelarts_result_dir", dest="result",
                       help="run folder where --output_dir is not given")
    group.add_argument("--modelarts_data_dir", help="accepted; no data are read")


def check(args):
    """Raises InputError for what cannot be, before anything is written."""
    npu_session.require_one_process("AdaGAN trains in one process")
    if args.input_normalize_sym:
        raise InputError("--input_normalize_sym=True is for images, not for points: leave it out")
    reweighting.beta("constant", 1, args.beta_constant)
    reweighting.topk(np.zeros(1), args.topk_constant)
    datahandler.check(args.dataset, args.gmm_modes_num, args.toy_dataset_dim,
                      args.toy_dataset_size, args.gmm_max_val)
    if args.toy_dataset_size < args.batch_size:
        raise InputError(f"--toy_dataset_size={args.toy_dataset_size} is less than one batch of "
                         f"{args.batch_size}")
    if args.samples_per_component < 2 or args.eval_points_num < 2:
        raise InputError("--samples_per_component and --eval_points_num: give at least 2, a "
                         "density is estimated from them")


# ---------------------------------------------------------------- run


def make_draws(args):
    """The draws of --reference_stream."""
    return (draws.ReferenceDraws if args.reference_stream else draws.SeededDraws)(args.seed, args)


def load_data(args, draw):
    """datahandler.Data; the reference's stream goes on after the points."""
    name = args.dataset.upper()
    log(f"Loading {name} dataset...")
    random = draw.random if args.reference_stream else np.random.RandomState([args.seed, 0])
    data = datahandler.load(args.dataset, args.gmm_modes_num, args.toy_dataset_dim,
                            args.toy_dataset_size, args.gmm_max_val, args.random_seed, random)
    log(f"Loading {name} dataset done!")
    return data


def write_parameters(args):
    """params.txt: the reference's options and their values."""
    values = dict(vars(args), work_dir=args.output_dir)
    with npu_session.replacing(os.path.join(args.output_dir, "params.txt")) as file:
        file.write("Parameters:\n")
        file.writelines(f"{name} : {values.get(name, default)}\n"
                        for name, default in OPTIONS.items())


def run(args):
    """Trains or resumes one mixture; returns the exit code."""
    print("epochs", args.gan_epoch_num)
    print("steps", args.adagan_steps_total, flush=True)
    check(args)
    # Pictures cost the reference's stream random numbers.
    args.pictures_drawn = adagan.picture_period(args) if args.reference_stream else None
    draw = make_draws(args)
    data = load_data(args, draw)
    with npu_session.new_graph().as_default():
        model = gan.build(args, len(data.points))
        adagan.check_loop(args, model.loop)
        if args.reference_stream:
            tf.get_variable("random_state", [len(draw.state)], tf.int64, tf.zeros_initializer(),
                            trainable=False)
        tf.train.get_or_create_global_step()
        with npu_session.RunFolder(args.output_dir, args, FIXED) as folder:
            write_parameters(args)
            os.makedirs(args.ckpt_dir, exist_ok=True)
            return run_session(args, data, model, draw, folder)


def run_session(args, data, model, draw, folder):
    """Restores, trains and writes the result; returns the exit code."""
    state = State(args, draw)
    config = npu_session.session_config(args, args.output_dir, iterations_per_loop=args.log_every)
    config.inter_op_parallelism_threads = 1  # operations so small are not worth another thread
    with tf.Session(config=config) as session, npu_session.Stop() as stop:
        step = npu_session.begin(session, args, model.loop, state.checkpoints, folder)
        state.restore_draws(session)
        component, done = divmod(step, adagan.iterations(args))
        boosting = adagan.AdaGan(args, data, model, session, draw,
                                 Figures(args.output_dir, data) if args.plots else None,
                                 restored_mixture(args, component), stop, folder.log)
        code = boost(args, boosting, session, state, folder, stop, done)
    if code:
        print("stopped by a signal: continue with --resume")
        return code
    finish(args, data, folder)
    return 0


class State:
    """What is saved of a run: all variables, the iterations done, the reference's stream.

    Checkpoints: component-NN after a component, component-NN.stepK within it.
    """

    def __init__(self, args, draw):
        self._args, self._draw = args, draw
        self.checkpoints = npu_session.Checkpoints(args.ckpt_dir, keep=10 ** 6)
        self._variables = {variable.op.name: variable for variable in tf.global_variables()}

    def restore_draws(self, session):
        """Puts the stream where the checkpoint's run was; a new run's goes on after the data."""
        stream = self._variables.get("random_state")
        if stream is not None:
            numbers = session.run(stream)
            if numbers.any():
                self._draw.state = numbers

    def save(self, session, component, done):
        """Writes a checkpoint of a component with `done` iterations; 0: of the one before."""
        step = component * adagan.iterations(self._args) + done
        self._variables["global_step"].load(step, session)
        if self._draw.state is not None:
            self._variables["random_state"].load(self._draw.state, session)
        self.checkpoints.save(session, f"component-{component:02d}.step{done}" if done
                              else f"component-{component - 1:02d}")


def restored_mixture(args, components):
    """The Mixture of a run that has this many complete components."""
    if not components:
        return Mixture()
    mixture = load(args.output_dir, components)
    expected = (args.samples_per_component, args.toy_dataset_dim, 1, 1)
    for number, samples in enumerate(mixture.components):
        if samples.shape != expected:
            raise InputError(f"component {number} in {args.output_dir} has samples "
                             f"{list(samples.shape)}, not {list(expected)}: start anew in another "
                             "folder")
    return mixture


def boost(args, boosting, session, state, folder, stop, done):
    """The steps that are left; returns the exit code, 0 if all were made."""
    if boosting.step >= args.adagan_steps_total:
        print(f"nothing left to train: {boosting.step} components are done")
    while boosting.step < args.adagan_steps_total:
        if stop.code and boosting.step:
            return stop.code
        done, component = boosting.make_step(done)
        if component is None:
            if done:
                state.save(session, boosting.step, done)
            return stop.code
        evaluate(args, boosting, component, folder)
        state.save(session, boosting.step, 0)
        done = 0
    log("AdaGan finished working!")
    return 0


# ---------------------------------------------------------------- evaluation


def evaluate(args, boosting, component, folder):
    """Samples, pictures and metrics after a step, in the reference's order; one record."""
    index = boosting.step - 1
    real = boosting.data.points[:EVALUATED_POINTS]
    log("Sampling fake points")
    fake = boosting.sample_mixture(args.eval_points_num, "fake")
    log("Sampling more fake points")
    more = boosting.sample_mixture(EVALUATED_POINTS, "validation")
    log("Plotting results")
    if args.plots:
        boosting.show_mixture(fake)
    log("Evaluating results")
    found = metrics.evaluate(real, fake, more)
    if found.collapsed:
        log("[WARNING] Half of the samples coincide: the mixture has collapsed, C and log_p are "
            "those of a substitute bandwidth")
    log(f"Evaluating: log_p={found.log_p:.3f}, C={found.C:.3f}")
    truth = metrics.mixture_metrics(boosting.test_samples(TEST_SAMPLES), boosting.data.means,
                                    boosting.data.variance)
    values = dict(truth._asdict(), adagan_step=index, log_p=found.log_p, C=found.C,
                  bandwidth=found.bandwidth, collapsed=int(found.collapsed),
                  beta=component.beta, seconds=component.seconds,
                  iterations_per_second=component.rate, **weights_record(component.reweighting))
    folder.log(boosting.step * adagan.iterations(args), **values)
    write_table(args, folder)


def weights_record(found):
    """What a record says of a Reweighting, nothing for None."""
    if found is None:
        return {}
    values = {"lambda": found.lambda_, "weight_sum": found.total, "deleted": found.deleted,
              "lambda_search_failed": int(found.failed)}
    return {name: value for name, value in values.items() if value is not None}


def step_records(folder):
    """The records of complete steps."""
    return [record for record in folder.records() if "C" in record]


def write_table(args, folder):
    """metrics.csv: one line per step."""
    records = step_records(folder)
    names = sorted({name for record in records for name in record} - {"adagan_step"})
    with npu_session.replacing(os.path.join(args.output_dir, "metrics.csv"), newline="") as file:
        table = csv.DictWriter(file, ["adagan_step"] + names, restval="")
        table.writeheader()
        table.writerows(records)


def finish(args, data, folder):
    """result.json and the last lines: the metrics of the whole mixture."""
    records = step_records(folder)
    if not records:
        raise InputError(f"metrics.jsonl in {args.output_dir} knows no step: it was changed; start "
                         "anew in another folder")
    last = records[-1]
    rates = [record["iterations_per_second"] for record in records]
    folder.finish(data=f"{data.name}, {args.gmm_modes_num} modes, {args.toy_dataset_size} points",
                  seed=args.seed, steps=len(records), step=last["step"],
                  iterations_per_second=float(np.median(rates)),
                  C_per_step=[record["C"] for record in records],
                  **{name: last[name] for name in ("C", "log_p") + metrics.MixtureMetrics._fields})
    print("modes covered {modes_covered} of {modes}, high quality {high_quality:.3f}, kl {kl:.3f}, "
          "log_density {log_density:.3f}".format(modes=args.gmm_modes_num, **last))
    print(f"results in {args.output_dir}: metrics.csv, metrics.jsonl, mixture*.png, result.json")


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs; returns the exit code."""
    args = parse_args(argv)
    local = args.output_dir or args.result or "results"
    with npu_session.staged(None, args.train_url or args.obs_dir) as (_, output_dir):
        args.output_dir = output_dir or local
        args.ckpt_dir = args.ckpt_dir or os.path.join(args.output_dir, "ckpt")
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
