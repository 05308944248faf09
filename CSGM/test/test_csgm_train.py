"""main.py as its users run it: command line, log, files, ModelArts, resume, and its loop."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import glob
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import main
import make_standin_data
import model_def
import npu_session
from training_runs import (
    EPOCHS,
    PER_EPOCH,
    SHORT,
    assert_same_end,
    contents,
    read,
    records,
    refused,
    run_folder,
    signal_at,
    stopped,
    train,
    trained,
    variables,
)

MODEL = os.path.dirname(os.path.dirname(os.path.abspath(main.__file__)))
ENTRIES = ("main", "make_standin_data", "compressed_sensing", "train_e2e", "export", "bench",
           "reproduce")
STEP_LINE = r"step (\d+), loss = (\d+\.\d\d) \((\d+\.\d) examples/sec; (\d+\.\d{3}) sec/batch\)"


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """(output folder, printed text) of an uninterrupted run."""
    output = str(tmp_path_factory.mktemp("whole"))
    code, out, err = train(small_data, output)
    assert code == 0, err
    return output, out


@pytest.fixture(scope="module")
def whole_folder(whole):
    return run_folder(whole[0])


# ---------------------------------------------------------------- command line


def test_entries_run_from_their_folder_and_from_another(small_data, tmp_path):
    processes = []
    for number, folder in enumerate(("src", os.path.join("mnist_vae", "src")) * 2):
        output = tmp_path / str(number)
        output.mkdir()
        cwd = os.path.join(MODEL, folder) if number < 2 else str(output)
        script = os.path.relpath(os.path.join(MODEL, folder, "main.py"), cwd)
        flags = [f"--output_dir={output}"] if number < 2 else []  # default: the working directory
        processes.append(subprocess.Popen(
            [sys.executable, script, f"--data_dir={small_data}", "--max_steps=1"] + SHORT + flags,
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for number, process in enumerate(processes):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert read(run_folder(tmp_path / str(number)), "result.json")["step"] == 1
        assert out.splitlines()[-1].startswith("===============min_reconstruct_error_in_epoch")


@pytest.mark.parametrize("name", ENTRIES)
def test_help_of_every_entry_and_an_unknown_flag(name, capsys):
    module = importlib.import_module(name)
    for flag, code in (("--help", 0), ("--no_such_flag=1", 2)):
        with pytest.raises(SystemExit) as ended:
            module.main([flag])
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert "usage:" in printed.out and "--no_such_flag" in printed.err


def test_help_of_the_seeds_second_entry():
    done = subprocess.run([sys.executable, os.path.join(MODEL, "mnist_vae", "src", "main.py"),
                           "--help"], stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0 and "--data_url" in done.stdout and "--epochs" in done.stdout


@pytest.mark.parametrize("flag", [
    "--epoch=3", "--epochs=0", "--batch_size=-1", "--learning_rate=0", "--learning_rate=nan",
    "--resume=maybe", "--precision_mode=fp16", "--seed=-1", "--log_every=0", "extra"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        main.parse_args([flag])
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


def test_defaults_are_the_references():
    args = main.parse_args([])
    assert (args.epochs, args.batch_size, args.learning_rate, args.ckpt_epoch,
            args.summary_epoch, args.precision_mode, args.resume) == (
                750, 100, 0.001, 5, 1, "allow_mix_precision", "auto")


# ---------------------------------------------------------------- log and files


def test_log_has_the_seeds_lines_in_its_order(whole):
    lines = whole[1].splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["Extracting"] * 4
    assert lines[4] == "data: stand-in digits" and lines[5] == "test_data (300, 784)"
    settings = [line.split(" = ")[0] for line in lines if " = " in line and "loss =" not in line]
    assert settings[:-EPOCHS] == sorted(settings[:-EPOCHS])  # the last ones are the epoch lines
    for name in ("batch_size = 50", "n_z = 20", "training_epochs = 3", "transfer_fct = softplus"):
        assert name in lines
    places = [lines.index(line) for line in (
        "enc/w1:0", "gen/b3:0", "No checkpoint found", "start training")]
    assert places == sorted(places)
    assert re.fullmatch(r"={15}min_reconstruct_error_in_epoch:2,reis0\.\d{5}={20}", lines[-1])


def test_step_and_epoch_lines(whole):
    lines = whole[1].splitlines()
    steps = [re.fullmatch(STEP_LINE, line) for line in lines if line.startswith("step ")]
    assert [int(step.group(1)) for step in steps] == [3, 7, 9, 11, 15, 19, 23, 27, 29]
    for step in steps:  # the speeds are rounded; the seconds have 3 decimals
        speed, seconds = float(step.group(3)), float(step.group(4))
        assert abs(50 / speed - seconds) < 6e-4
    tail = [line for line in lines[lines.index("start training") + 1:]
            if not line.startswith("step ")]
    for epoch in range(EPOCHS):
        first, val, test, average = tail[4 * epoch:4 * epoch + 4]
        assert first == str(epoch)
        assert re.fullmatch(r"={16}val_reconstruct_error={20} 0\.\d+", val)
        assert re.fullmatch(r"={16}test_reconstruct_error={20} 0\.\d+", test)
        assert re.fullmatch(rf"Epoch: {epoch + 1:04d} Avg loss = \d+\.\d{{9}}", average)


def test_files_and_their_names(whole, whole_folder):
    found = sorted(name for name in os.listdir(whole_folder) if not name.startswith("events."))
    assert found == sorted(
        [".lock", "checkpoint", "config.json", "metrics.jsonl", "result.json"]
        + [f"mnist_vae_model-{epoch}{ending}" for epoch in range(EPOCHS)
           for ending in (".data-00000-of-00001", ".index", ".meta")])
    samples = os.listdir(os.path.join(whole[0], "samples", "mnist-vae"))
    assert sorted(samples) == sorted(f"{name}_{epoch:02d}_0009.png" for epoch in (0, 2)
                                     for name in ("orig", "reconstr", "sampled"))


def test_records_config_and_result_agree_with_the_log(whole, whole_folder):
    config, result = read(whole_folder, "config.json"), read(whole_folder, "result.json")
    assert config["seed"] == 0 and config["device"] == "cpu" and config["processes"] == 1
    assert config["flags"]["num_samples"] == 500 and config["flags"]["data"] == "stand-in digits"
    assert config["versions"]["tensorflow"] == tf.__version__
    assert result["data"] == "stand-in digits" and result["step"] == EPOCHS * PER_EPOCH
    lines = records(whole_folder)
    assert [line["step"] for line in lines] == [
        4, 8, 10, 10, 12, 16, 20, 20, 24, 28, 30, 30]
    printed = [match.group(2) for match in re.finditer(STEP_LINE, whole[1])]
    assert printed == [f"{line['loss']:.2f}" for line in lines if "loss" in line]
    for line in lines:
        if "loss" in line:
            assert line["loss"] == pytest.approx(line["reconstr_loss"] + line["latent_loss"])
    best = min(line["test_reconstruct_error"] for line in lines if "epoch_loss" in line)
    assert result["min_reconstruct_error"] == pytest.approx(best)
    assert f"reis{best:.5f}=" in whole[1]
    assert result["full_test_error_mean_z"] == lines[-1]["full_test_error_mean_z"]


def test_events_are_readable_and_their_tags_stable(whole_folder):
    tags = {}
    for path in glob.glob(os.path.join(whole_folder, "events.*")):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                tags.setdefault(value.tag, []).append(event.step)
    assert sorted(tags) == sorted(model_def.LOSS_TERMS + (
        "epoch", "epoch_loss", "examples_per_second", "full_test_error_mean_z",
        "full_test_error_sampled_z", "min_reconstruct_error", "test_reconstruct_error",
        "val_reconstruct_error"))
    assert tags["loss"] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert tags["epoch_loss"] == [10, 20, 30]


# ---------------------------------------------------------------- data and ModelArts


def test_without_data_stand_in_digits_are_made_and_named(tmp_path, monkeypatch):
    plain = make_standin_data.make_standin_data
    monkeypatch.setattr(make_standin_data, "make_standin_data",
                        lambda folder, seed: plain(folder, 600, 60, seed=seed, workers=1))
    monkeypatch.chdir(tmp_path)
    for flags in (["--max_steps=1"], ["--max_steps=2"]):
        assert npu_session.run_main(main.main, SHORT + flags) == 0
    assert os.path.exists(os.path.join("MNISTS-data", "STANDIN.txt"))
    result = read(run_folder("."), "result.json")
    assert result["data"] == "stand-in digits" and result["step"] == 2


def test_a_mistyped_data_folder_is_refused_with_the_command_for_stand_in(tmp_path):
    missing = str(tmp_path / "nmist")
    sentence = refused(missing, tmp_path)
    script, flag = re.search(r"python (\S+) (--data_dir=\S+)", sentence).groups()
    assert missing in sentence and os.path.isfile(os.path.join(MODEL, script))
    assert make_standin_data.parse_args([flag]).data_dir == missing
    assert os.listdir(str(tmp_path)) == []


def test_local_urls_are_used_in_place(small_data, tmp_path):
    code, _, err = train("nowhere", "nowhere", "--max_steps=1", f"--data_url={small_data}",
                         f"--train_url={tmp_path}")
    assert code == 0, err
    assert read(run_folder(tmp_path), "result.json")["step"] == 1


class Moxing:
    """moxing.file over a local folder in place of the obs:// bucket."""

    def __init__(self, bucket):
        self.bucket, self.copies = str(bucket), []

    def _local(self, address):
        return re.sub("^(obs|s3)://bucket", self.bucket, address)

    def exists(self, address):
        return os.path.exists(self._local(address))

    def copy_parallel(self, src_url, dst_url):
        source, target = self._local(src_url), self._local(dst_url)
        self.copies.append((src_url, dst_url))
        for folder, _, names in os.walk(source):
            place = os.path.join(target, os.path.relpath(folder, source))
            os.makedirs(place, exist_ok=True)
            for name in names:
                shutil.copy2(os.path.join(folder, name), place)


@pytest.fixture
def moxing(tmp_path, monkeypatch, small_data):
    """The fake moxing; the bucket holds the small data set. Scratch folders go to tmp_path."""
    files = Moxing(tmp_path / "bucket")
    shutil.copytree(small_data, str(tmp_path / "bucket" / "mnist"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(npu_session.tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(npu_session.os.path, "isdir",  # this machine may have a /cache
                        lambda path, plain=os.path.isdir: path != "/cache" and plain(path))
    monkeypatch.setitem(sys.modules, "moxing", types.SimpleNamespace(file=files))
    return files


def test_obs_addresses_are_staged_and_an_interrupted_job_resumes(moxing, monkeypatch, whole_folder):
    flags = ["--data_url=obs://bucket/mnist", "--train_url=s3://bucket/job"]
    stopped(monkeypatch, 12, "nowhere", "nowhere", *flags)
    assert "mnist_vae_model-1.step12.index" in os.listdir(run_folder(moxing.bucket + "/job"))
    code, out, err = train("nowhere", "nowhere", *flags)
    assert code == 0 and "at counter = 12" in out, err
    assert_same_end(run_folder(moxing.bucket + "/job"), whole_folder)


def test_obs_results_come_out_of_a_failed_job_and_jobs_do_not_mix(moxing):
    flags = ["--data_url=obs://bucket/mnist", "--learning_rate=1e6"]
    assert "not finite" in refused("nowhere", "nowhere", "--train_url=obs://bucket/a", *flags,
                                   code=3)
    assert "config.json" in os.listdir(run_folder(moxing.bucket + "/a"))
    code, out, _ = train("nowhere", "nowhere", "--data_url=obs://bucket/mnist", "--max_steps=1",
                         "--train_url=obs://bucket/b")
    assert code == 0 and "No checkpoint found" in out


def test_obs_without_moxing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "moxing", None)
    for flag in ("--data_url=obs://bucket/mnist", "--train_url=s3://bucket/job"):
        assert "needs the package moxing" in refused("nowhere", tmp_path, flag)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("step", [4, 10, 16])  # within and at the end of the first epoch, later
def test_resume_after_sigterm_is_exact(step, small_data, tmp_path, monkeypatch, whole_folder):
    out = stopped(monkeypatch, step, small_data, tmp_path)
    assert f"stopped by a signal after step {step - 1}" in out
    code, out, err = train(small_data, tmp_path, "--resume")
    assert code == 0 and f"at counter = {step}" in out, err
    assert_same_end(run_folder(tmp_path), whole_folder)


def test_a_run_stopped_again_and_again_ends_the_same(small_data, tmp_path, monkeypatch,
                                                     whole_folder):
    for step, number in ((8, signal.SIGINT), (12, signal.SIGTERM), (20, signal.SIGTERM)):
        stopped(monkeypatch, step, small_data, tmp_path, number=number)
    trained(small_data, tmp_path)
    assert_same_end(run_folder(tmp_path), whole_folder)


def test_a_second_signal_interrupts_at_once(small_data, tmp_path, monkeypatch, whole_folder):
    with monkeypatch.context() as patch:
        signal_at(patch, 16, signal.SIGINT, signal.SIGINT)
        assert refused(small_data, tmp_path, code=130) == "error: interrupted"
    code, out, _ = train(small_data, tmp_path, "--resume=True")
    assert code == 0 and "at counter = 10" in out  # the last whole epoch
    assert_same_end(run_folder(tmp_path), whole_folder)


def start(data, output, *flags):
    """main.py in a process of its own, after its first step line."""
    process = subprocess.Popen(
        [sys.executable, os.path.join(MODEL, "src", "main.py"), f"--data_dir={data}",
         f"--output_dir={output}"] + SHORT + list(flags), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step "):
            return process
    raise AssertionError(process.communicate()[1])


def test_sigterm_to_the_program_saves_and_exits_143(small_data, tmp_path, whole_folder):
    process = start(small_data, tmp_path, f"--epochs={EPOCHS}", "--ckpt_epoch=9")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by a signal" in out, err
    trained(small_data, tmp_path, "--resume")
    assert_same_end(run_folder(tmp_path), whole_folder)


def test_kill_at_any_moment_costs_no_more_than_an_epoch(small_data, tmp_path):
    flags = ["--epochs=15", "--sample_epoch=100", "--eval_epoch=100"]
    random = np.random.RandomState(int(time.time()))
    for _ in range(2):
        process = start(small_data, tmp_path / "killed", *flags)
        time.sleep(random.uniform(0.1, 1.2))
        process.kill()
        process.communicate()
    folder = trained(small_data, tmp_path / "killed", *flags)  # anew if nothing was saved yet
    assert_same_end(folder, trained(small_data, tmp_path / "whole", *flags))


def test_a_moved_folder_resumes_and_more_epochs_continue(small_data, tmp_path, whole_folder):
    trained(small_data, tmp_path / "here", "--epochs=2")
    shutil.move(str(tmp_path / "here"), str(tmp_path / "there"))
    code, out, err = train(small_data, tmp_path / "there", "--resume")
    assert code == 0 and "at counter = 20" in out and str(tmp_path / "there") in out, err
    assert_same_end(run_folder(tmp_path / "there"), whole_folder)


def test_resume_needs_a_run_and_no_resume_an_empty_folder(small_data, tmp_path, whole):
    assert "no run" in refused(small_data, tmp_path, "--resume")
    before = contents(run_folder(whole[0]), ".index", ".jsonl", ".json", "00001")
    sentence = refused(small_data, whole[0], "--resume=False")
    assert "holds a run" in sentence and "--resume" in sentence
    assert contents(run_folder(whole[0]), ".index", ".jsonl", ".json", "00001") == before


def test_a_finished_run_run_again_says_so_and_keeps_its_results(small_data, tmp_path, whole):
    shutil.copytree(whole[0], str(tmp_path / "again"))
    code, out, err = train(small_data, tmp_path / "again")
    assert code == 0 and "nothing left to train: 30 steps are done" in out, err
    assert out.splitlines()[-1] == whole[1].splitlines()[-1]
    assert_same_end(run_folder(tmp_path / "again"), run_folder(whole[0]))


@pytest.mark.parametrize("name, flag", [
    ("seed", "--seed=1"), ("batch_size", "--batch_size=25"), ("num_samples", "--num_samples=400"),
    ("learning_rate", "--learning_rate=0.01")])
def test_a_changed_fixed_flag_is_refused_by_name(name, flag, small_data, whole):
    before = contents(run_folder(whole[0]), ".index", ".jsonl", "config.json", "00001")
    assert f"started with {name}=" in refused(small_data, whole[0], flag)
    assert contents(run_folder(whole[0]), ".index", ".jsonl", "config.json", "00001") == before


def test_a_run_on_stand_in_digits_is_not_continued_with_other_data(small_data, tmp_path, whole):
    """Else a result on stand-in data would be written down as one on MNIST."""
    shutil.copytree(small_data, str(tmp_path / "mnist"))
    os.remove(str(tmp_path / "mnist" / "STANDIN.txt"))
    sentence = refused(tmp_path / "mnist", whole[0], "--epochs=4")
    assert "data=stand-in digits, not MNIST" in sentence


def test_a_refused_first_try_does_not_bind_the_folder(small_data, tmp_path):
    assert "--batch_size=2000" in refused(small_data, tmp_path, "--batch_size=2000",
                                          "--num_samples=4000")
    trained(small_data, tmp_path, "--max_steps=1", "--resume=False")


def test_same_seed_same_run_however_many_steps_per_call(small_data, tmp_path, whole_folder):
    again = trained(small_data, tmp_path / "again")
    assert_same_end(again, whole_folder)
    by_one = variables(trained(small_data, tmp_path / "by_one", "--log_every=1"))
    other = variables(trained(small_data, tmp_path / "other", "--seed=1"))
    for name, value in variables(whole_folder).items():
        np.testing.assert_array_equal(by_one[name], value, err_msg=name)
    for name in model_def.VARIABLES:
        assert np.any(other[name] != variables(whole_folder)[name]), name


# ---------------------------------------------------------------- loop


def test_the_graph_is_finalised_and_does_not_grow(small_data, tmp_path, monkeypatch):
    plain, sizes = npu_session.Loop.run, []

    def run(self, session, count):
        assert session.graph.finalized
        sizes.append(len(session.graph.get_operations()))
        return plain(self, session, count)

    monkeypatch.setattr(npu_session.Loop, "run", run)
    trained(small_data, tmp_path)
    assert len(sizes) == 9 and len(set(sizes)) == 1


def counting_step():
    """(train_op, values [2]): a variable becomes 1.5 x + 1; values: x before and its square."""
    x = tf.get_variable("x", [], initializer=tf.constant_initializer(1.0))
    before = tf.identity(x)
    with tf.control_dependencies([before]):
        return x.assign(1.5 * before + 1).op, tf.stack([before, before * before])


def test_loop_equals_a_plain_loop_of_session_runs():
    with npu_session.new_graph().as_default(), tf.Session() as session:
        loop = npu_session.Loop(counting_step, 3)
        session.run(tf.global_variables_initializer())
        loop.prepare(session)
        looped = np.concatenate([loop.run(session, count) for count in (1, 5, 4)])
    with npu_session.new_graph().as_default(), tf.Session() as session:
        train_op, values = counting_step()
        session.run(tf.global_variables_initializer())
        plain = []
        for _ in range(10):
            plain.append(session.run(values))
            session.run(train_op)
    np.testing.assert_array_equal(looped, np.stack(plain))


def test_names_in_the_loop_are_those_of_a_plain_graph():
    with npu_session.new_graph().as_default():
        npu_session.Loop(counting_step, 1)
        assert [variable.op.name for variable in tf.global_variables()] == ["x"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_notes_the_signal_and_restores_the_handlers(number, code):
    before = signal.getsignal(number)
    with npu_session.Stop() as stop:
        assert stop.code == 0
        os.kill(os.getpid(), number)
        assert stop.code == code
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("error, code, text", [
    (npu_session.InputError("mend this"), 2, "error: mend this\n"),
    (OSError(28, "No space left on device"), 1, "No space left on device"),
    (FloatingPointError("not finite"), 3, "error: not finite\n"),
    (KeyboardInterrupt(), 130, "error: interrupted\n")])
def test_run_main_turns_errors_into_codes_and_sentences(error, code, text, capsys):
    def fail(_):
        raise error
    assert npu_session.run_main(fail, []) == code
    assert text in capsys.readouterr().err


def test_run_main_passes_codes_on_and_hides_no_bug():
    assert npu_session.run_main(lambda _: None) == 0
    assert npu_session.run_main(lambda _: 143) == 143
    with pytest.raises(KeyError):
        npu_session.run_main(lambda _: {}["bug"])


# ---------------------------------------------------------------- checkpoints and run folder


def saved(folder, count):
    """Checkpoints x-0 ... of a variable v with their number as value, written to `folder`."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        v = tf.get_variable("v", [3])
        checkpoints = npu_session.Checkpoints(str(folder), keep=3)
        for number in range(count):
            v.load([number] * 3, session)
            checkpoints.save(session, f"x-{number}")


def restored(folder, required=False):
    """(path, value of v) after a restore."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        v = tf.get_variable("v", [3], initializer=tf.constant_initializer(-1.0))
        session.run(v.initializer)
        path = npu_session.Checkpoints(str(folder)).restore(session, required)
        return path and os.path.basename(path), session.run(v)[0]


def test_checkpoints_keep_the_last_ones_and_restore_the_newest(tmp_path):
    saved(tmp_path, 5)
    kept = sorted(name for name in os.listdir(str(tmp_path)) if name.endswith(".index"))
    assert kept == ["x-2.index", "x-3.index", "x-4.index"]
    assert restored(tmp_path) == ("x-4", 4)
    os.remove(str(tmp_path / "checkpoint"))
    assert restored(tmp_path) == ("x-4", 4)


def test_nothing_to_restore(tmp_path):
    assert restored(tmp_path) == (None, -1)
    with pytest.raises(npu_session.InputError, match="no readable checkpoint"):
        restored(tmp_path, required=True)


def test_a_users_own_copy_of_a_checkpoint_is_never_deleted(tmp_path):
    saved(tmp_path, 1)
    for name in ("index", "data-00000-of-00001"):
        shutil.copy(str(tmp_path / f"x-0.{name}"), str(tmp_path / f"best.{name}"))
    with npu_session.new_graph().as_default(), tf.Session() as session:
        tf.get_variable("v", [3])
        checkpoints = npu_session.Checkpoints(str(tmp_path), keep=2)
        checkpoints.restore(session)
        for number in range(1, 6):
            checkpoints.save(session, f"x-{number}")
    assert sorted(name for name in os.listdir(str(tmp_path)) if name.endswith(".index")) == [
        "best.index", "x-4.index", "x-5.index"]


def arguments(**flags):
    return types.SimpleNamespace(**dict({"seed": 0, "resume": "auto"}, **flags))


def test_run_folder_records_and_rewinds(tmp_path):
    folder = npu_session.RunFolder(str(tmp_path), arguments())
    for step in (1, 2, 3):
        folder.log(step, loss=step / 2)
    folder.rewind(2)
    folder.log(3, loss=9.0)
    assert [(line["step"], line["loss"]) for line in folder.records()] == [
        (1, 0.5), (2, 1.0), (3, 9.0)]
    folder.finish(answer=42)
    assert json.loads((tmp_path / "result.json").read_text()) == {"answer": 42}


def test_run_folder_is_locked_until_it_goes(tmp_path):
    folder = npu_session.RunFolder(str(tmp_path), arguments())
    with pytest.raises(npu_session.InputError, match="another run is writing"):
        npu_session.RunFolder(str(tmp_path), arguments())
    del folder
    npu_session.RunFolder(str(tmp_path), arguments())


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")
    monkeypatch.setattr(npu_session.fcntl, "flock", no_locks)
    npu_session.RunFolder(str(tmp_path), arguments())
