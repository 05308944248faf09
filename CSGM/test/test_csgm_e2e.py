"""The end-to-end baseline: decoder, loss and update, training, resume, and what recovery reads.

Trainings run on 300 drawn images in MNIST's format; each picture is a few bright rectangles.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import gc
import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import e2e_def
import npu_session
import train_e2e
from golden_rules import FILL, IMG, RS, find_seed, load
from npu_session import InputError

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(HERE), "src")
M, STEPS = 12, 1000
SMALL = [f"--num_measurements={M}", "--batch_size=32", "--threads=1", "--log_every=20"]
DECODER = ["hidden0/weights", "hidden0/biases", "hidden1/weights", "hidden1/biases",
           "sigmoid_logits/weights", "sigmoid_logits/biases"]


# ---------------------------------------------------------------- helpers


def write_images(folder, name, count, seed):
    """idx files of `count` images with 2 to 4 rectangles each, and of labels."""
    random, images = np.random.RandomState(seed), np.zeros((count, 28, 28), np.uint8)
    for image in images:
        for _ in range(random.randint(2, 5)):
            row, column, height, width = random.randint((4, 4, 3, 3), (18, 18, 8, 8))
            image[row:row + height, column:column + width] = random.randint(100, 256)
    with open(os.path.join(folder, name + "-images-idx3-ubyte"), "wb") as file:
        file.write(struct.pack(">iiii", 2051, count, 28, 28) + images.tobytes())
    with open(os.path.join(folder, name + "-labels-idx1-ubyte"), "wb") as file:
        file.write(struct.pack(">ii", 2049, count) + random.randint(0, 10, count, "u1").tobytes())


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    write_images(folder, "train", 300, 1)
    write_images(folder, "t10k", 40, 2)
    with open(os.path.join(folder, "STANDIN.txt"), "w") as file:
        file.write("drawn rectangles, not MNIST\n")
    return folder


def command(data_dir, output, *flags):
    return [sys.executable, "-u", os.path.join(SOURCE, "train_e2e.py"), "--data_dir=" + data_dir,
            "--output_dir=" + str(output), "--save_every=400"] + SMALL + list(flags)


def start(*arguments):
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True)


@pytest.fixture(scope="module")
def learned(data_dir, tmp_path_factory):
    """Output folder of an uninterrupted run with a learned matrix, and what it printed."""
    output = tmp_path_factory.mktemp("learned")
    process = start(data_dir, output, f"--max_steps={STEPS}")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return output, out


def train(data_dir, output, *flags):
    """Exit code of a short run in this process."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    return npu_session.run_main(train_e2e.main, SMALL + [
        "--data_dir=" + data_dir, "--output_dir=" + str(output), "--max_steps=40"] + list(flags))


def run_folder(output, learned=True):
    return e2e_def.checkpoint_folder(str(output), M, learned)


def variables(folder):
    """All arrays of the newest checkpoint, by name."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(folder))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def records(folder):
    """metrics.jsonl without the times."""
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{name: line[name] for name in line if name != "examples_per_second"} for line in lines]


def result(folder):
    with open(os.path.join(folder, "result.json")) as file:
        return json.load(file)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def numpy_decoder(y, values):
    """Hidden layers and logits of y [B, m] in float64; values: arrays by variable name."""
    first = np.maximum(y @ values["hidden0/weights"] + values["hidden0/biases"], 0)
    second = np.maximum(first @ values["hidden1/weights"] + values["hidden1/biases"], 0)
    return first, second, second @ values["sigmoid_logits/weights"] + values[
        "sigmoid_logits/biases"]


def initial_values(m, learned, seed):
    """(values by name, names of the trainable variables), in creation order."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        e2e_def.end_to_end(tf.zeros([2, 784]), tf.zeros([2, m]), 0.0, learned, seed)
        session.run(tf.global_variables_initializer())
        names = [variable.op.name for variable in tf.global_variables()]
        values = session.run(tf.global_variables())
        return dict(zip(names, values)), [v.op.name for v in tf.trainable_variables()]


# ---------------------------------------------------------------- graph


def test_golden_decoder():
    """y = f32(RS(SEED + 5).standard_normal((B, m))), variables = FILL; x_hat atol 2e-5."""
    golden, seed = load("e2e"), find_seed()
    m = int(str(golden["var_shapes"][0]).strip("[]").split(",")[0])
    y = RS(seed + 5).standard_normal((len(golden["x_hat"]), m)).astype(np.float32)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        x_hat = e2e_def.decoder(tf.constant(y))
        shapes = [(variable.op.name, str(variable.shape.as_list()))
                  for variable in tf.global_variables()]
        assert shapes == list(zip(golden["var_names"].tolist(), golden["var_shapes"].tolist()))
        for variable in tf.global_variables():
            variable.load(FILL(variable.op.name, variable.shape.as_list(), seed), session)
        np.testing.assert_allclose(session.run(x_hat), golden["x_hat"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("learned", [True, False])
def test_variables_and_which_of_them_are_trained(learned):
    values, trainable = initial_values(20, learned, 0)
    assert list(values) == ["A"] + DECODER
    assert trainable == ["A"] * learned + DECODER
    assert [values[name].shape for name in values] == [
        (784, 20), (20, 50), (50,), (50, 200), (200,), (200, 784), (784,)]


def test_initial_values_follow_their_distributions_and_the_seed():
    values, _ = initial_values(20, True, 3)
    assert abs(values["A"].mean()) < 3 * 0.05 / np.sqrt(784 * 20)
    assert values["A"].std() == pytest.approx(1 / 20, rel=0.02)
    for name in DECODER[::2]:
        limit = np.sqrt(6.0 / sum(values[name].shape))
        assert 0.98 * limit < np.abs(values[name]).max() <= limit
        assert values[name].std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
    assert not any(values[name].any() for name in DECODER[1::2])
    again, other = initial_values(20, False, 3)[0], initial_values(20, False, 4)[0]
    assert all(np.array_equal(values[name], again[name]) for name in values)
    assert not any(np.array_equal(values[name], other[name]) for name in ["A"] + DECODER[::2])


def test_loss_and_first_update_agree_with_numpy():
    rs = RS(7)
    x, noise = IMG(rs, 6), rs.standard_normal((6, 9)).astype(np.float32)
    values = {name: FILL(name, array.shape, 7) for name, array
              in initial_values(9, True, 0)[0].items()}
    with npu_session.new_graph().as_default(), tf.Session() as session:
        update, terms = e2e_def.train_step(tf.constant(x), tf.constant(noise), 0.1, True, 0, 0.001)
        session.run(tf.global_variables_initializer())
        for variable in tf.trainable_variables():
            variable.load(values[variable.op.name], session)
        loss = session.run(terms)
        session.run(update)
        after = {v.op.name: session.run(v) for v in tf.trainable_variables()}
    y = x.astype(np.float64) @ values["A"] + 0.1 * noise
    first, second, logits = numpy_decoder(y, values)
    cross_entropy = np.logaddexp(0, logits) - x * logits
    assert loss == pytest.approx([cross_entropy.mean()], rel=1e-5)
    error = (sigmoid(logits) - x) / x.size  # d loss / d logits, then back through the layers
    gradients = {"sigmoid_logits/weights": second.T @ error, "sigmoid_logits/biases": error.sum(0)}
    error = error @ values["sigmoid_logits/weights"].T * (second > 0)
    gradients.update({"hidden1/weights": first.T @ error, "hidden1/biases": error.sum(0)})
    error = error @ values["hidden1/weights"].T * (first > 0)
    gradients.update({"hidden0/weights": y.T @ error, "hidden0/biases": error.sum(0)})
    gradients["A"] = x.T @ (error @ values["hidden0/weights"].T)
    for name, gradient in gradients.items():  # Adam's first step is rate * g / (|g| + epsilon)
        clear = np.abs(gradient) > 1e-7
        step = -0.001 * gradient / (np.abs(gradient) + 1e-8 / np.sqrt(0.001))
        np.testing.assert_allclose((after[name] - values[name])[clear], step[clear], rtol=0.02,
                                   atol=1e-6, err_msg=name)
        assert clear.mean() > 0.1, name


# ---------------------------------------------------------------- training


def test_run_trains_and_leaves_a_complete_folder(learned):
    output, out = learned
    folder = run_folder(output)
    assert os.path.basename(folder) == "adam_0.001_12_True"
    losses = [line["loss"] for line in records(folder) if "loss" in line]
    errors = [(line["step"], line["full_test_error"]) for line in records(folder)
              if "full_test_error" in line]
    assert [line["step"] for line in records(folder) if "loss" in line] == list(
        range(20, STEPS + 1, 20))
    assert losses[-1] < 0.6 * losses[0]
    assert [step for step, _ in errors] == [400, 800, 1000]
    assert result(folder) == {
        "data": "stand-in digits", "step": STEPS, "seed": 1, "num_measurements": M,
        "full_test_error": errors[-1][1], "matrix_is_learned": True}
    for step in (400, 800, 1000):
        assert os.path.exists(os.path.join(folder, f"snapshot.ckpt-{step}.index"))
        for name in ("orig", "reconstr"):
            assert os.path.getsize(os.path.join(
                str(output), "samples", "mnist-e2e", "adam_0.001_12_True",
                f"{name}_{step:06d}.png")) > 200
    assert "data: stand-in digits" in out
    assert "step 999, loss = " in out
    assert f"full_test_error {errors[-1][1]:.5f} (stand-in digits, m = 12, A learned)" in out


def test_sigterm_and_resume_equal_an_uninterrupted_run(learned, data_dir, tmp_path):
    folder = run_folder(tmp_path)
    process = start(data_dir, tmp_path, f"--max_steps={STEPS}")
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    stopped = int(variables(folder)["global_step"])
    assert f"stopped by a signal after step {stopped - 1}" in out
    assert 0 < stopped < STEPS
    assert not os.path.exists(os.path.join(folder, "result.json"))
    process = start(data_dir, tmp_path, f"--max_steps={STEPS}", "--resume")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert f"at counter = {stopped}" in out
    whole = run_folder(learned[0])
    assert records(folder) == records(whole)
    assert result(folder) == result(whole)
    expected, found = variables(whole), variables(folder)
    assert sorted(found) == sorted(expected)
    assert "A/Adam" in found
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_learned_matrix_moves_and_a_fixed_one_stays(learned, data_dir, tmp_path):
    assert train(data_dir, tmp_path, "--fixed_matrix=True") == 0
    folder = run_folder(tmp_path, learned=False)
    assert os.path.basename(folder) == "adam_0.001_12_False"
    initial, fixed = initial_values(M, False, 1)[0], variables(folder)
    np.testing.assert_array_equal(fixed["A"], initial["A"])
    assert not np.array_equal(fixed["hidden0/weights"], initial["hidden0/weights"])
    assert not [name for name in fixed if name.startswith("A/")]
    assert result(folder)["matrix_is_learned"] is False
    assert np.abs(variables(run_folder(learned[0]))["A"] - initial["A"]).mean() > 0.01


def test_noise_and_seed_change_the_run_and_nothing_else_does(data_dir, tmp_path):
    def losses(name, *flags):
        assert train(data_dir, tmp_path / name, *flags) == 0
        return records(run_folder(tmp_path / name))

    plain = losses("a")
    assert losses("b", "--noise_std=0") == plain
    assert losses("c", "--noise_std=0.5") != plain
    assert losses("d", "--seed=2") != plain


def test_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path, capsys):
    assert train(data_dir, tmp_path, "--learning_rate=1e30", "--ckpt_dir=" + str(tmp_path)) == 3
    assert "not finite at step" in capsys.readouterr().err
    assert not os.path.exists(str(tmp_path / "result.json"))
    assert tf.train.latest_checkpoint(str(tmp_path)) is None


@pytest.mark.parametrize("flag", [
    "--num_measurements=0", "--num_measurements=ten", "--max_steps=0", "--learning_rate=0",
    "--learning_rate=nan", "--noise_std=-1", "--noise_std=nan", "--fixed_matrix=perhaps",
    "--seed=-1", "--colour=red"])
def test_bad_flag_is_refused(flag, capsys):
    with pytest.raises(SystemExit) as error:
        train_e2e.main([flag])
    assert error.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("flags, sentence", [
    (["--data_dir=/nowhere"], "no MNIST files in /nowhere"),
    (["--batch_size=1000"], "--batch_size=1000 is more than the 275 training images"),
    (["--resume=True"], "there is no run in"),
])
def test_what_cannot_be_trained_is_one_sentence(data_dir, tmp_path, capsys, flags, sentence):
    assert train(data_dir, tmp_path, *flags) == 2
    assert sentence in capsys.readouterr().err


def test_resume_with_another_setting_is_refused(learned, data_dir, capsys):
    before = records(run_folder(learned[0]))
    assert train(data_dir, learned[0], "--noise_std=0.3") == 2
    assert "was started with noise_std=0.0, not 0.3" in capsys.readouterr().err
    assert records(run_folder(learned[0])) == before


# ---------------------------------------------------------------- what recovery reads


@pytest.mark.parametrize("count", [1, 8, 13])
def test_decoder_decodes_any_number_of_measurements(learned, count):
    folder = run_folder(learned[0])
    values = variables(folder)
    y = RS(count).standard_normal((count, M))
    with e2e_def.Decoder(folder, M, 8, tf.ConfigProto()) as decoder:
        found = decoder.run(y)
        np.testing.assert_array_equal(decoder.matrix, values["A"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, sigmoid(numpy_decoder(y, values)[2]), rtol=0, atol=2e-5)


def test_matrix_is_that_of_the_newest_checkpoint(learned):
    folder = run_folder(learned[0])
    for matrix in (e2e_def.restore_matrix(folder), e2e_def.restore_matrix(folder, M)):
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, variables(folder)["A"])


def test_damaged_checkpoint_gives_matrix_and_decoder_of_the_one_before(data_dir, tmp_path, capsys):
    assert train(data_dir, tmp_path, "--save_every=20") == 0
    folder = run_folder(tmp_path)
    before = tf.train.load_checkpoint(os.path.join(folder, "snapshot.ckpt-20"))
    with open(os.path.join(folder, "snapshot.ckpt-40.data-00000-of-00001"), "r+b") as file:
        file.truncate(1000)
    np.testing.assert_array_equal(e2e_def.restore_matrix(folder), before.get_tensor("A"))
    assert "snapshot.ckpt-40 is damaged" in capsys.readouterr().err
    values = {name: before.get_tensor(name) for name in DECODER}
    with e2e_def.Decoder(folder, M, 2, None) as decoder:
        y = RS(0).standard_normal((2, M))
        np.testing.assert_allclose(decoder.run(y), sigmoid(numpy_decoder(y, values)[2]), rtol=0,
                                   atol=2e-5)


def test_missing_or_other_checkpoint_is_one_sentence(learned, tmp_path):
    for call in (lambda: e2e_def.restore_matrix(str(tmp_path)),
                 lambda: e2e_def.restore_matrix(str(tmp_path / "none"), M),
                 lambda: e2e_def.Decoder(str(tmp_path), M, 2, None)):
        with pytest.raises(InputError, match="train it with python src/train_e2e.py"):
            call()
    with pytest.raises(InputError, match=r"has A \[784, 12\], this model \[784, 13\]"):
        e2e_def.restore_matrix(run_folder(learned[0]), 13)
    (tmp_path / "snapshot.ckpt-5.index").write_bytes(b"no table")
    with pytest.raises(InputError):
        e2e_def.restore_matrix(str(tmp_path))
