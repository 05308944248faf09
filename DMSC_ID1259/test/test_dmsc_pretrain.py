"""pretrain_affinity_fusion.py as its users run it: flags, log, files, resume, weights, modes."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import os
import re
import shutil
import sys
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import checkpoints
import make_standin_data
import network
import npu_session
import options
import pretrain_affinity_fusion
import training_runs
from npu_session import InputError
from training_runs import (
    MODALITIES,
    PRETRAIN_STEPS,
    SAMPLES,
    assert_same_arrays,
    assert_same_end,
    pretrain,
    pretrain_folder,
    read,
    records,
    refused,
    stopped,
    succeeded,
    variables,
)

ENTRIES = ("pretrain_affinity_fusion", "affinity_fusion")
PER_MODALITY = [f"{m}/{m}_{name}" for m in range(MODALITIES)
                for name in ("enc_w0", "enc_b0", "enc_w1", "enc_b1", "enc_w2", "enc_b2", "dec1_w0",
                             "dec_b0", "dec1_w1", "dec_b1", "dec1_w2", "dec_b2")]


@pytest.fixture(scope="module")
def folder(pretrained):
    """Run folder of the uninterrupted run."""
    return pretrain_folder(pretrained[0])


def weights_of(output, model="mymodel"):
    return variables(os.path.join(str(output), "models", model + ".ckpt"))


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize("name", ENTRIES)
def test_help_of_every_entry_and_an_unknown_flag(name, capsys):
    module = importlib.import_module(name)
    for flag, code in (("--help", 0), ("--no_such_flag=1", 2)):
        with pytest.raises(SystemExit) as ended:
            module.main([flag])
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert "usage:" in printed.out and "--no_such_flag" in printed.err


@pytest.mark.parametrize("flag", [
    "--epochs=3", "--epoch=0", "--mode=both", "--batch_size=0", "--learning_rate=0",
    "--log_every=0",
    "--learning_rate=nan", "--seed=-1", "--fusion=none", "--target_cost=-1", "--subjects=0",
    "--reconstruction_weights=-1", "--starts=0", "--power=0", "--max_train_steps=0", "extra"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as ended:
        pretrain_affinity_fusion.parse_args([flag])
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err


def test_defaults_are_the_references():
    args = pretrain_affinity_fusion.parse_args([])
    assert (args.mat, args.epoch, args.model, args.mode, args.rank_size, args.max_train_steps) == (
        "YaleB", 100000, "mymodel", "train_and_evaluate", 1, None)
    assert (args.learning_rate, args.log_every, args.seed, args.autoencoder, args.fusion) == (
        1e-3, 50, 0, False, "affinity")
    assert args.reconstruction_weights == [0.6, 0.1]
    assert args.precision_mode == "allow_mix_precision" and args.resume == "auto"


def test_demo_changes_defaults_only():
    demo = pretrain_affinity_fusion.parse_args(["--demo", "--epoch=7"])
    assert demo.autoencoder and demo.batch_size == 64 and demo.epoch == 7
    assert demo.mat == "standin_10x32" and demo.learning_rate == 1e-3


@pytest.mark.parametrize("flags, epochs, steps", [
    (["--epoch=3"], 3, 3), (["--epoch=3", "--max_train_steps=5"], 3, 5),
    (["--epoch=3", "--autoencoder", "--batch_size=10"], 3, 6)])
def test_max_train_steps_overrides_epoch(flags, epochs, steps):
    args = pretrain_affinity_fusion.parse_args(flags)
    args.batch_size = args.batch_size or SAMPLES
    assert args.epoch == epochs
    assert pretrain_affinity_fusion.schedule(args, SAMPLES)[1] == steps


@pytest.mark.parametrize("number", [0, 2, 8])
def test_more_than_one_process_is_refused(number, small_data, tmp_path):
    sentence = refused(pretrain(small_data, tmp_path, f"--rank_size={number}"))
    assert f"--rank_size={number}" in sentence and "use --rank_size=1" in sentence
    assert os.listdir(str(tmp_path)) == []


def test_batches_smaller_than_all_need_the_plain_autoencoder(small_data, tmp_path):
    sentence = refused(pretrain(small_data, tmp_path, "--batch_size=8"))
    assert "Coef has a row for each of the 24 samples" in sentence and "--autoencoder" in sentence
    assert os.listdir(str(tmp_path)) == []
    sentence = refused(pretrain(small_data, tmp_path, "--batch_size=25", "--autoencoder"))
    assert "choose 1 to 24" in sentence


def test_weights_per_modality_must_be_one_two_or_all(small_data, tmp_path):
    assert network.spread([0.6, 0.1], 5) == [0.6, 0.1, 0.1, 0.1, 0.1]
    assert network.spread([0.5, 0.4, 0.1], 3) == [0.5, 0.4, 0.1]
    assert network.spread([0.6, 0.1], 1) == [0.6]
    flags = ["--reconstruction_weights", "1", "2", "3"]
    assert "3 weights for 2 modalities" in refused(pretrain(small_data, tmp_path, *flags))


# ---------------------------------------------------------------- log and files


def test_log_has_the_seeds_lines(pretrained, folder):
    lines = pretrained[1].splitlines()
    assert lines[0] == "data: small" and lines[-1] == "finish"
    blocks = [lines[number:number + 3] for number, line in enumerate(lines)
              if line.startswith("epoch: ")]
    assert [block[0] for block in blocks] == ["epoch: 3", "epoch: 7", "epoch: 11"]
    for block, record in zip(blocks, records(folder)):
        assert re.fullmatch(r"cost: \d+\.\d{8}", block[1])
        assert re.fullmatch(r"perf: \d+\.\d{4}", block[2])
        assert block[1] == f"cost: {record['cost']:.8f}"
    saved = [line for line in lines if line.startswith("model saved in file: ")]
    assert saved == ["model saved in file: " + os.path.join(
        pretrained[0], "models", "mymodel.ckpt")] * 3  # the cost fell each time


def test_cost_is_the_weighted_error_over_n(folder):
    for record in records(folder):
        weighted = 0.6 * record["mse_0"] + 0.1 * record["mse_1"]
        assert record["loss"] == pytest.approx(weighted, rel=1e-5)
        assert record["cost"] == pytest.approx(record["loss"] / SAMPLES, rel=1e-6)
    costs = [record["cost"] for record in records(folder)]
    assert costs == sorted(costs, reverse=True)
    assert read(folder, "result.json")["best_cost"] == pytest.approx(costs[-1])


def test_files_and_their_names(pretrained, folder):
    found = sorted(name for name in os.listdir(folder) if not name.startswith("events."))
    assert found == sorted(
        [".lock", "checkpoint", "config.json", "metrics.jsonl", "result.json"]
        + [f"step-{step}{ending}" for step in (8, 12)
           for ending in (".data-00000-of-00001", ".index", ".meta")])
    assert sorted(os.listdir(pretrained[0])) == ["logs", "models"]


def test_the_weights_have_the_references_names_and_no_coef(pretrained):
    assert sorted(weights_of(pretrained[0])) == sorted(PER_MODALITY)
    size = os.path.getsize(os.path.join(pretrained[0], "models",
                                        "mymodel.ckpt.data-00000-of-00001"))
    assert size == 4 * 14991 * MODALITIES


def test_graph_holds_no_images_and_is_finalised_before_the_loop(small_data, tmp_path, monkeypatch):
    plain, sizes = npu_session.Loop.run, []

    def run(self, session, count):
        assert session.graph.finalized
        sizes.append(len(session.graph.get_operations()))
        return plain(self, session, count)

    monkeypatch.setattr(npu_session.Loop, "run", run)
    succeeded(pretrain(small_data, tmp_path))
    assert len(sizes) == 6 and len(set(sizes)) == 1  # windows of 4 steps in calls of 3 and 1, ...


# ---------------------------------------------------------------- training


def test_reshuffled_rows_make_coef_a_multiple_of_the_identity(small_data, tmp_path):
    """Trap T6: what the reference's stage 1 converges to; after a few steps it only shows."""
    succeeded(pretrain(small_data, tmp_path, "--epoch=60", "--log_every=60"))
    coef = variables(pretrain_folder(tmp_path))["Coef"]
    diagonal = np.diag(coef)
    assert diagonal.min() > 1.2 * coef[~np.eye(SAMPLES, dtype=bool)].max()
    assert diagonal.std() < 0.2 * diagonal.mean()


def test_autoencoder_trains_without_coef_and_in_small_batches(small_data, tmp_path, monkeypatch):
    """Its cost is the mean over the window, since small batches scatter."""
    plain, seen = npu_session.Loop.run, []

    def run(self, session, count):
        seen.append(plain(self, session, count))
        return seen[-1]

    monkeypatch.setattr(npu_session.Loop, "run", run)
    out = succeeded(pretrain(small_data, tmp_path, "--autoencoder", "--batch_size=8",
                             "--epoch=6", "--log_every=2", "--steps_per_call=4"))
    found = variables(pretrain_folder(tmp_path))
    assert "Coef" not in found and found["global_step"] == 18
    lines = records(pretrain_folder(tmp_path))
    assert [line["step"] for line in lines] == [6, 12, 18]
    assert [line["epoch"] for line in lines] == [1, 3, 5] and "epoch: 5" in out
    means = np.concatenate(seen)[:, 0].reshape(3, 6).mean(axis=1)
    np.testing.assert_allclose([line["loss"] for line in lines], means, rtol=1e-5)
    assert means[2] < 0.8 * means[0]


def test_target_cost_stops_at_the_next_line_and_again(small_data, tmp_path, folder):
    second = records(folder)[1]["cost"]
    for _ in range(2):
        succeeded(pretrain(small_data, tmp_path, f"--target_cost={second * 1.0001}"))
        result = read(pretrain_folder(tmp_path), "result.json")
        assert result["step"] == 8 and result["best_cost"] == pytest.approx(second)


def test_only_the_best_weights_are_kept(small_data, tmp_path, monkeypatch):
    """A rising cost must not replace the weights of a lower one."""
    plain, calls = npu_session.Loop.run, []

    def run(self, session, count):
        values = plain(self, session, count)
        calls.append(count)
        return values * (1 + 100 * (len(calls) > 4))  # the third window looks worse

    monkeypatch.setattr(npu_session.Loop, "run", run)
    out = succeeded(pretrain(small_data, tmp_path))
    assert out.count("model saved in file") == 2
    saved, last = weights_of(tmp_path), variables(pretrain_folder(tmp_path))
    assert any(np.any(saved[name] != last[name]) for name in saved)


# ---------------------------------------------------------------- resume and restore


def test_same_seed_same_run_however_many_steps_per_call(small_data, tmp_path, folder):
    succeeded(pretrain(small_data, tmp_path / "one", "--steps_per_call=1"))
    assert_same_end(pretrain_folder(tmp_path / "one"), folder)
    succeeded(pretrain(small_data, tmp_path / "other", "--seed=1", "--max_train_steps=1"))
    other, same = variables(pretrain_folder(tmp_path / "other")), variables(folder)
    for name in PER_MODALITY:
        assert np.any(other[name] != same[name]), name


def test_resume_of_small_batches_equals_an_uninterrupted_run(small_data, tmp_path, monkeypatch):
    flags = ["--autoencoder", "--batch_size=8", "--epoch=8"]
    succeeded(pretrain(small_data, tmp_path / "whole", *flags))
    whole = pretrain_folder(tmp_path / "whole")
    out = stopped(monkeypatch, 12, pretrain, small_data, tmp_path / "run", *flags)
    assert "continue with --resume" in out
    succeeded(pretrain(small_data, tmp_path / "run", "--resume", *flags))
    assert_same_end(pretrain_folder(tmp_path / "run"), whole)
    assert_same_arrays(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))


def test_a_signal_between_two_lines_is_obeyed_after_the_call(small_data, tmp_path, monkeypatch,
                                                            folder):
    plain = npu_session.Loop.run

    def run(self, session, count):
        values = plain(self, session, count)
        if not os.path.exists(pretrain_folder(tmp_path) + "/step-4.index"):
            os.kill(os.getpid(), 15)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(npu_session.Loop, "run", run)
        code, out, err = pretrain(small_data, tmp_path)
    assert code == 143 and "stopped by a signal after step 2" in out, err
    succeeded(pretrain(small_data, tmp_path, "--resume"))
    assert_same_end(pretrain_folder(tmp_path), folder)


def test_a_finished_run_run_again_keeps_its_results_and_writes_lost_weights(
        small_data, tmp_path, pretrained, folder):
    """A kill between the last checkpoint and the weights loses neither."""
    output = shutil.copytree(pretrained[0], str(tmp_path / "again"))
    shutil.rmtree(os.path.join(output, "models"))
    out = succeeded(pretrain(small_data, output))
    assert "model saved in file" in out and out.splitlines()[-1] == "finish"
    assert_same_end(pretrain_folder(output), folder)
    assert_same_arrays(weights_of(output), weights_of(pretrained[0]))


def test_a_new_run_starts_from_weights_that_are_there(small_data, tmp_path, pretrained):
    shutil.copytree(os.path.join(pretrained[0], "models"), str(tmp_path / "models"))
    out = succeeded(pretrain(small_data, tmp_path))
    assert "model restored" in out
    first, = [line for line in records(pretrain_folder(tmp_path)) if line["step"] == 4]
    assert first["cost"] < records(pretrain_folder(pretrained[0]))[0]["cost"]


def test_saved_coef_is_restored_too_where_it_fits(small_data, tmp_path):
    succeeded(pretrain(small_data, tmp_path / "a", "--save_coef"))
    saved = weights_of(tmp_path / "a")
    assert sorted(saved) == sorted(PER_MODALITY + ["Coef"])
    shutil.copytree(str(tmp_path / "a" / "models"), str(tmp_path / "b" / "models"))
    succeeded(pretrain(small_data, tmp_path / "b", "--max_train_steps=1"))
    moved = variables(pretrain_folder(tmp_path / "b"))["Coef"]
    assert np.abs(moved - saved["Coef"]).max() < 1.1e-3  # one step of Adam away
    shutil.copytree(str(tmp_path / "a" / "models"), str(tmp_path / "c" / "models"))
    succeeded(pretrain(small_data, tmp_path / "c", "--max_train_steps=1", "--subjects=2"))
    assert np.abs(variables(pretrain_folder(tmp_path / "c"))["Coef"] - 1e-4).max() < 1.1e-3


def test_upstreams_anonymous_biases_are_found(pretrained, tmp_path):
    """EYBfc_af.ckpt: the biases are m/Variable_1 ... and there are leftovers nobody needs."""
    theirs, ours = {}, weights_of(pretrained[0])
    for name, value in ours.items():
        scope, _, kind = name.partition("/")
        kind = checkpoints.UPSTREAM_BIASES.get(kind.partition("_")[2], kind)
        theirs[f"{scope}/{kind}"] = value
    theirs.update({"0/Variable": np.zeros(10), "0/0_enc_w3": np.zeros([3, 3, 30, 30]),
                   "Coef": np.zeros([2424, 4])})
    path = str(tmp_path / "EYBfc_af.ckpt")
    with npu_session.new_graph().as_default(), tf.Session() as session:
        made = {name: tf.get_variable(name, initializer=value) for name, value in theirs.items()}
        session.run(tf.global_variables_initializer())
        tf.train.Saver(made).save(session, path)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        weights = network.create_weights(MODALITIES, 24, seed=5)
        names = network.autoencoder_variables(weights)
        checkpoints.load(session, checkpoints.read(path, names, [weights.coef]))
        assert_same_arrays(dict(zip([v.op.name for v in names], session.run(names))), ours)


# ---------------------------------------------------------------- data, modes, ModelArts


def test_without_data_stand_in_faces_are_made_and_named(tmp_path, monkeypatch):
    plain = make_standin_data.make_standin_data
    monkeypatch.setattr(make_standin_data, "make_standin_data",
                        lambda path, *_, seed=0: plain(path, 3, 8, seed=seed, workers=1))
    monkeypatch.chdir(tmp_path)
    flags = ["--mode=train", "--threads=1", "--max_train_steps=1"]
    out = succeeded(training_runs.call(pretrain_affinity_fusion.main, flags))
    assert "stand-in faces (not Extended Yale B)" in out
    assert read(pretrain_folder("."), "result.json")["data"] == "stand-in faces EYB_fc"
    out = succeeded(training_runs.call(pretrain_affinity_fusion.main, flags + ["--resume"]))
    assert out.startswith("no Data") and "drawing" not in out


def test_a_mistyped_folder_or_file_is_refused(small_data, tmp_path):
    for data, flags in ((str(tmp_path / "dta"), []), (small_data, ["--mat=smal"])):
        sentence = refused(pretrain(data, tmp_path / "out", *flags))
        assert "there is no data file" in sentence and "make_standin_data.py" in sentence
    assert not os.path.exists(str(tmp_path / "out"))


@pytest.mark.parametrize("flags, folder", [
    ([], None), (["--data_path=/x"], os.path.join("/x", "Data")), (["--data_dir=/y"], "/y"),
    (["--data_path=/x", "--data_dir=/y"], "/y")])
def test_every_flag_for_the_data_folder(flags, folder):
    assert options.data_folder(pretrain_affinity_fusion.parse_args(flags)) == folder


def test_local_addresses_of_modelarts(small_data, tmp_path):
    succeeded(training_runs.call(pretrain_affinity_fusion.main, training_runs.PRETRAIN + [
        f"--data_url={small_data}", f"--train_url={tmp_path}/out", "--max_train_steps=1"]))
    assert read(pretrain_folder(tmp_path / "out"), "result.json")["step"] == 1


def test_remote_addresses_are_staged(small_data, tmp_path, monkeypatch):
    copies = []

    class Files:
        @staticmethod
        def exists(_):
            return False

        @staticmethod
        def copy_parallel(source, target):
            copies.append((source, target))
            source = small_data if source.startswith("obs://") else source
            target = str(tmp_path / "bucket") if target.startswith("obs://") else target
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)

    moxing = types.ModuleType("moxing")
    moxing.file = Files
    monkeypatch.setitem(sys.modules, "moxing", moxing)
    succeeded(training_runs.call(pretrain_affinity_fusion.main, training_runs.PRETRAIN + [
        "--data_url=obs://b/data", "--train_url=obs://b/out", "--max_train_steps=1"]))
    assert copies[0][0] == "obs://b/data" and copies[-1][1] == "obs://b/out"
    assert read(pretrain_folder(tmp_path / "bucket"), "result.json")["step"] == 1


def test_all_stages_in_one_command_and_evaluate_alone(small_data, tmp_path):
    flags = ["--affinity_steps=4", "--eval_from=4", "--eval_every=4"]
    out = succeeded(pretrain(small_data, tmp_path, "--mode=train_and_evaluate",
                             "--max_train_steps=8", *flags))
    assert out.index("finish\n") < out.index("Max ACC: ") and "epoch: 4 cost: " in out
    assert read(pretrain_folder(tmp_path), "result.json")["step"] == 8
    assert read(training_runs.affinity_folder(tmp_path), "result.json")["step"] == 4
    shutil.copytree(str(tmp_path / "models"), str(tmp_path / "b" / "models"))
    out = succeeded(pretrain(small_data, tmp_path / "b", "--mode=evaluate", *flags))
    assert "finish\n" not in out and "Max ACC: " in out
    assert not os.path.exists(pretrain_folder(tmp_path / "b"))
    assert_same_end(training_runs.affinity_folder(tmp_path / "b"),
                    training_runs.affinity_folder(tmp_path))


def test_reading_a_checkpoint_that_is_not_one(tmp_path):
    for name, content in (("a.ckpt.index", b"garbage"), ("a.ckpt.index", b"")):
        (tmp_path / name).write_bytes(content)
        with npu_session.new_graph().as_default():
            weights = network.create_weights(1, None, seed=0)
            with pytest.raises(InputError, match="cannot be read"):
                checkpoints.read(str(tmp_path / "a.ckpt"), network.autoencoder_variables(weights))


def test_training_takes_the_number_of_steps_it_was_asked_for(folder):
    assert read(folder, "result.json")["step"] == PRETRAIN_STEPS
    assert variables(folder)["applied_steps"] == PRETRAIN_STEPS
