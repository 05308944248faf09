"""Training as its users run it: command line, log, files, ModelArts, resume, and its loop."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import glob
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import landmark_lists
import make_standin_data
import model_def
import npu_session
import train as train_program
import VDSR
from training_runs import (
    SHORT,
    STEPS,
    assert_same_end,
    checkpoint_folder,
    contents,
    narrow_network,
    program,
    read,
    records,
    refused,
    refused_early,
    signal_at,
    stopped,
    train,
    trained,
    variables,
)

MODEL = os.path.dirname(os.path.abspath(VDSR.__file__))
PROGRESS = r"progress  epoch (\d+)  step (\d+)  image/sec (\d+\.\d)  remaining (\d+)m"


@pytest.fixture
def whole(whole_run):
    """(run folder, printed text) of an uninterrupted run."""
    return whole_run


@pytest.fixture(scope="module")
def one_image(faces, tmp_path_factory):
    """A folder with one image."""
    folder = tmp_path_factory.mktemp("one_image")
    shutil.copy(data_input.find_images(faces)[0], str(folder))
    return str(folder)


# ---------------------------------------------------------------- command line


def test_the_whole_network_trains_from_its_folder_and_from_another(one_image, tmp_path):
    """VDSR.py is stopped by a signal, train.py trains to its end; no third may write there."""
    processes = []
    for number, (script, flags) in enumerate((
            ("VDSR.py", [f"--output_dir={tmp_path}/0/output", "--max_steps=1000"]),
            ("train.py", ["--max_steps=1"]))):  # default of --output_dir: ./output
        (tmp_path / str(number)).mkdir()
        cwd = str(tmp_path / "1") if number else MODEL
        processes.append(subprocess.Popen(
            [sys.executable, os.path.relpath(os.path.join(MODEL, script), cwd),
             f"--input_dir={one_image}", "--batch_size=1", "--K=2", "--summary_freq=1",
             "--threads=1"] + flags,
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for line in processes[0].stdout:
        if line.startswith("progress"):
            break
    assert "another run is writing" in refused_early(one_image, tmp_path / "0" / "output",
                                                     "--batch_size=1")
    processes[0].send_signal(signal.SIGTERM)
    for number, process in enumerate(processes):
        out, err = process.communicate(timeout=300)
        found = variables(tmp_path / str(number) / "output")
        assert found["cnn_tower/layer_5/conv/filter"].shape == (5, 5, 80, 256)
        if number == 0:
            assert process.returncode == 143, err
            step = int(re.search(r"stopped by a signal after step (\d+)", out).group(1))
            assert found["global_step"] == step
        else:
            assert process.returncode == 0 and found["global_step"] == 1, err
            assert out.splitlines()[-1].startswith("pictures ")
            assert "parameter_count = 756040\n" in out


@pytest.mark.parametrize("name", ["VDSR", "train", "test"])
def test_help_of_every_entry_and_an_unknown_flag(name, capsys):
    module = importlib.import_module(name)
    assert os.path.dirname(os.path.abspath(module.__file__)) == MODEL
    for flag, code in (("--help", 0), ("--no_such_flag=1", 2)):
        with pytest.raises(SystemExit) as ended:
            module.main([flag])
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert "usage:" in printed.out and "--diversity_weight" in printed.out
    assert "--no_such_flag" in printed.err


@pytest.mark.parametrize("flag", [
    "--K=0", "--K=-3", "--K=two", "--batch_size=0", "--max_epochs=0", "--learning_rate=0",
    "--learning_rate=nan", "--beta1=1", "--M=0", "--M=43", "--weight_decay=-1", "--mode=eval",
    "--num_gpus=2", "--resume=maybe", "--seed=-1", "--precision_mode=fp16", "--overlay=wrong",
    "--exact_coordinates=perhaps", "--pair_warp=0.6", "extra"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        VDSR.parse_args([flag])
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("flags, text", [
    (["--crop_size=150"], "--crop_size=150 is larger than --scale_size=146"),
    (["--scale_size=140"], "--crop_size=146 is larger than --scale_size=140"),
    (["--crop_size=132"], "--crop_size=132 is too small")])
def test_crops_that_do_not_fit_are_refused(flags, text, one_image, tmp_path):
    assert text in refused(one_image, tmp_path / "out", *flags)
    assert not os.path.exists(str(tmp_path / "out"))


def test_defaults_are_the_references():
    args = VDSR.parse_args([])
    assert (args.mode, args.K, args.batch_size, args.learning_rate, args.beta1, args.M,
            args.weight_decay, args.seed, args.diversity_weight, args.align_weight,
            args.scale_size, args.crop_size, args.max_epochs, args.summary_freq, args.save_freq,
            args.precision_mode) == (
                "train", 8, 32, 1e-4, 0.5, 4, 0.0005, 1234, 500, 1, 146, 146, 200, 20, 500,
                "allow_mix_precision")
    assert not args.exact_coordinates and not args.tps_weight and args.conv_dtype == "float32"
    assert VDSR.parse_args(["--random_seed=3"]).seed == VDSR.parse_args(["--seed=3"]).seed == 3


@pytest.mark.parametrize("flags, expected", [
    ([], (3125, 625000, 20, 500, 20)),
    (["--max_steps=625001"], (3125, 625000, 20, 500, 20)),
    (["--max_steps=17"], (3125, 17, 20, 500, 1)),
    (["--summary_freq=0", "--save_freq=-1", "--max_steps=90"], (3125, 90, 90, 90, 18)),
    (["--max_steps=40", "--iterations_per_loop=8"], (3125, 40, 20, 500, 8))])
def test_schedule(flags, expected):
    assert tuple(train_program.schedule(VDSR.parse_args(flags), 3125)) == expected


def test_bfloat16_trains_or_is_refused_in_tensorflow_1(faces, tmp_path):
    flags = ["--conv_dtype=bfloat16", "--max_steps=2"]
    if tf.__version__.startswith("1."):
        assert "has no such convolutions" in refused(faces, tmp_path / "out", *flags)
        assert not os.path.exists(str(tmp_path / "out"))
    else:
        assert variables(trained(faces, tmp_path, *flags))["global_step"] == 2


# ---------------------------------------------------------------- log and files


def test_log_has_the_seeds_lines_in_its_order(whole):
    lines = whole[1].splitlines()
    assert lines[:4] == ["data: stand-in faces", "----------------------examples count = 32",
                         "max epochs:  200", f"max steps :  {STEPS}"]
    assert re.fullmatch(r"parameter_count = \d+", lines[4])
    blocks = [number for number, line in enumerate(lines) if line.startswith("progress")]
    assert len(blocks) == STEPS // 2
    for number, first in enumerate(blocks):
        epoch, step, rate, _ = re.fullmatch(PROGRESS, lines[first]).groups()
        assert (int(epoch), int(step)) == ((2 * number + 1) // 8 + 1, (2 * number + 1) % 8 + 1)
        assert float(rate) > 0
        for offset, name in enumerate(("loss_align", "loss_diversity", "loss_decay"), 1):
            assert re.fullmatch(name + r" \d+\.\d+(e-\d+)?", lines[first + offset])
        assert lines[first + 4].startswith("mean of 2 updates: align ")
        assert lines[first + 5] == "-" * 30
    saves = [lines[number + 1] for number, line in enumerate(lines) if line == "saving model..."]
    assert saves == [os.path.join(whole[0], "ckpt", f"model-{step}") for step in (4, 8, 12)]


def test_files_and_their_names(whole):
    found = {os.path.relpath(path, whole[0]) for path in contents(whole[0], "")}
    events = {name for name in found if os.path.basename(name).startswith("events.")}
    assert {os.path.dirname(name) for name in events} == {"", "logs"}
    assert found - events == {
        ".lock", "config.json", "metrics.jsonl", "result.json", "ckpt/checkpoint",
        "images/loss_curves.png"} | {
            f"images/landmarks_{step:07d}.jpg" for step in (4, 8, 12)} | {
                f"ckpt/model-{step}{ending}" for step in (4, 8, 12)
                for ending in (".data-00000-of-00001", ".index", ".meta")}


def test_records_config_and_result_agree_with_the_log(whole):
    config, result = read(whole[0], "config.json"), read(whole[0], "result.json")
    assert config["seed"] == 5 and config["device"] == "cpu" and config["flags"]["images"] == 32
    assert config["versions"]["tensorflow"] == tf.__version__
    lines = records(whole[0])
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    printed = re.findall(r"align (\S+) = spread (\S+) \+ distance (\S+), diversity (\S+)", whole[1])
    assert printed == [tuple(f"{line[name]:.{digits}f}" for name, digits in (
        ("loss_align", 3), ("align_spread", 3), ("align_distance", 3), ("loss_diversity", 4)))
        for line in lines]
    for line in lines:
        assert line["loss_align"] == pytest.approx(line["align_spread"] + line["align_distance"])
        assert line["loss"] == pytest.approx(
            line["loss_align"] + 500 * line["loss_diversity"] + line["loss_decay"], rel=1e-5)
    assert result["data"] == "stand-in faces" and result["step"] == STEPS and result["K"] == 3
    assert result["loss_align"] == pytest.approx(np.mean([line["loss_align"] for line in lines]))


def tags_of(folder):
    """{tag: steps} of the event files in a folder."""
    tags = {}
    for path in glob.glob(os.path.join(folder, "events.*")):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                tags.setdefault(value.tag, []).append(event.step)
    return tags


def test_events_are_readable_and_their_tags_stable(whole):
    tags = tags_of(whole[0])
    assert sorted(tags) == sorted(model_def.LOSS_TERMS + ("images_per_second",))
    assert tags["loss_align"] == [2, 4, 6, 8, 10, 12]
    pictures = tags_of(os.path.join(whole[0], "logs"))
    assert sorted(pictures) == sorted(f"{name}/image/{number}" for number in range(3) for name in (
        "Input", "Deformed", "PredA", "Landmark"))
    assert pictures["PredA/image/0"] == [4, 8, 12]


def test_pictures_are_small(whole):
    for path, content in contents(os.path.join(whole[0], "images"), "g").items():
        assert 2000 < len(content) < 300000, path


# ---------------------------------------------------------------- data and ModelArts


def test_without_data_stand_in_faces_are_made_and_named(tmp_path, monkeypatch):
    plain = make_standin_data.make_standin_data
    monkeypatch.setattr(make_standin_data, "make_standin_data",
                        lambda folder, seed: plain(folder, 6, 2, 2, seed=seed, workers=1))
    monkeypatch.chdir(tmp_path)
    code, out, err = program(*SHORT, "--max_steps=1", "--K=1")
    assert code == 0 and "data: stand-in faces" in out, err
    assert os.path.exists(os.path.join("standin_faces", "STANDIN.txt"))
    result = read("output", "result.json")
    assert result["data"] == "stand-in faces" and result["step"] == 1 and result["images"] == 8


def test_a_mistyped_folder_is_refused(tmp_path):
    missing = str(tmp_path / "facse")
    assert f"there is no folder {missing}" in refused(missing, tmp_path / "out")
    assert os.listdir(str(tmp_path)) == []


def test_an_image_list_chooses_the_images(faces, tmp_path):
    names = [os.path.basename(path) for path in data_input.find_images(faces)]
    (tmp_path / "names.txt").write_text("\n".join(names[3:8]) + "\n")
    (tmp_path / "parts.txt").write_text("".join(
        f"{name} {2 * (number > 6)}\n" for number, name in enumerate(names)))
    (tmp_path / "wrong.txt").write_text(names[0] + "\nunknown.jpg\n")
    paths = data_input.find_images(faces)
    assert train_program.chosen(paths, str(tmp_path / "names.txt")) == paths[3:8]
    assert train_program.chosen(paths, str(tmp_path / "parts.txt")) == paths[:7]
    assert train_program.chosen(paths, str(tmp_path / "parts.txt"),
                                landmark_lists.TESTING) == paths[7:]
    answer = refused(faces, tmp_path / "out", f"--image_list={tmp_path}/wrong.txt")
    assert "names 2 images for this, of which 1 are in" in answer and "unknown.jpg" in answer
    assert not os.path.exists(str(tmp_path / "out"))


def test_local_urls_are_used_in_place(faces, tmp_path):
    """--train_url alone is the output folder; beside --output_dir it receives the checkpoints."""
    flags = SHORT + ["--max_steps=1", f"--data_url={faces}", f"--train_url={tmp_path}/urls"]
    assert program(*flags)[0] == 0
    assert read(tmp_path / "urls", "result.json")["step"] == 1
    assert variables(tmp_path / "urls")["global_step"] == 1
    code, _, err = program(*flags[:-1], f"--output_dir={tmp_path}/out",
                           f"--train_url={tmp_path}/work")
    assert code == 0, err
    assert read(tmp_path / "out", "result.json")["step"] == 1
    assert variables(tmp_path / "work")["global_step"] == 1
    assert not os.path.exists(checkpoint_folder(tmp_path / "out"))


class Moxing:
    """moxing.file over a local folder in place of the obs:// bucket."""

    def __init__(self, bucket):
        self.bucket = str(bucket)

    def _local(self, address):
        return re.sub("^(obs|s3)://bucket", self.bucket, address)

    def exists(self, address):
        return os.path.exists(self._local(address))

    def copy_parallel(self, src_url, dst_url):
        source, target = self._local(src_url), self._local(dst_url)
        for folder, _, names in os.walk(source):
            place = os.path.join(target, os.path.relpath(folder, source))
            os.makedirs(place, exist_ok=True)
            for name in names:
                shutil.copy2(os.path.join(folder, name), place)


@pytest.fixture
def moxing(tmp_path, monkeypatch, faces):
    """The fake moxing; the bucket holds the faces. Scratch folders go to tmp_path."""
    files = Moxing(tmp_path / "bucket")
    shutil.copytree(faces, str(tmp_path / "bucket" / "faces"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(npu_session.tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(npu_session.os.path, "isdir",  # this machine may have a /cache
                        lambda path, plain=os.path.isdir: path != "/cache" and plain(path))
    monkeypatch.setitem(sys.modules, "moxing", types.SimpleNamespace(file=files))
    return files


def test_obs_addresses_are_staged_and_an_interrupted_job_resumes(moxing, monkeypatch, whole):
    flags = SHORT + ["--data_url=obs://bucket/faces", "--train_url=s3://bucket/job"]
    with monkeypatch.context() as patch:
        signal_at(patch, 6, signal.SIGTERM)
        assert program(*flags)[0] == 143
    job = moxing.bucket + "/job"
    assert "model-6.index" in os.listdir(checkpoint_folder(job))
    code, out, err = program(*flags, "--output_dir=unused")
    assert code == 0 and "at counter = 6" in out, err
    assert_same_end(job, whole[0])
    assert not os.path.exists("unused")


# ---------------------------------------------------------------- resume


def test_resume_after_sigterms_is_exact(faces, tmp_path, monkeypatch, whole):
    for step in (2, 8):  # between two checkpoints, at the end of an epoch
        out = stopped(monkeypatch, step, faces, tmp_path)
        assert f"stopped by a signal after step {step}: continue with --resume" in out
        assert not os.path.exists(str(tmp_path / "result.json"))
    code, out, err = train(faces, tmp_path, "--resume")
    assert code == 0 and "at counter = 8" in out, err
    assert_same_end(tmp_path, whole[0])


def test_a_second_signal_interrupts_at_once(faces, tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        signal_at(patch, 6, signal.SIGINT, signal.SIGINT)
        assert refused(faces, tmp_path, code=130) == "error: interrupted"
    code, out, _ = train(faces, tmp_path, "--resume=True")
    assert code == 0 and "at counter = 4" in out
    assert_same_end(tmp_path, whole[0])


def test_a_moved_folder_resumes_and_more_steps_continue(faces, tmp_path, whole):
    trained(faces, tmp_path / "here", "--max_steps=6")
    shutil.move(str(tmp_path / "here"), str(tmp_path / "there"))
    code, out, err = train(faces, tmp_path / "there", "--resume")
    assert code == 0 and "at counter = 6" in out and str(tmp_path / "there") in out, err
    assert_same_end(tmp_path / "there", whole[0])


def test_resume_needs_a_run_and_no_resume_an_empty_folder(faces, tmp_path, whole):
    assert "no run" in refused_early(faces, tmp_path, "--resume")
    before = contents(whole[0], ".index", ".jsonl", ".json", "00001")
    answer = refused_early(faces, whole[0], "--resume=False")
    assert "holds a run" in answer and "--resume" in answer
    assert contents(whole[0], ".index", ".jsonl", ".json", "00001") == before


def test_a_finished_run_run_again_keeps_its_results(faces, tmp_path, whole):
    shutil.copytree(whole[0], str(tmp_path / "again"))
    code, out, err = train(faces, tmp_path / "again")
    assert code == 0 and f"at counter = {STEPS}" in out and "progress" not in out, err
    assert_same_end(tmp_path / "again", whole[0])


def test_a_changed_fixed_flag_is_refused_by_name(faces, whole):
    before = contents(whole[0], ".index", ".jsonl", "config.json", "00001")
    assert "started with learning_rate=0.0001, not 0.01" in refused_early(
        faces, whole[0], "--learning_rate=0.01")
    assert contents(whole[0], ".index", ".jsonl", "config.json", "00001") == before
    flags = vars(VDSR.parse_args([]))
    free = {"mode", "input_dir", "image_list", "output_dir", "checkpoint", "num_gpus", "overlay",
            "max_epochs", "max_steps", "summary_freq", "save_freq", "iterations_per_loop",
            "resume", "data_url", "train_url", "threads", "precision_mode", "over_dump",
            "data_dump_flag", "data_dump_step", "profiling"}
    assert set(flags) - free == set(train_program.FIXED) - {"images", "data"}


def test_other_images_are_no_continuation(faces, tmp_path, whole):
    names = [os.path.basename(path) for path in data_input.find_images(faces)]
    (tmp_path / "names.txt").write_text("\n".join(names[:20]))
    assert "started with images=32, not 20" in refused_early(
        faces, whole[0], f"--image_list={tmp_path}/names.txt")
    shutil.copytree(os.path.join(faces, "data10w"), str(tmp_path / "faces"))  # without the note
    assert "started with data=stand-in faces" in refused_early(tmp_path / "faces", whole[0])


def test_another_runs_checkpoint_can_be_the_start(faces, tmp_path, whole):
    code, out, err = train(faces, tmp_path, f"--checkpoint={checkpoint_folder(whole[0])}",
                           "--max_steps=14", "--learning_rate=0.001")
    assert code == 0 and f"model-{STEPS} at counter = {STEPS}" in out, err
    assert [line["step"] for line in records(tmp_path)] == [14]
    assert variables(tmp_path)["global_step"] == 14
    answer = refused(faces, tmp_path / "b", f"--checkpoint={checkpoint_folder(whole[0])}", "--K=4")
    assert "cnn_tower/layer_6/conv/filter [5, 5, 4, 3], this model [5, 5, 4, 4]" in answer


def test_the_last_checkpoint_is_saved_whatever_the_batch(faces, tmp_path):
    """The reference ends early, without one, where the batch does not divide the images."""
    code, out, err = train(faces, tmp_path, "--batch_size=5", "--max_epochs=1", "--save_freq=0")
    assert code == 0 and "max steps :  6" in out, err  # 32 // 5
    assert variables(tmp_path)["global_step"] == 6
    assert glob.glob(os.path.join(checkpoint_folder(tmp_path), "*.index")) == [
        os.path.join(checkpoint_folder(tmp_path), "model-6.index")]


def test_same_seed_same_run_and_other_seed_another(faces, tmp_path, whole):
    """However many updates a session.run makes."""
    ours = variables(trained(faces, tmp_path / "again", "--summary_freq=1", "--max_steps=4"))
    other = variables(trained(faces, tmp_path / "other", "--seed=1", "--max_steps=2"))
    first = variables(whole[0], "model-4")
    for name, value in first.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
    for name in first:
        if name.endswith(("filter", "beta", "gamma", "moving_mean")):
            assert np.any(other[name] != first[name]), name


@pytest.mark.parametrize("flags", [["--cache_images"], [
    "--exact_coordinates=True", "--tps_weight=0.01", "--scale_size=160", "--crop_size=140"]])
def test_options_of_the_data_train(flags, faces, tmp_path, whole):
    folder = trained(faces, tmp_path, "--max_steps=4", *flags)
    assert variables(folder)["global_step"] == 4
    ours, first = (records(place)[0]["loss_align"] for place in (folder, whole[0]))
    assert ours != first
    if "--cache_images" in flags:  # the images differ by less than half a grey value
        assert ours == pytest.approx(first, rel=0.02)


def test_a_run_goes_on_in_the_other_tensorflow_and_comes_back(faces, tmp_path, run_other):
    folder = str(tmp_path / "run")
    trained(faces, folder, "--max_steps=4")
    alone = shutil.copytree(folder, str(tmp_path / "alone"))
    printed = run_other(
        "-c", "import sys, tensorflow, training_runs; print(tensorflow.__version__); "
              "training_runs.trained(sys.argv[1], sys.argv[2], '--max_steps=5')", faces, folder)
    assert printed.split(".")[0] != tf.__version__.split(".")[0]
    trained(faces, alone, "--max_steps=5")
    ours, theirs = variables(alone), variables(folder)
    assert sorted(ours) == sorted(theirs) and theirs["global_step"] == 5
    for name, value in ours.items():  # more updates would show what ReLUs make of rounding
        apart = np.linalg.norm(np.subtract(theirs[name], value))
        assert apart <= 1e-3 * np.linalg.norm(value), name
    code, out, err = train(faces, folder, "--max_steps=7")
    assert code == 0 and "at counter = 5" in out, err


# ---------------------------------------------------------------- loop


def test_the_graph_does_not_grow_and_segments_join(faces, tmp_path, monkeypatch, whole):
    plain, sizes = npu_session.Loop.run, []

    def run(self, session, count):
        assert session.graph.finalized
        sizes.append(len(session.graph.get_operations()))
        return plain(self, session, count)

    monkeypatch.setattr(npu_session.Loop, "run", run)
    monkeypatch.setattr(train_program, "SEGMENT", 3)  # becomes 4: two runs of two updates
    assert_same_end(trained(faces, tmp_path), whole[0])
    assert len(sizes) == 6 and len(set(sizes)) == 1


def test_loop_equals_plain_runs_of_the_step(faces, whole):
    """Four updates by session.run of the step itself, fed with the pipeline's batches."""
    args = VDSR.parse_args(SHORT)
    paths = data_input.find_images(faces)
    order = data_input.BatchOrder(len(paths), 4, args.seed)
    with narrow_network(), npu_session.new_graph().as_default(), tf.Session() as session:
        layers = model_def.create_variables(args.K, args.seed)
        pipeline = data_input.training_pipeline(paths, 4, train_program.preparation(args), 1)
        step = model_def.train_step(*pipeline.next_batch(), layers, args)
        session.run(tf.global_variables_initializer())
        session.run(pipeline.initializer, pipeline.feed(order.rows(0, 4), 0))
        terms = [session.run(step)[1] for _ in range(4)]
        values = {v.op.name: value for v, value in zip(
            tf.global_variables(), session.run(tf.global_variables()))}
    expected = variables(whole[0], "model-4")
    assert sorted(values) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(np.mean(terms[2:], 0)[0], records(whole[0])[1]["loss_align"],
                               rtol=1e-5)
