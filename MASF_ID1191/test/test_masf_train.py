"""The training program: log, files, exact resume, evaluation, prediction, selection, switches.

With a narrow network, see training_runs; one test at the end runs the program as it is.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import glob
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_generator
import evaluation
import main
import masf_func
import npu_session
import utils
from npu_session import InputError
from training_runs import (
    FEW,
    ITERATIONS,
    SHORT,
    assert_same_end,
    contents,
    data_flags,
    last_state,
    narrow_network,
    read,
    records,
    refused,
    refused_early,
    run_folder,
    stopped,
    text,
    train,
    trained,
    variables,
)

NAME = "masf_photo.mbs_3.inner1e-05.outer1e-05.clipNorm2.0.metric1e-05.margin10.0"
NUMBER = r"-?\d+\.?\d*(e[+-]\d+)?"
RECORD = set(masf_func.TERMS) | {"step"}
EVALUATION = {"step", "target_loss", "target_accuracy", "source_validation_loss",
              "source_validation_accuracy"}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """All tests of this file train a narrow network."""
    narrow_network(monkeypatch)


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """(output folder, standard output, operations of the graph at each session.run) of a run.

    Uninterrupted, with a checkpoint after every iteration; do not change it.
    """
    output, sizes, plain = tmp_path_factory.mktemp("whole"), [], npu_session.Loop.run

    def run(self, session, count):
        assert session.graph.finalized
        sizes.append(len(session.graph.get_operations()))
        return plain(self, session, count)

    with pytest.MonkeyPatch.context() as patch:
        narrow_network(patch)
        patch.setattr(npu_session.Loop, "run", run)
        code, out, err = train(small_data, output, "--save_interval=1", pictures=True)
    assert code == 0, err
    return output, out, sizes


# ---------------------------------------------------------------- flags


def test_defaults_are_the_references():
    args = main.parse_args([])
    expected = {
        "dataset": "pacs", "target_domain": "cartoon", "num_classes": 7, "train_iterations": 300,
        "meta_batch_size": 126, "inner_lr": 1e-5, "outer_lr": 1e-5, "metric_lr": 1e-5,
        "margin": 10.0, "clipNorm": True, "gradients_clip_value": 2.0, "log": True,
        "logdir": "./log/", "train": True, "summary_interval": 1, "save_interval": 20000,
        "print_interval": 1, "test_print_interval": 1, "keep_prob": 0.5, "labels": "auto",
        "method": "masf", "precision_mode": "allow_fp32_to_fp16"}
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.meta_lr is None and args.test_images is None  # outer_lr; all
    demo = main.parse_args(["--preset=demo", "--train_iterations=5"])
    assert (demo.meta_batch_size, demo.train_iterations, demo.keep_prob) == (15, 5, 1)


def test_golden_name_of_the_run_folder():
    """The reference's, with its defaults; the method's name stands for masf."""
    args = main.parse_args([])
    main.check(args)
    assert main.experiment_name(args) == (
        "masf_cartoon.mbs_126.inner1e-05.outer1e-05.clipNorm2.0.metric1e-05.margin10.0")
    for flags, name in ((["--method=deepall"], "deepall"), (["--episodic=False"], "masf-GL"),
                        (["--global_alignment=False", "--local_clustering=False"], "masf-E"),
                        (["--episodic=False", "--local_clustering=False"], "masf-G")):
        args = main.parse_args(flags)
        main.check(args)
        assert main.method_name(args) == name


@pytest.mark.parametrize("flag", [
    "--unknown=1", "--target_domain=paintings", "--meta_batch_size=0", "--inner_lr=-1",
    "--outer_lr=0", "--keep_prob=0", "--keep_prob=1.5", "--margin=x", "--train=maybe",
    "--num_classes=8", "--dataset=office", "--labels=1", "--method=mldg", "--trai=True",
    "--seed=-1", "--divergence=tv"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as end:
        main.parse_args([flag])
    assert end.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        main.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    for name in vars(main.parse_args([])):
        assert f"--{name}" in shown, name


def test_flags_that_contradict_each_other_are_refused():
    for flags, text_of in ((["--method=deepall", "--episodic=True"], "--episodic"),
                           (["--meta_batch_size=128"], "multiple of 3")):
        with pytest.raises(InputError, match=text_of):
            main.check(main.parse_args(flags))


# ---------------------------------------------------------------- log and files


def test_log_has_the_seeds_lines_in_its_order(whole):
    """spec section 6; numbers are checked against metrics.jsonl below."""
    lines = whole[1].splitlines()
    first = lines.index("-" * 30)
    patterns = [
        "-" * 30, re.escape(NAME), r"number of samples per category: \[(\d\. ?){7}\]",
        r"global loss: \d+\.\d{7}", r"metric_loss: \d+\.\d{7} ",
        rf"Iteration 0: Loss training domains {NUMBER}",
        rf"Iteration 0: Accuracy training domains {NUMBER}", r"Perf:  \d+\.\d+", "-" * 30]
    for pattern, line in zip(patterns, lines[first:]):
        assert re.fullmatch(pattern, line), (pattern, line)
    tested = [number for number, line in enumerate(lines) if line.startswith("Unseen")]
    assert [lines[number - 1].startswith("Perf:  ") for number in tested] == [True, True]
    for number, iteration in zip(tested, (1, 3)):
        assert re.fullmatch(rf"Unseen Target Validation results: Iteration {iteration}, "
                            r"Loss: \d+\.\d{6}, Accuracy: [01]\.\d{6}", lines[number])
        assert re.fullmatch(r"Current best accuracy [01]\.\d+", lines[number + 1])
    assert "data: stand-in for PACS" in whole[1] and "No checkpoint found" in whole[1]


def test_records_agree_with_the_log_and_eva_txt(whole):
    output, out, _ = whole
    lines, folder = out.splitlines(), run_folder(output)
    steps = [line for line in records(folder) if "source_loss" in line]
    tests = [line for line in records(folder) if "target_loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4] and set(steps[0]) == RECORD
    assert [line["step"] for line in tests] == [2, 4] and set(tests[0]) == EVALUATION
    for line in steps:
        iteration = line["step"] - 1
        for name, key in (("Loss", "source_loss"), ("Accuracy", "source_accuracy")):
            printed, = [row.split()[-1] for row in lines
                        if row.startswith(f"Iteration {iteration}: {name} training domains ")]
            assert float(printed) == pytest.approx(line[key], rel=1e-6)
        assert line["source_loss"] == pytest.approx(
            (line["metatrain_source_1_loss"] + line["metatrain_source_2_loss"]) / 2, rel=1e-5)
    written = [line for line in lines if line.startswith("Unseen")]
    assert text(folder, "eva.txt") == "".join(line + " \n" for line in written)
    assert f"Accuracy: {tests[0]['target_accuracy']:.6f}" in written[0]


def test_files_and_result(whole):
    folder = run_folder(whole[0])
    assert os.path.basename(folder) == NAME
    found = {name for name in os.listdir(folder) if not name.startswith("events")}
    assert found == {".lock", "config.json", "metrics.jsonl", "eva.txt", "result.json",
                     "checkpoints", "best_source", "best_target", "confusion_matrix.png",
                     "embeddings.png", "curves.png"}
    result, config = read(folder, "result.json"), read(folder, "config.json")
    assert config["flags"]["target_domain"] == "photo" and config["seed"] == 0
    assert result["data"] == "stand-in for PACS" and result["weights"] == "random start"
    assert result["iterations"] == ITERATIONS and result["method"] == "masf"
    assert set(result["selection"]) == {"last", "best_source", "best_target"}
    matrix = np.array(result["confusion_matrix"])
    last = result["selection"]["last"]
    assert last["iteration"] == ITERATIONS - 1
    assert np.trace(matrix) / matrix.sum() == pytest.approx(last["target_accuracy"])
    assert list(result["per_class_accuracy"]) and set(result["per_class_accuracy"]) == set(
        data_generator.CLASSES)
    assert result["distance_same_class"] > 0 and result["distance_other_classes"] > 0
    for name in ("confusion_matrix.png", "embeddings.png", "curves.png"):
        assert 5000 < os.path.getsize(os.path.join(folder, name)) < 300000


def test_checkpoints_hold_the_state_or_the_best_weights(whole):
    """All but the weights file: 20 weights, step, 6 powers of beta, 16 + 20 + 4 pairs of slots."""
    folder = run_folder(whole[0])
    state, names = last_state(folder), ["model/" + name for name in masf_func.variable_shapes()]
    expected = names + ["model/Variable"] + [
        f"beta{number}_power{ending}" for number in (1, 2) for ending in ("", "_1", "_2")]
    expected += [f"{name}/Adam{ending}" for name in names for ending in ("", "_1", "_2", "_3")]
    assert sorted(state) == sorted(expected) and state["model/Variable"] == ITERATIONS
    assert sorted(name[:-6] for name in os.listdir(os.path.join(folder, "checkpoints"))
                  if name.endswith(".index")) == ["model2", "model3"]
    selection = read(folder, "result.json")["selection"]
    for rule, key in evaluation.RULES.items():
        path, = glob.glob(os.path.join(folder, rule, "*.index"))
        assert os.path.basename(path)[:-6] == (
            f"itr{selection[rule]['iteration']}_model_acc{selection[rule][key]}")
        assert sorted(variables(os.path.join(folder, rule))) == sorted(names)


def test_events_are_readable_and_their_tags_stable(whole):
    tags = set()
    for path in glob.glob(os.path.join(run_folder(whole[0]), "events*")):
        for event in tf.train.summary_iterator(path):
            tags.update(value.tag for value in event.summary.value)
    assert tags == (RECORD | EVALUATION) - {"step"}


def test_a_group_without_a_pair_gives_no_nan(whole):
    """One image of each domain in the group: usually no two of a class."""
    lines = [line for line in records(run_folder(whole[0])) if "source_loss" in line]
    assert len(lines) == ITERATIONS
    assert all(np.isfinite(line["metatrain_metric_loss"]) for line in lines)
    assert any(line["metatrain_metric_loss"] == 0 for line in lines)


# ---------------------------------------------------------------- resume


def test_resume_after_sigterm_is_exact(whole, small_data, tmp_path, monkeypatch):
    """Stopped within an evaluation interval and again, moved in between."""
    out = stopped(monkeypatch, 1, small_data, tmp_path / "a")
    assert "stopped by a signal before iteration 1: continue with --resume" in out
    shutil.move(str(tmp_path / "a"), str(tmp_path / "b"))
    out = stopped(monkeypatch, 3, small_data, tmp_path / "b", "--resume")
    assert re.search(r"Restoring model weights from .*checkpoints.model0\n", out)
    trained(small_data, tmp_path / "b", "--resume")
    assert_same_end(run_folder(tmp_path / "b"), run_folder(whole[0]))


def test_another_seed_is_another_run_and_steps_per_call_do_not_matter(whole, small_data, tmp_path):
    """Two steps per session.run and images decoded at each use: bit-equal."""
    folder = trained(small_data, tmp_path / "a", "--print_interval=2", "--cache=False",
                     "--save_best=False")
    ours, theirs = last_state(folder), last_state(run_folder(whole[0]))
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert records(folder) == records(run_folder(whole[0]))
    folder = trained(small_data, tmp_path / "b", "--seed=1", "--train_iterations=1",
                     "--save_best=False", FEW)
    assert records(folder)[0] != records(run_folder(whole[0]))[0]


def test_a_finished_run_says_so_and_goes_on_with_more_iterations(whole, small_data, tmp_path):
    output = shutil.copytree(str(whole[0]), str(tmp_path / "copy"))
    before = records(run_folder(output))
    code, out, err = train(small_data, output)
    assert code == 0 and "Iteration" not in out.split("Restoring")[1].split("stand-in")[0], err
    assert_same_end(run_folder(output), run_folder(whole[0]))
    trained(small_data, output, "--train_iterations=5")
    assert records(run_folder(output))[:len(before)] == before
    assert read(run_folder(output), "result.json")["iterations"] == 5


def test_resume_needs_a_run_and_keeps_its_flags(whole, small_data, tmp_path):
    assert "there is no run" in refused_early(small_data, tmp_path / "none", "--resume")
    assert "holds a run" in refused_early(small_data, whole[0], "--resume=False")
    for flags, name in ((["--seed=5"], "seed"), (["--labels=reference", "--seed=0"], "labels")):
        assert f"started with {name}=" in refused_early(small_data, whole[0], *flags)
    assert set(main.FIXED) <= set(read(run_folder(whole[0]), "config.json")["flags"])


# ---------------------------------------------------------------- evaluate only, predict


def test_train_false_evaluates_only(whole, small_data, tmp_path):
    """All three rules' iterates; config, records and weights stay as they are."""
    output = shutil.copytree(str(whole[0]), str(tmp_path / "copy"))
    before = contents(output, "config.json", ".jsonl", ".index", "00001", "eva.txt", "result.json")
    selection = read(run_folder(output), "result.json")["selection"]
    for checkpoint, rule in (("checkpoints", "last"), ("best_source", "best_source"),
                             ("best_target", "best_target")):
        code, out, err = train(small_data, output, "--train=False", f"--checkpoint={checkpoint}",
                               pictures=checkpoint == "checkpoints")
        assert code == 0 and "Restoring model weights" in out, err
        found = read(os.path.join(run_folder(output), "evaluation"), "evaluation.json")
        for key in ("target_accuracy", "source_validation_accuracy"):
            assert found[key] == pytest.approx(selection[rule][key])
        assert f"Accuracy: {found['target_accuracy']:.6f}" in out
    assert "Iteration 0" not in out
    assert contents(output, "config.json", ".jsonl", ".index", "00001", "eva.txt",
                    "result.json") == before
    pictures = os.listdir(os.path.join(run_folder(output), "evaluation"))
    assert sorted(pictures) == ["confusion_matrix.png", "embeddings.png", "evaluation.json"]


def test_train_false_without_a_checkpoint_is_refused(small_data, tmp_path):
    assert "no readable checkpoint" in refused(small_data, tmp_path, "--train=False")
    assert "no readable checkpoint" in refused(small_data, tmp_path, "--train=False",
                                               f"--checkpoint={tmp_path}")


def test_predict_classifies_a_folder(whole, small_data, tmp_path):
    """The folder of the target: as many right as the evaluation says."""
    images = os.path.join(small_data, "kfold", "photo")
    code, out, err = train(small_data, whole[0], f"--predict={images}", "--test_batch_size=16")
    path = os.path.join(run_folder(whole[0]), "predictions.csv")
    assert code == 0 and path in out, err
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    os.remove(path)
    assert len(rows) == sum(len(names) for _, _, names in os.walk(images))
    for row in rows:
        probabilities = [float(row[name]) for name in data_generator.CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row["class"] == data_generator.CLASSES[int(np.argmax(probabilities))]
    trained_on = set(data_generator.read_list(os.path.join(small_data, "filelist", "photo.txt"))[0])
    right = [os.path.basename(os.path.dirname(row["path"])) == row["class"] for row in rows
             if os.path.relpath(row["path"], os.path.join(small_data, "kfold")) in trained_on]
    last = read(run_folder(whole[0]), "result.json")["selection"]["last"]
    assert np.mean(right) == pytest.approx(last["target_accuracy"])
    assert "no images" in refused(small_data, whole[0], f"--predict={tmp_path}")


# ---------------------------------------------------------------- selection and evaluation


def test_selection_rules():
    def evaluated(step, target, source):
        return {"step": step, "target_accuracy": target, "source_validation_accuracy": source}

    found = evaluation.selections([
        {"step": 1, "source_loss": 3.0}, evaluated(1, 0.3, 0.4), evaluated(2, 0.5, 0.6),
        evaluated(3, 0.5, 0.6), evaluated(4, 0.4, 0.5)])
    assert {rule: values["iteration"] for rule, values in found.items()} == {
        "last": 3, "best_source": 1, "best_target": 1}  # the first of equals, as the reference
    assert found["last"] == {"iteration": 3, "target_accuracy": 0.4,
                             "source_validation_accuracy": 0.5}
    assert set(evaluation.selections([{"step": 2, "target_accuracy": 0.1}])) == {
        "last", "best_target"}
    assert evaluation.selections([]) == {}


def test_evaluation_does_not_depend_on_the_batch_size(small_data):
    """Each image once, though the last batch is filled up."""
    lists = data_generator.read_lists(os.path.join(small_data, "filelist"), ["photo"],
                                      dataroot=os.path.join(small_data, "kfold"))
    images = lists["photo"]._replace(paths=lists["photo"].paths[:7],
                                     labels=lists["photo"].labels[:7])
    found = []
    for batch_size in (1, 5, 7):
        with npu_session.new_graph().as_default():
            made = masf_func.create_variables(masf_func.random_start(0))
            tested = evaluation.build(made, batch_size, [images], 1)
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                found.append(evaluation.outputs(session, tested, images))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[0].labels, images.labels)


def test_distances_between_domains():
    def outputs(features, labels):
        return evaluation.Outputs(None, None, np.float32(features), None, np.array(labels))

    found = evaluation.class_distances(outputs([[0, 0], [3, 4]], [0, 1]),
                                       [outputs([[0, 0]], [0]), outputs([[3, 4]], [1])])
    assert found == {"distance_same_class": 0.0, "distance_other_classes": 5.0}
    assert evaluation.class_distances(outputs([[0, 0]], [0]), []) == {}


# ---------------------------------------------------------------- methods


def assert_trained(folder, optimizers):
    """As many Adams as there are losses to follow; all records are finite."""
    powers = [name for name in last_state(folder) if name.startswith("beta1_power")]
    assert len(powers) == optimizers
    line = records(folder)[0]
    assert all(np.isfinite(value) for value in line.values())
    assert line["metatrain_global_loss"] > 0  # reported, whether it is used or not


@pytest.mark.parametrize("flags, optimizers", [
    (["--global_alignment=False", "--local_clustering=False"], 2),
    (["--episodic=False", "--divergence=js", "--meta_lr=1e-7"], 3),
    (["--second_order=True", "--keep_prob=1"], 3)])
def test_every_method_trains(flags, optimizers, small_data, tmp_path):
    """With fewer images to test on: evenly chosen ones, all classes among them."""
    folder = trained(small_data, tmp_path, *flags, "--train_iterations=1", "--save_best=False",
                     "--test_images=14")
    result = read(folder, "result.json")
    assert result["images_tested"] == 14 and all(map(sum, result["confusion_matrix"]))
    assert_trained(folder, optimizers)


def test_reference_labels_lose_the_last_class(small_data, tmp_path):
    """Its one-hot rows are zeros: no cross entropy, and counted as class 0 in the accuracy."""
    folder = trained(small_data, tmp_path, "--labels=reference", "--train_iterations=1",
                     "--save_best=False", "--method=deepall")
    assert_trained(folder, 1)
    matrix = np.array(read(folder, "result.json")["confusion_matrix"])
    lists = data_generator.read_lists(os.path.join(small_data, "filelist"), ["photo"],
                                      dataroot=os.path.join(small_data, "kfold"))
    counts = np.bincount(lists["photo"].labels, minlength=7)
    np.testing.assert_array_equal(matrix.sum(1), np.roll(counts, 1))


def test_loop_equals_a_plain_loop_of_session_runs():
    """Two steps by npu_session.Loop and two by session.run of one train_op: bit-equal."""
    ends = []
    for looped in (True, False):
        with npu_session.new_graph().as_default():
            made = masf_func.create_variables(masf_func.random_start(1))
            random = np.random.RandomState(0)
            images = tf.constant(random.uniform(-100, 100, (3, 3, 227, 227, 3)).astype(np.float32))
            labels = tf.constant(np.eye(7, dtype=np.float32)[random.randint(0, 7, (3, 3))])

            def step(made=made, images=images, labels=labels):
                return masf_func.train_step(images, labels, made, masf_func.Settings(
                    1e-5, 1e-5, 1e-5, 10.0, 2.0, 0.5, True, True, True, "kl", False, 1))

            built = npu_session.Loop(step, 1) if looped else step()
            names = {variable.op.name: variable for variable in tf.global_variables()}
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                terms = (built.run(session, 2) if looped else
                         np.stack([session.run(built)[1] for _ in range(2)]))
                ends.append((terms, session.run(names)))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert sorted(ends[0][1]) == sorted(ends[1][1])
    for name, value in ends[0][1].items():
        np.testing.assert_array_equal(value, ends[1][1][name], err_msg=name)
    assert (ends[0][0][0] != ends[0][0][1]).any()  # other dropout, other weights


def test_the_graph_is_finalised_and_does_not_grow(whole):
    assert len(whole[2]) == ITERATIONS and len(set(whole[2])) == 1


def test_data_without_held_out_lists_leaves_best_source_out(small_data, tmp_path):
    data = shutil.copytree(small_data, str(tmp_path / "data"))
    for path in glob.glob(os.path.join(data, "filelist", "*_crossval.txt")):
        os.remove(path)
    code, out, err = train(data, tmp_path / "out", "--train_iterations=1", "--method=deepall",
                           FEW, pictures=True)
    assert code == 0 and "the rule best_source is left out" in err
    assert set(read(run_folder(tmp_path / "out"), "result.json")["selection"]) == {
        "last", "best_target"}
    assert "Held-out" not in out


def test_without_data_stand_in_images_are_made_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(main.make_standin_data, "make_standin_data",
                        lambda *places, **_: made.append(places) or os.makedirs(places[0]))
    for flags, place in (([], "./kfold/"), (["--output_dir=out"], "out/kfold")):
        code = npu_session.run_main(main.main, SHORT + flags)
        assert code == 2 and made[-1][0] == place  # the lists are not there: nothing was drawn
        assert os.path.dirname(made[-1][0].rstrip("/")) == os.path.dirname(made[-1][1])
        shutil.rmtree("kfold", ignore_errors=True)


# ---------------------------------------------------------------- the program as it is


def test_the_program_runs_from_another_folder_and_sigterm_saves(small_data, tmp_path):
    """The whole network, one update; then a run that is stopped at its first record."""
    command = [sys.executable, main.__file__] + data_flags(small_data) + SHORT
    done = subprocess.run(
        command + [f"--output_dir={tmp_path}", "--train_iterations=1", "--save_best=False", FEW],
        capture_output=True, text=True, timeout=900, cwd=str(tmp_path), check=False)
    assert done.returncode == 0, done.stderr
    assert "Unseen Target Validation results: Iteration 0" in done.stdout
    shapes = dict(tf.train.list_variables(os.path.join(run_folder(tmp_path), "checkpoints")))
    assert shapes["model/fc6/weights"] == [9216, 4096]
    assert shapes["model/metric/w1"] == [4096, 1024]
    assert sum(int(np.prod(shapes["model/" + name])) for name in masf_func.variable_shapes()
               if not name.startswith("metric")) == 56896903
    shutil.rmtree(str(tmp_path), ignore_errors=True)


def test_sigterm_to_the_program_saves_and_exits_143(small_data, tmp_path):
    code = ("import sys, types, training_runs, main, npu_session\n"
            "training_runs.narrow_network(types.SimpleNamespace(setattr=setattr))\n"
            "sys.exit(npu_session.run_main(main.main))")
    paths = [os.path.dirname(main.__file__), os.path.dirname(os.path.abspath(__file__))]
    log = open(str(tmp_path / "log"), "w+")
    process = subprocess.Popen(
        [sys.executable, "-c", code] + data_flags(small_data) + SHORT
        + [f"--output_dir={tmp_path}", "--train_iterations=500", "--test_print_interval=500",
           "--method=deepall"],
        stdout=log, stderr=subprocess.STDOUT,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED="1"))
    deadline = time.time() + 900
    while ("Perf:" not in (tmp_path / "log").read_text() and process.poll() is None
           and time.time() < deadline):
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=600) == 143, (tmp_path / "log").read_text()
    log.close()
    done = last_state(run_folder(tmp_path))["model/Variable"]
    assert done == records(run_folder(tmp_path))[-1]["step"] >= 1


def test_dropout_and_methods_use_the_flags():
    args = main.parse_args(["--keep_prob=0.7", "--clipNorm=False", "--seed=9", "--margin=20",
                            "--inner_lr=1e-3", "--outer_lr=1e-4", "--metric_lr=1e-6"])
    main.check(args)
    assert main.settings(args) == masf_func.Settings(
        1e-3, 1e-4, 1e-6, 20.0, None, 0.7, True, True, True, "kl", False, 9)
    assert set(utils.DIVERGENCES) == {"kl", "js"}
