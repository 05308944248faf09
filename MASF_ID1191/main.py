"""Trains MASF (domain generalisation on PACS), the plain baseline, or an ablation, and tests it.

Losses and updates: masf_func. Lists and images: data_generator. All targets, methods and seeds in
one command: reproduce.py.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import functools
import os
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import data_generator
import evaluation
import figures
import make_filelist
import make_standin_data
import masf_func
import npu_session
import pretrained
import special_grads
import utils
from npu_session import InputError, boolean
from utils import POSITIVE, POSITIVE_INT, PROBABILITY, WEIGHT

WEIGHTS_FILE = "bvlc_alexnet.npy"
RANDOM = "random"  # instead of a weights file
RANDOM_START = "random start"  # what results without one say
SWITCHES = ("episodic", "global_alignment", "local_clustering")
FIXED = SWITCHES + (  # a resumed run keeps these
    "seed", "target_domain", "meta_batch_size", "inner_lr", "outer_lr", "meta_lr", "metric_lr",
    "margin", "clipNorm", "gradients_clip_value", "keep_prob", "divergence", "second_order",
    "labels", "test_images", "weights", "data")
GROUPS = ("checkpoints", "best_source", "best_target")  # what --checkpoint may name

Preset = collections.namedtuple(
    "Preset", "meta_batch_size train_iterations test_print_interval test_images keep_prob meta_lr")
# None: all images; outer_lr. The demo starts from random weights: Adam gives the alignment losses
# the task's step size from the first iteration on, when there is nothing to align yet.
PRESETS = {"reference": Preset(126, 300, 1, None, 0.5, None),
           "demo": Preset(15, 60, 20, 105, 1.0, 1e-6)}

Data = collections.namedtuple("Data", "name sources target held_out")
Graph = collections.namedtuple("Graph", "variables evaluation pipeline loop")


# ---------------------------------------------------------------- flags


def parse_args(argv=None):
    """Flags; defaults are the reference's. Those without one take it from the preset or method."""
    parser = npu_session.argument_parser(
        __doc__.splitlines()[0],
        epilog="presets (" + ", ".join(Preset._fields) + "):\n" + "\n".join(
            f"  {name}: {', '.join(map(str, preset))}" for name, preset in PRESETS.items()))
    _add_data_flags(parser)
    _add_method_flags(parser)
    _add_run_flags(parser)
    npu_session.add_flags(parser, precision_mode="allow_fp32_to_fp16")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset]._asdict().items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def _switch(add, name, text, default=True):
    add("--" + name, type=boolean, default=default, metavar="True|False", help=text)


def _add_data_flags(parser):
    add = parser.add_argument_group("data and places").add_argument
    add("--dataset", choices=["pacs"], default="pacs", help="the only one there is")
    add("--target_domain", choices=data_generator.DOMAINS, default="cartoon",
        help="domain to test on, never trained on; the other three are the sources")
    add("--dataroot", help="folder that the lists' entries are relative to; default "
                           f"{make_filelist.DEFAULT_DATAROOT}, and if that does not exist, "
                           "stand-in images, drawn there or into --output_dir")
    add("--filelist_root", help=f"folder of the lists; default {make_filelist.DEFAULT_FOLDER}")
    add("--labels", choices=["auto", "reference"], default="auto",
        help="reference: the shifted labels that the reference trains on with its 1-based lists")
    add("--num_classes", type=int, choices=[masf_func.NUM_CLASSES], default=masf_func.NUM_CLASSES,
        help="PACS's")
    add("--weights_path", help="bvlc_alexnet.npy, a folder with another run's checkpoint, or "
                               "'random'; default ./bvlc_alexnet.npy, and if that does not exist, "
                               "random weights")
    add("--cache", choices=["auto", "True", "False"], default="auto",
        help="keep the sources' decoded images in memory; auto: if they fit")
    add("--output_dir", help="place of the run folder, instead of --logdir")
    add("--logdir", default="./log/", help="the run folder is <logdir>/<name made of the flags>")


def _add_method_flags(parser):
    group = parser.add_argument_group("method")
    add, switch = group.add_argument, functools.partial(_switch, group.add_argument)
    add("--preset", choices=sorted(PRESETS), default="reference", help="see below")
    add("--method", choices=["masf", "deepall"], default="masf",
        help="deepall: cross entropy on all sources, the paper's baseline")
    for name, text in (("episodic", "losses of a meta-test domain after an inner step"),
                       ("global_alignment", "L_global"), ("local_clustering", "L_local")):
        switch(name, f"{text}; default: True for masf, False for deepall", default=None)
    add("--train_iterations", type=POSITIVE_INT, help="iterations in all")
    add("--meta_batch_size", type=POSITIVE_INT,
        help="images per source and iteration, a multiple of 3")
    add("--inner_lr", type=WEIGHT, default=1e-5, help="alpha, of the inner gradient step")
    add("--outer_lr", type=POSITIVE, default=1e-5, help="of Adam for the task and the meta loss")
    add("--meta_lr", type=POSITIVE,
        help="of Adam for the meta loss alone; default: outer_lr, as in the reference")
    add("--metric_lr", type=POSITIVE, default=1e-5, help="of Adam for the metric net")
    add("--margin", type=WEIGHT, default=10.0, help="xi of the triplet loss, in squared units")
    switch("clipNorm", "clip inner and meta gradients, each tensor by its norm")
    add("--gradients_clip_value", type=POSITIVE, default=2.0, help="that norm")
    add("--keep_prob", type=PROBABILITY, help="of dropout after fc6 and fc7")
    add("--divergence", choices=sorted(utils.DIVERGENCES), default="kl",
        help="of L_global: kl is the paper's symmetric KL, js Jensen-Shannon")
    switch("second_order", "differentiate through the inner step", default=False)


def _add_run_flags(parser):
    group = parser.add_argument_group("run")
    add, switch = group.add_argument, functools.partial(_switch, group.add_argument)
    switch("train", "False: only evaluate the checkpoint")
    add("--checkpoint", default="checkpoints",
        help="for --train=False and --predict: checkpoints (the last iterate), best_source, "
             "best_target, or a folder with a checkpoint of this or the reference's program")
    add("--predict", metavar="FOLDER", help="classify the images below a folder; no training")
    add("--test_batch_size", type=POSITIVE_INT, default=100, help="images per evaluation batch")
    add("--test_images", type=POSITIVE_INT,
        help="evaluate on so many images of each list, evenly chosen; default: all")
    switch("log", "record the losses of training")
    add("--summary_interval", type=POSITIVE_INT, default=1, help="iterations between records")
    add("--print_interval", type=POSITIVE_INT, default=1,
        help="iterations per session.run at most, and between log lines")
    add("--test_print_interval", type=POSITIVE_INT, help="iterations between evaluations")
    add("--save_interval", type=POSITIVE_INT, default=20000,
        help="iterations between checkpoints to resume from; the last iterate is always kept")
    switch("save_best", "keep the weights of the best iterates")


def switches(args):
    """The three switches in force; InputError if a method's name contradicts them."""
    given = {name: getattr(args, name) for name in SWITCHES}
    if args.method == "deepall" and any(given.values()):
        name = next(name for name in SWITCHES if given[name])
        raise InputError(f"--method=deepall has no --{name}: use --method=masf and switch off "
                         "what is not wanted")
    return {name: args.method == "masf" if value is None else value
            for name, value in given.items()}


def method_name(args):
    """masf, deepall, or masf-<letters of what is on: E, G, L>."""
    letters = "".join(letter for letter, name in zip("EGL", SWITCHES) if getattr(args, name))
    return {"EGL": "masf", "": "deepall"}.get(letters, "masf-" + letters)


def experiment_name(args):
    """The run folder's name, as the reference's."""
    return (f"{method_name(args)}_{args.target_domain}.mbs_{args.meta_batch_size}"
            f".inner{args.inner_lr}.outer{args.outer_lr}.clipNorm{args.gradients_clip_value}"
            f".metric{args.metric_lr}.margin{args.margin}")


def settings(args):
    """masf_func.Settings of the flags."""
    return masf_func.Settings(
        args.inner_lr, args.outer_lr, args.metric_lr, args.margin,
        args.gradients_clip_value if args.clipNorm else None, args.keep_prob, args.episodic,
        args.global_alignment, args.local_clustering, args.divergence, args.second_order,
        args.seed, args.meta_lr)


# ---------------------------------------------------------------- data and graph


def data_folders(args, output_dir):
    """(dataroot, filelist_root); stand-in images are made if no data are given and none found.

    They are put beside the results if these have a place, else where the data are looked for.
    """
    default, lists = make_filelist.DEFAULT_DATAROOT, make_filelist.DEFAULT_FOLDER
    if args.dataroot is None and output_dir and not os.path.isdir(default):
        default, lists = (os.path.join(output_dir, name) for name in ("kfold", "filelist"))
    lists = args.filelist_root or lists
    return make_standin_data.data_root(args.dataroot, default, lists), lists


def load_data(args):
    """Data of the lists, checked; see data_generator.read_lists for what is refused."""
    args.dataroot, args.filelist_root = data_folders(args, args.output_dir)
    read = functools.partial(data_generator.read_lists, args.filelist_root, dataroot=args.dataroot,
                             labels=args.labels)
    domains = [name for name in data_generator.DOMAINS if name != args.target_domain]
    target = read([args.target_domain])[args.target_domain]
    sources = read(domains, at_least=args.meta_batch_size)
    lists = [data_generator.list_path(args.filelist_root, name, "_crossval") for name in domains]
    held_out = read(domains, "_crossval") if all(map(os.path.exists, lists)) else {}
    if not held_out:
        print(f"WARNING: no {lists[0]} and its like: nothing is held out of the source domains, "
              "the rule best_source is left out", file=sys.stderr)
    if args.test_images:
        target = data_generator.thinned(target, args.test_images)
        held_out = {name: data_generator.thinned(images, args.test_images)
                    for name, images in held_out.items()}
    return Data(data_generator.data_name(args.dataroot), sources, target, held_out)


def cached_pixels(args, data):
    """The sources' decoded pixels, or None, as --cache says."""
    sources = list(data.sources.values())
    if args.cache == "False" or args.cache == "auto" and not data_generator.fits_in_memory(sources):
        return None
    config = npu_session.session_config(args, args.run_dir)
    return data_generator.read_pixels(sources, args.threads, config)


def load_weights(args):
    """What training starts from; sets args.weights to its name.

    Returns:
      The pretrained weights by variable name, a folder with another run's checkpoint, or None.
    Raises:
      InputError: see pretrained.read; the folder has no checkpoint.
    """
    if args.weights_path is None and os.path.exists(WEIGHTS_FILE):
        args.weights_path = WEIGHTS_FILE
    if args.weights_path in (None, RANDOM):
        args.weights = RANDOM_START
        print(f"WARNING: training starts from random weights, not from {WEIGHTS_FILE}: accuracies "
              "will be far below the paper's, which starts from ImageNet", file=sys.stderr)
        return None
    parts = os.path.abspath(args.weights_path).split(os.sep)
    if not os.path.isdir(args.weights_path):
        args.weights = parts[-1]
        return pretrained.read(args.weights_path)
    args.weights = os.sep.join(parts[-2:])
    if not tf.train.latest_checkpoint(args.weights_path):
        raise InputError(f"--weights_path={args.weights_path} is a folder without a checkpoint: "
                         "give the folder checkpoints, best_source or best_target of a run")
    return args.weights_path


def weights_loader(weights, variables):
    """Function (session) that puts what load_weights returned into the variables.

    To be called before the graph is finalised.
    """
    if isinstance(weights, str):
        other = Checkpoints(weights, list(variables.values()))
        return functools.partial(other.restore, required=True)

    def load(session):
        print("Loading pretrained weights")
        pretrained.load(weights, variables, session)
    return load if weights else lambda _: None


def tested_graph(args, data, variables):
    """evaluation.build for a run's data."""
    return evaluation.build(variables, args.test_batch_size,
                            [data.target, *data.held_out.values()], args.threads)


def build_graph(args, data, pixels):
    """Variables, the evaluation graph, and the training loop with its pipeline."""
    initializer = (masf_func.random_start if args.weights == RANDOM_START
                   else masf_func.glorot_uniform)(args.seed)
    variables = masf_func.create_variables(initializer)
    tested = tested_graph(args, data, variables)
    pipeline = data_generator.episodes(list(data.sources.values()), args.meta_batch_size,
                                       args.seed, args.threads, pixels)
    if args.second_order:
        special_grads.register_missing()

    def step():
        return masf_func.train_step(*pipeline.next_batch(), variables, settings(args))

    return Graph(variables, tested, pipeline, npu_session.Loop(step, args.print_interval))


# ---------------------------------------------------------------- training


class Checkpoints(npu_session.Checkpoints):
    """Prints the reference's line when weights are restored."""

    def restore(self, session, required=False):
        """See npu_session.Checkpoints."""
        path = super().restore(session, required)
        if path:
            print(f"Restoring model weights from {path}")
        return path


def place(args, name):
    """A folder in the run folder."""
    return os.path.join(args.run_dir, name)


def intervals(args):
    """Intervals that end a session.run."""
    return args.print_interval, args.test_print_interval, args.save_interval


def make_savers(args, variables):
    """{group: Checkpoints}: the whole state to resume from, and the best iterates' weights."""
    savers = {"checkpoints": Checkpoints(place(args, "checkpoints"), keep=2)}
    if args.save_best:
        savers.update((rule, npu_session.Checkpoints(place(args, rule), variables, keep=1))
                      for rule in GROUPS[1:])
    for group in savers:
        os.makedirs(place(args, group), exist_ok=True)
    return savers


def train(args, data, folder, session, graph, savers, step):
    """The training loop, from a step to the last.

    Returns:
      (exit code, step, what the last evaluation found; None if there was none).
    """
    bar = tqdm(total=args.train_iterations, initial=step, unit="step",
               disable=not sys.stderr.isatty())
    log = bar.write if sys.stderr.isatty() else functools.partial(print, flush=True)
    saved, since_print, found = step, [], None
    if step < args.train_iterations:
        session.run(graph.pipeline.initializer, graph.pipeline.feed(step))
    with npu_session.Stop() as stop, bar:
        while step < args.train_iterations and not stop.code:
            count = min([interval - step % interval for interval in intervals(args)]
                        + [args.train_iterations - step])
            started = time.time()
            with data_generator.naming_files(
                    [path for images in data.sources.values() for path in images.paths]):
                terms = graph.loop.run(session, count)
            seconds = (time.time() - started) / count
            npu_session.check_finite(terms, masf_func.TERMS + data_generator.CLASSES, step,
                                     args.run_dir)
            record(args, folder, terms, step, count)
            since_print.extend(terms)
            step += count
            bar.update(count)
            if step % args.print_interval == 0 or step == args.train_iterations:
                log(training_lines(args, np.array(since_print), step - 1, seconds))
                since_print = []
            if step % args.test_print_interval == 0 or step == args.train_iterations:
                found = test(args, data, folder, session, graph, savers, step, log)
            if step % args.save_interval == 0 and step < args.train_iterations:
                savers["checkpoints"].save(session, f"model{step - 1}")
                saved = step
        if saved < step:
            savers["checkpoints"].save(session, f"model{step - 1}")
    return (stop.code if step < args.train_iterations else 0), step, found


def record(args, folder, terms, step, count):
    """Writes the losses of the steps that --summary_interval asks for.

    terms: [rows, terms] of `count` steps from `step`; on the NPU a row per device-side loop.
    """
    stride = count // len(terms)
    for number, row in enumerate(terms):
        done = step + (number + 1) * stride
        if args.log and done % args.summary_interval == 0:
            folder.log(done, **dict(zip(masf_func.TERMS, row.tolist())))


def training_lines(args, terms, iteration, seconds):
    """The reference's lines: loss and accuracy are means since the last ones, the rest is of the
    last step. terms: [steps, terms]."""
    values = dict(zip(masf_func.TERMS, terms[-1]))
    mean = dict(zip(masf_func.TERMS, terms.mean(axis=0)))
    return "\n".join([
        "-" * 30, experiment_name(args),
        f"number of samples per category: {terms[-1, len(masf_func.TERMS):]}",
        f"global loss: {values['metatrain_global_loss']:.7f}",
        f"metric_loss: {values['metatrain_metric_loss']:.7f} ",
        f"Iteration {iteration}: Loss training domains {mean['source_loss']}",
        f"Iteration {iteration}: Accuracy training domains {mean['source_accuracy']}",
        f"Perf:  {seconds}"])


def test(args, data, folder, session, graph, savers, step, log):
    """Evaluates, keeps the best weights, writes the log's, eva.txt's and metrics.jsonl's lines.

    Returns what evaluation.evaluate found.
    """
    found = evaluate(args, data, session, graph.evaluation)
    values = evaluation.numbers(found)
    npu_session.check_finite(np.array([list(values.values())]), values, step - 1, args.run_dir)
    before = evaluation.selections(folder.records())
    folder.log(step, **values)
    after = evaluation.selections(folder.records())
    for rule, key in evaluation.RULES.items():
        if rule in savers and rule in after and after[rule] != before.get(rule):
            savers[rule].save(session, f"itr{step - 1}_model_acc{after[rule][key]}")
    line = evaluation_line(values, step - 1)
    log(line)
    with open(place(args, "eva.txt"), "a") as file:
        file.write(line + " \n")
    log(f"Current best accuracy {after['best_target']['target_accuracy']}")
    if data.held_out:
        log(f"Held-out source images: Iteration {step - 1}, "
            f"Loss: {values['source_validation_loss']:f}, "
            f"Accuracy: {values['source_validation_accuracy']:f}")
    return found


def evaluate(args, data, session, tested):
    """evaluation.evaluate on a run's data."""
    return evaluation.evaluate(session, tested, args.target_domain, data.target, data.held_out)


def evaluation_line(values, iteration):
    """The reference's line about the target domain."""
    return (f"Unseen Target Validation results: Iteration {iteration}, "
            f"Loss: {values['target_loss']:f}, Accuracy: {values['target_accuracy']:f}")


def rewind_eva(args, folder):
    """Makes eva.txt tell of the evaluations in metrics.jsonl only: a resumed run repeats the rest.
    """
    with npu_session.replacing(place(args, "eva.txt")) as file:
        file.writelines(evaluation_line(values, values["step"] - 1) + " \n"
                        for values in folder.records() if "target_accuracy" in values)


# ---------------------------------------------------------------- runs


def print_settings(args):
    """The flags, device and versions, in alphabetical order."""
    values = dict(vars(args), device=npu_session.backend(), **npu_session.versions())
    print("\n" + "\n".join(f"{name} = {values[name]}" for name in sorted(values)) + "\n",
          flush=True)


def check(args):
    """InputError for flags that do not go together; fills in the switches and the run folder."""
    if args.meta_batch_size % 3:
        raise InputError(f"--meta_batch_size={args.meta_batch_size} is not a multiple of 3: the "
                         "metric group takes a third of it from each of the three sources")
    for name, value in switches(args).items():
        setattr(args, name, value)
    if args.second_order:
        npu_session.require_one_process("--second_order trains in one process")
    args.run_dir = os.path.join(args.output_dir or args.logdir, experiment_name(args))


def run(args):
    """Trains or resumes, evaluates, or predicts; returns the exit code."""
    check(args)
    if args.predict:
        return predict(args)
    data = load_data(args)
    args.data = data.name
    print(f"data: {data.name}, sources " + ", ".join(
        f"{name} {len(images.labels)}" for name, images in data.sources.items())
        + f", target {args.target_domain} {len(data.target.labels)}")
    return run_training(args, data) if args.train else run_evaluation(args, data)


def run_training(args, data):
    """Trains or resumes one network; returns the exit code."""
    weights = load_weights(args)
    print_settings(args)
    pixels = cached_pixels(args, data)
    with npu_session.new_graph().as_default():
        graph = build_graph(args, data, pixels)
        for count in intervals(args) + (args.train_iterations,):
            graph.loop.check(count)
        with npu_session.RunFolder(args.run_dir, args, FIXED) as folder:
            return run_session(args, data, weights, graph, folder)


def run_session(args, data, weights, graph, folder):
    """Restores or loads weights, trains, writes the result; returns the exit code."""
    savers = make_savers(args, list(graph.variables.values()))
    load = weights_loader(weights, graph.variables)
    config = npu_session.session_config(args, args.run_dir,
                                        iterations_per_loop=args.print_interval)
    with npu_session.open_session(config) as session:
        step = npu_session.begin(session, args, graph.loop, savers["checkpoints"], folder)
        rewind_eva(args, folder)
        if not step:
            load(session)
        code, step, found = train(args, data, folder, session, graph, savers, step)
        if code:
            print(f"stopped by a signal before iteration {step}: continue with --resume")
            return code
        found = found or evaluate(args, data, session, graph.evaluation)
    write_result(args, data, found, folder, step)
    return 0


def write_result(args, data, found, folder, step):
    """Pictures, result.json and the log's last lines."""
    records = folder.records()
    result = evaluation.report(found, args.run_dir, data.name)
    figures.curves(place(args, "curves.png"), evaluation.panels(records),
                   f"{data.name}: target {args.target_domain}, {method_name(args)}")
    chosen = evaluation.selections(records)
    folder.finish(data=data.name, target_domain=args.target_domain, method=method_name(args),
                  seed=args.seed, iterations=step, weights=args.weights, selection=chosen, **result)
    print(f"\n{data.name}, target {args.target_domain}, {method_name(args)}, {args.weights}:")
    for rule, values in chosen.items():
        print(f"{rule}: iteration {values['iteration']}, target accuracy "
              f"{values['target_accuracy']:.4f}")
    print(f"numbers and pictures: {args.run_dir}", flush=True)


def restored_network(args, session, graph_variables):
    """Restores the weights that --checkpoint names."""
    folder = place(args, args.checkpoint) if args.checkpoint in GROUPS else args.checkpoint
    Checkpoints(folder, list(graph_variables.values())).restore(session, required=True)


def run_evaluation(args, data):
    """Evaluates a checkpoint and writes evaluation.json and pictures; returns the exit code."""
    with npu_session.new_graph().as_default():
        variables = masf_func.create_variables(masf_func.random_start(args.seed))
        tested = tested_graph(args, data, variables)
        config = npu_session.session_config(args, args.run_dir)
        with tf.Session(config=config) as session:
            restored_network(args, session, variables)
            found = evaluate(args, data, session, tested)
    folder, values = place(args, "evaluation"), evaluation.numbers(found)
    os.makedirs(folder, exist_ok=True)
    npu_session.write_json(os.path.join(folder, "evaluation.json"), dict(
        values, data=data.name, target_domain=args.target_domain, checkpoint=args.checkpoint,
        **evaluation.report(found, folder, data.name)))
    print(f"Unseen Target Validation results: Loss: {values['target_loss']:f}, "
          f"Accuracy: {values['target_accuracy']:f}\nnumbers and pictures: {folder}")
    return 0


def predict(args):
    """Classifies the images below a folder into predictions.csv; returns the exit code."""
    images = evaluation.images_in(args.predict)
    with npu_session.new_graph().as_default():
        variables = masf_func.create_variables(masf_func.random_start(args.seed))
        tested = evaluation.build(variables, args.test_batch_size, [images], args.threads)
        with tf.Session(config=npu_session.session_config(args, args.run_dir)) as session:
            restored_network(args, session, variables)
            logits = evaluation.outputs(session, tested, images).logits
    path = place(args, "predictions.csv")
    os.makedirs(args.run_dir, exist_ok=True)
    for image, name in zip(images.paths, evaluation.write_predictions(path, images, logits)):
        print(f"{image} {name}")
    print(f"{len(images.paths)} predictions: {path}")
    return 0


def take_staged(args, data_dir, output_dir):
    """Points the flags at ModelArts' folders: <data>/kfold, filelist and bvlc_alexnet.npy."""
    if data_dir:
        inside = functools.partial(os.path.join, data_dir)
        args.dataroot = args.dataroot or inside("kfold")
        if os.path.isdir(inside("filelist")):
            args.filelist_root = args.filelist_root or inside("filelist")
        if os.path.exists(inside(WEIGHTS_FILE)):
            args.weights_path = args.weights_path or inside(WEIGHTS_FILE)
    args.output_dir = output_dir or args.output_dir


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs; returns the exit code."""
    args = parse_args(argv)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        take_staged(args, data_dir, output_dir)
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
