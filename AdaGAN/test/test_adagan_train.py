"""adagan_gmm.py as its users run it: command line, log, files, options, ModelArts, resume."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import glob
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

import adagan_gmm
import gan
import metrics
import mixture
import npu_session
from training_runs import (
    PER_COMPONENT,
    PER_EPOCH,
    SHORT,
    STEPS,
    assert_same_end,
    call_after,
    ckpt,
    contents,
    read,
    records,
    refused,
    samples,
    send,
    stopped,
    train,
    trained,
    variables,
)

MODEL = os.path.dirname(os.path.abspath(adagan_gmm.__file__))
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - "
STEP_LINES = [
    "Running step {} of AdaGAN", "Building the graph...", "Building Graph Done.",
    "Training a mixture discriminator", "Correctly classified real points probs:", "[0",
    "Incorrectly classified real points probs:", "[0", "Lambda= ", "Training GAN",
    "Saving a sample from the trained component...", "Cleaning the graph...",
    "Closing the session...", "Sampling fake points", "Sampling more fake points",
    "Plotting results", "Evaluating results", "Evaluating: log_p="]
FIRST_STEP_LACKS = slice(3, 9)  # there is no mixture yet to tell from the data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(run folder, standard output, standard error) of an uninterrupted run without pictures."""
    folder = str(tmp_path_factory.mktemp("whole"))
    code, out, err = train(folder)
    assert code == 0, err
    return folder, out, err


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Run folder of two steps with pictures."""
    folder = str(tmp_path_factory.mktemp("drawn"))
    return trained(folder, "--plots=True", "--steps=2", "--plot_every=5")


# ---------------------------------------------------------------- command line


def test_the_program_runs_from_its_folder_and_from_another(tmp_path):
    processes = []
    for number, cwd in enumerate((MODEL, str(tmp_path))):
        flags = [f"--workdir={tmp_path}/0"] if number == 0 else []
        processes.append(subprocess.Popen(
            [sys.executable, os.path.relpath(adagan_gmm.__file__, cwd)] + SHORT + flags
            + ["--steps=1", "--max_steps=2"], cwd=cwd, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True))
    for process, folder in zip(processes, ("0", "results")):  # results: the seed's default
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert read(tmp_path / folder, "result.json")["step"] == 2
        assert out.splitlines()[-1].startswith("results in ")


@pytest.mark.parametrize("flag, code", [("--help", 0), ("--no_such_flag=1", 2)])
def test_help_and_an_unknown_flag(flag, code, capsys):
    with pytest.raises(SystemExit) as ended:
        adagan_gmm.main([flag])
    printed = capsys.readouterr()
    assert ended.value.code == code and "--no_such_flag" in printed.err + "--no_such_flag"
    assert ("--weights_heur" in printed.out) == (code == 0)


@pytest.mark.parametrize("flag", [
    "--epochs=0", "--steps=-1", "--batch_size=0", "--g_learning_rate=0", "--learning_rate=nan",
    "--weights_heur=theory", "--beta_heur=half", "--objective=WGAN", "--optimizer=rmsprop",
    "--dataset=mnist", "--latent_space_distr=cauchy", "--adam_beta1=1", "--init_std=-1",
    "--seed=-1", "--resume=maybe", "--precision_mode=fp16", "--log_every=0", "--unrolled=2",
    "--epoch=3", "extra"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        adagan_gmm.parse_args([flag])
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


def test_defaults_are_the_references():
    args = adagan_gmm.parse_args([])
    expected = {
        "random_seed": 821, "dataset": "gmm", "unrolled": True, "unrolling_steps": 5,
        "gmm_max_val": 15.0, "toy_dataset_size": 64000, "toy_dataset_dim": 2,
        "adagan_steps_total": 10, "samples_per_component": 5000, "is_bagging": False,
        "beta_heur": "uniform", "weights_heur": "theory_star", "beta_constant": 0.5,
        "topk_constant": 0.5, "init_std": 0.8, "init_bias": 0.0, "latent_space_distr": "normal",
        "optimizer": "sgd", "batch_size": 64, "d_steps": 1, "g_steps": 1, "verbose": True,
        "tf_run_batch_size": 100, "objective": "JS", "gmm_modes_num": 10, "latent_space_dim": 5,
        "gan_epoch_num": 15, "mixture_c_epoch_num": 5, "opt_learning_rate": 0.008,
        "opt_d_learning_rate": 0.004, "opt_g_learning_rate": 0.01, "opt_beta1": 0.5,
        "plot_every": 500, "eval_points_num": 1000, "use_tqdm": True}
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("name, alias", [
    ("steps", "adagan_steps_total"), ("epochs", "gan_epoch_num"), ("zdim", "latent_space_dim"),
    ("modes", "gmm_modes_num"), ("dims", "toy_dataset_dim")])
def test_the_options_names_are_flags_too(name, alias):
    for flag in (name, alias):
        assert getattr(adagan_gmm.parse_args([f"--{flag}=3"]), alias) == 3


# ---------------------------------------------------------------- log and files


def test_log_has_the_references_lines_in_its_order(whole):
    lines = whole[1].splitlines()
    assert lines[:2] == ["epochs 2", "steps 3"]
    logged = [re.sub(STAMP, "", line) for line in lines if re.match(STAMP, line)]
    expected = ["Loading GMM dataset...", "Loading GMM dataset done!"]
    for step in range(STEPS):
        names = list(STEP_LINES)
        if step == 0:
            del names[FIRST_STEP_LACKS]
        expected += [name.format(step) for name in names]
    expected.append("AdaGan finished working!")
    assert len(logged) == len(expected)
    for line, beginning in zip(logged, expected):
        assert line.startswith(beginning), (line, beginning)
    assert sum(re.fullmatch(r"Perf:  \d+\.\d+", line) is not None for line in lines) == STEPS


def test_the_metric_line_has_the_seeds_form(whole):
    lines = [line for line in whole[1].splitlines() if "Evaluating: " in line]
    assert len(lines) == STEPS
    for line, record in zip(lines, [record for record in records(whole[0]) if "C" in record]):
        found = re.fullmatch(STAMP + r"Evaluating: log_p=(-?\d+\.\d{3}), C=(\d\.\d{3})", line)
        assert found and found.groups() == (f"{record['log_p']:.3f}", f"{record['C']:.3f}")


def test_bars_have_the_seeds_form(whole):
    bars = re.split("[\r\n]+", whole[2])
    for epoch in (1, 2):
        ended = [bar for bar in bars if re.fullmatch(
            rf"Epoch  {epoch}/ 2: 100%\|.+\| 10/10 \[\d\d:\d\d<00:00, +\d+\.\d\d(it/s|s/it)\]",
            bar)]  # s/it below one iteration per second, as on a machine that is busy
        assert len(ended) == STEPS, bars


def test_files_and_their_names(whole):
    found = sorted(name for name in os.listdir(whole[0]) if not name.startswith("events."))
    assert found == [".lock", "ckpt", "config.json", "metrics.csv", "metrics.jsonl",
                     "mixture.json", "params.txt", "result.json", "samples00.npy",
                     "samples01.npy", "samples02.npy"]
    assert sorted(name for name in os.listdir(ckpt(whole[0])) if name.endswith(".index")) == [
        "component-00.index", "component-01.index", "component-02.index"]


def test_pictures_and_their_names(drawn):
    found = set(contents(drawn, ".png"))
    expected = {"mixture00.png", "mixture01.png", "weights00.png", "weights01.png",
                "component_mixture00.png", "component_mixture01.png", "data_w01.png",
                "d_least_mixture01.png", "d_most_mixture01.png", "c_real_correct_mixture01.png",
                "c_real_wrong_mixture01.png"}
    training = {os.path.join(f"component_{component:02d}",
                             f"sample_e{epoch:04d}_mb{batch:05d}_mixture{counter}.png")
                for component in (0, 1)
                for epoch, batch, counter in ((0, 4, 5), (0, 9, 10), (1, 4, 15), (1, 9, 20))}
    assert found == expected | training
    assert max(len(content) for content in contents(drawn, ".png").values()) < 300000


def test_pictures_change_no_number(drawn, whole):
    np.testing.assert_array_equal(samples(drawn), samples(whole[0])[:2])


def test_stored_samples_and_parameters(whole):
    for array in samples(whole[0]):
        assert array.shape == (200, 2, 1, 1) and array.dtype == np.float32
    with open(os.path.join(whole[0], "params.txt")) as file:
        lines = file.read().splitlines()
    assert lines[0] == "Parameters:" and lines[1:4] == [
        "random_seed : 821", "dataset : gmm", "unrolled : True"]
    assert [line.split(" : ")[0] for line in lines[1:]] == list(adagan_gmm.OPTIONS)
    assert "gan_epoch_num : 2" in lines and f"work_dir : {whole[0]}" in lines


def test_records_table_and_result_agree(whole):
    lines, result = records(whole[0]), read(whole[0], "result.json")
    assert [line["step"] for line in lines] == [10, 20, 20, 30, 40, 40, 50, 60, 60]
    epochs = [line for line in lines if "epoch" in line]
    assert [(line["component"], line["epoch"]) for line in epochs] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    for line in epochs:
        assert line["g_loss"] == pytest.approx(-line["d_loss_cp"])
    steps = [line for line in lines if "C" in line]
    assert [line["adagan_step"] for line in steps] == [0, 1, 2]
    assert [line["beta"] for line in steps] == pytest.approx([1, 1 / 2, 1 / 3])
    assert "lambda" not in steps[0]
    assert all(line["weight_sum"] == pytest.approx(1, abs=1e-4) for line in steps[1:])
    assert result["C_per_step"] == [line["C"] for line in steps]
    for name in ("C", "log_p") + metrics.MixtureMetrics._fields:
        assert result[name] == steps[-1][name]
    assert result["steps"] == STEPS and result["data"] == "gmm, 10 modes, 640 points"
    with open(os.path.join(whole[0], "metrics.csv"), newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["C"]) for row in table] == result["C_per_step"]
    assert table[0]["lambda"] == "" and float(table[1]["lambda"]) == steps[1]["lambda"]


def test_events_are_readable_and_their_tags_stable(whole):
    tags = {}
    for path in glob.glob(os.path.join(whole[0], "events.*")):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                tags.setdefault(value.tag, []).append(event.step)
    assert tags["C"] == [20, 40, 60] and tags["g_loss"] == [10, 20, 30, 40, 50, 60]
    assert set(tags) == set(metrics.MixtureMetrics._fields) | {
        "C", "adagan_step", "bandwidth", "beta", "collapsed", "component", "d_loss", "d_loss_cp",
        "deleted", "epoch", "g_loss", "iterations_per_second", "lambda", "lambda_search_failed",
        "log_p", "seconds", "weight_sum"}


def test_checkpoints_hold_the_component_under_the_references_names(whole):
    for component in range(STEPS):
        found = variables(whole[0], f"component-{component:02d}")
        assert found.pop("global_step") == (component + 1) * PER_COMPONENT
        assert {name: value.shape for name, value in found.items()} == {
            f"{scope}/{layer}": shape for scope, sizes in (
                ("GENERATOR", (5, 16, 16, 2)), ("DISCRIMINATOR", (2, 16, 16, 1)),
                ("DISCRIMINATOR_CP", (2, 16, 16, 1)), ("CLASSIFIER", (2, 16, 16, 1)))
            for number in range(3)
            for layer, shape in ((f"h{number}_lin/W", sizes[number:number + 2]),
                                 (f"h{number}_lin/b", sizes[number + 1:number + 2]))}


def test_the_mixture_is_loaded_from_its_folder(whole):
    found = mixture.load(whole[0])
    np.testing.assert_array_equal(found.components, samples(whole[0]))
    np.testing.assert_allclose(found.weights, 1 / 3)
    assert len(mixture.load(whole[0], 2).components) == 2


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("flags", [
    ["--weights_heur=theory_dagger"], ["--weights_heur=topk", "--topk_constant=0.2"],
    ["--beta_heur=constant", "--beta_constant=0.3"], ["--is_bagging"], ["--unrolled=False"],
    ["--optimizer=adam", "--objective=JS_modified"], ["--dataset=circle_gmm", "--modes=8"],
    ["--dim=3", "--modes=2", "--latent_space_distr=uniform", "--zdim=2"],
    ["--reference_stream=True"]])
def test_options_act(flags, tmp_path, whole):
    """Each changes the samples; the second step is the first that has data weights."""
    folder = trained(tmp_path, "--steps=2", *flags)
    result = read(folder, "result.json")
    assert np.isfinite([result["C"], result["log_p"]]).all()
    first_acts = not flags[0].startswith(("--weights", "--beta", "--is_bagging"))
    if "--dim=3" not in flags:
        same = np.array_equal(samples(folder)[0], samples(whole[0])[0])
        assert same != first_acts
        beta_only = flags[0].startswith("--beta")
        assert beta_only or not np.array_equal(samples(folder)[1], samples(whole[0])[1])
    weights = read(folder, "mixture.json")["weights"]
    assert weights == pytest.approx([0.7, 0.3] if flags[0].startswith("--beta") else [0.5, 0.5])


def test_bagging_trains_no_classifier(tmp_path):
    code, out, _ = train(tmp_path, "--steps=2", "--is_bagging=True")
    assert code == 0 and "mixture discriminator" not in out and "Lambda" not in out


def test_quiet_runs(tmp_path):
    code, out, err = train(tmp_path, "--steps=2", "--verbose=False", "--use_tqdm=False")
    assert code == 0 and "probs:" not in out and err == ""


def test_same_seed_same_run_however_many_iterations_per_call(tmp_path, whole):
    assert_same_end(trained(tmp_path / "a", "--log_every=1", "--plot_every=3"), whole[0])
    other = samples(trained(tmp_path / "b", "--seed=1", "--steps=1"))[0]
    assert np.all(other != samples(whole[0])[0])


def test_the_graph_is_finalised_and_does_not_grow(tmp_path, monkeypatch):
    plain, sizes = npu_session.Loop.run, []

    def run(self, session, count):
        assert session.graph.finalized
        sizes.append(len(session.graph.get_operations()))
        return plain(self, session, count)

    monkeypatch.setattr(npu_session.Loop, "run", run)
    trained(tmp_path)
    assert len(set(sizes)) == 1


# ---------------------------------------------------------------- ModelArts


def test_modelarts_flags_are_used(tmp_path):
    flags = ["--steps=1", "--max_steps=1", "--data_url=obs://nowhere/data",
             "--modelarts_data_dir=/nowhere"]
    trained(tmp_path / "a", f"--train_url={tmp_path}/b", *flags)
    assert not os.path.exists(str(tmp_path / "a")) and read(tmp_path / "b", "result.json")
    argv = SHORT + flags + [f"--modelarts_result_dir={tmp_path}/c"]
    assert npu_session.run_main(adagan_gmm.main, argv) == 0 and read(tmp_path / "c", "result.json")


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


@pytest.mark.parametrize("flag", ["--train_url", "--obs_dir"])
def test_obs_addresses_are_staged_and_an_interrupted_job_resumes(flag, tmp_path, monkeypatch,
                                                                 whole):
    files = Moxing(tmp_path / "bucket")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(npu_session.tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(npu_session.os.path, "isdir",  # this machine may have a /cache
                        lambda path, plain=os.path.isdir: path != "/cache" and plain(path))
    monkeypatch.setitem(sys.modules, "moxing", types.SimpleNamespace(file=files))
    stopped(monkeypatch, gan.Gan, "train", 8, "nowhere", f"{flag}=obs://bucket/job")
    code, out, err = train("nowhere", f"{flag}=obs://bucket/job")
    assert code == 0 and "at counter = 28" in out, err
    assert_same_end(files.bucket + "/job", whole[0])


# ---------------------------------------------------------------- resume


# The run of `train` that is followed by SIGTERM (six make a component: 4 + 4 + 2 twice), and the
# iterations saved then.
@pytest.mark.parametrize("number, step", [(2, 8), (6, 20), (9, 30), (17, 56)])
def test_resume_after_sigterm_is_exact(number, step, tmp_path, monkeypatch, whole):
    out = stopped(monkeypatch, gan.Gan, "train", number, tmp_path)
    assert "stopped by a signal: continue with --resume" in out
    code, out, err = train(tmp_path, "--resume")
    assert code == 0 and f"at counter = {step}" in out, err
    assert_same_end(tmp_path, whole[0])


def test_resume_after_a_signal_in_the_classifiers_training(tmp_path, monkeypatch, whole):
    """It starts anew; the components so far are there."""
    stopped(monkeypatch, gan.Gan, "train_classifier", 2, tmp_path)
    code, out, _ = train(tmp_path, "--resume=True")
    assert code == 0 and "at counter = 20" in out
    assert_same_end(tmp_path, whole[0])


@pytest.mark.parametrize("flags", [
    ["--optimizer=adam", "--weights_heur=topk"], ["--unrolled=False", "--is_bagging"],
    ["--reference_stream=True", "--plot_every=7"]])
def test_resume_with_other_options(flags, tmp_path, monkeypatch):
    """The copy's Adam moments and the reference's random stream are saved too."""
    for number in (2, 5):
        stopped(monkeypatch, gan.Gan, "train", number, tmp_path / "parts", *flags, "--steps=2")
    trained(tmp_path / "parts", *flags, "--steps=2")
    assert_same_end(tmp_path / "parts", trained(tmp_path / "whole", *flags, "--steps=2"))


def test_more_steps_continue_and_a_moved_folder_resumes(tmp_path, whole):
    trained(tmp_path / "here", "--steps=1")
    shutil.move(str(tmp_path / "here"), str(tmp_path / "there"))
    code, out, err = train(tmp_path / "there", "--resume")
    assert code == 0 and "at counter = 20" in out and str(tmp_path / "there") in out, err
    assert_same_end(tmp_path / "there", whole[0])


def test_checkpoints_may_lie_elsewhere(tmp_path, whole):
    folder, elsewhere = tmp_path / "run", tmp_path / "checkpoints"
    trained(folder, "--steps=1", f"--ckpt_dir={elsewhere}")
    assert os.path.isfile(str(elsewhere / "component-00.index"))
    assert not os.path.exists(ckpt(folder))
    trained(folder, "--resume", f"--ckpt_dir={elsewhere}")
    assert records(folder) == records(whole[0])


def test_a_finished_run_run_again_says_so_and_keeps_its_results(tmp_path, whole):
    shutil.copytree(whole[0], str(tmp_path / "again"))
    code, out, err = train(tmp_path / "again")
    assert code == 0 and "nothing left to train: 3 components are done" in out, err
    assert_same_end(tmp_path / "again", whole[0])


def test_a_second_signal_interrupts_at_once(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        call_after(patch, gan.Gan, "train", 8, send(signal.SIGINT, signal.SIGINT))
        assert refused(tmp_path, code=130) == "error: interrupted"
    code, out, _ = train(tmp_path, "--resume=True")
    assert code == 0 and "at counter = 20" in out  # the last whole component
    assert_same_end(tmp_path, whole[0])


def start(output, *flags):
    """adagan_gmm.py in a process of its own, when it trains its first component."""
    process = subprocess.Popen(
        [sys.executable, adagan_gmm.__file__, f"--output_dir={output}"] + SHORT + list(flags),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if line.endswith("Training GAN\n"):
            return process
    raise AssertionError(process.wait())


def test_sigterm_to_the_program_saves_and_exits_143(tmp_path):
    flags = ["--steps=2", "--epochs=100"]
    process = start(tmp_path / "parts", *flags)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by a signal" in out
    assert_same_end(trained(tmp_path / "parts", *flags, "--resume"),
                    trained(tmp_path / "whole", *flags))


def test_kill_at_any_moment_costs_no_more_than_a_component(tmp_path, whole):
    random = np.random.RandomState(int(time.time()))
    for _ in range(2):
        process = start(tmp_path, f"--steps={STEPS}")
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.communicate()
    trained(tmp_path)  # anew if nothing was saved yet
    assert_same_end(tmp_path, whole[0])


def other_python():
    """The interpreter with the other TensorFlow; skips the test where there is none."""
    folder = ".venv" if sys.version_info < (3, 8) else ".venv-tf115"
    python = os.environ.get("OTHER_PYTHON") or os.path.join(os.path.dirname(MODEL), folder, "bin",
                                                            "python")
    if not os.path.exists(python):
        pytest.skip(f"no Python with the other TensorFlow at {python} (set OTHER_PYTHON)")
    return python


def test_a_run_goes_to_the_other_tensorflow_and_back(tmp_path, monkeypatch):
    """Within a component, with Adam's moments: all variables of a checkpoint must arrive."""
    python, adam = other_python(), "--optimizer=adam"
    stopped(monkeypatch, gan.Gan, "train", 3, tmp_path / "parts", adam)
    done = subprocess.run(
        [python, adagan_gmm.__file__, f"--output_dir={tmp_path}/parts", adam, "--steps=2"] + SHORT,
        capture_output=True, text=True, timeout=200,
        env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1"))
    assert done.returncode == 0 and "at counter = 10" in done.stdout, done.stderr
    assert read(tmp_path / "parts", "config.json")["versions"]["tensorflow"] != tf.__version__
    code, out, err = train(tmp_path / "parts", adam)
    assert code == 0 and "at counter = 40" in out, err
    whole = trained(tmp_path / "whole", adam)
    for ours, theirs in zip(samples(tmp_path / "parts"), samples(whole)):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(theirs).max())


def test_resume_needs_a_run_and_no_resume_an_empty_folder(tmp_path, whole):
    assert "no run" in refused(tmp_path, "--resume")
    before = contents(whole[0], ".index", ".jsonl", ".json", "00001", ".npy")
    assert "holds a run" in refused(whole[0], "--resume=False")
    assert contents(whole[0], ".index", ".jsonl", ".json", "00001", ".npy") == before


@pytest.mark.parametrize("name, flag", [
    ("seed", "--seed=1"), ("gmm_modes_num", "--modes=9"), ("gan_epoch_num", "--epochs=3"),
    ("weights_heur", "--weights_heur=topk"), ("reference_stream", "--reference_stream=True")])
def test_a_changed_fixed_flag_is_refused_by_name(name, flag, whole):
    before = contents(whole[0], ".index", ".jsonl", "config.json", "00001")
    assert f"started with {name}=" in refused(whole[0], flag)
    assert contents(whole[0], ".index", ".jsonl", "config.json", "00001") == before


def test_pictures_may_change_in_a_resumed_run_but_not_on_the_references_stream(tmp_path):
    trained(tmp_path / "a", "--steps=1", "--plot_every=5")
    trained(tmp_path / "a", "--steps=1", "--plot_every=7")
    flags = ["--steps=1", "--reference_stream=True"]
    trained(tmp_path / "b", "--plot_every=5", *flags)
    assert "pictures_drawn=5, not 7" in refused(tmp_path / "b", "--plot_every=7", *flags)


def test_epochs_of_a_run_cut_by_max_steps(tmp_path):
    """The last epoch of a component may be a part of one."""
    folder = trained(tmp_path, "--max_steps=13", "--steps=2")
    assert [line["step"] for line in records(folder) if "epoch" in line] == [
        PER_EPOCH, 13, 13 + PER_EPOCH, 26]
