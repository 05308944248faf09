"""bvlc_alexnet.npy: reading it under any NumPy, refusing what is not it, loading it by feeding."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import pickle
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import main
import make_standin_data
import masf_func
import npu_session
import pretrained
from npu_session import InputError
from training_runs import (
    FEW,
    last_state,
    narrow_network,
    read,
    records,
    refused,
    refused_early,
    run_folder,
    train,
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """All tests of this file use a narrow network: a file takes 0.3 MB, not 244."""
    narrow_network(monkeypatch)


def layers(seed=0):
    """{layer: [weights, biases]} of conv1 .. fc7, and fc8 of 1000 classes, as in the real file."""
    random, shapes = np.random.RandomState(seed), masf_func.variable_shapes()
    content = {}
    for layer in masf_func.PRETRAINED:
        weights, biases = shapes[layer + "/weights"], shapes[layer + "/biases"]
        content[layer] = [(0.05 * random.standard_normal(weights)).astype(np.float32),
                          random.standard_normal(biases).astype(np.float32)]
    content["fc8"] = [np.zeros((shapes["fc7/biases"][0], 1000), np.float32),
                      np.zeros(1000, np.float32)]
    return content


def save(path, content):
    """np.save of a 0-d object array; returns the path as str."""
    np.save(str(path), np.array(content, dtype=object), allow_pickle=True)
    return str(path)


def python2_file(path, content):
    """As Python 2 wrote it: protocol 2, header version 1, keys as byte strings or unicode."""
    with open(str(path), "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array(content, dtype=object), file, protocol=2)
    return str(path)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """Path of a whole file; do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        narrow_network(patch)
        return save(tmp_path_factory.mktemp("weights") / "bvlc_alexnet.npy", layers())


def assert_equal(weights, content):
    """All arrays of conv1 .. fc7, nothing of fc8."""
    assert sorted(weights) == sorted(f"{layer}/{kind}" for layer in masf_func.PRETRAINED
                                     for kind in ("weights", "biases"))
    for layer in masf_func.PRETRAINED:
        np.testing.assert_array_equal(weights[layer + "/weights"], content[layer][0])
        np.testing.assert_array_equal(weights[layer + "/biases"], content[layer][1])


# ---------------------------------------------------------------- reading


def test_arrays_come_back_by_name(weights_file):
    assert_equal(pretrained.read(weights_file), layers())


def test_old_pickles_byte_keys_and_any_order_are_read(tmp_path):
    """The rank of an array, not its place, says which are the weights; float64 is converted."""
    content = layers(1)
    turned = {layer.encode(): [arrays[1].astype(np.float64), arrays[0]]
              for layer, arrays in content.items()}
    assert_equal(pretrained.read(python2_file(tmp_path / "a.npy", turned)), content)
    assert_equal(pretrained.read(python2_file(tmp_path / "b.npy", content)), content)


def test_the_stand_ins_file_is_read(tmp_path):
    """What make_standin_data writes: He's normals, biases 0."""
    shapes = {layer: arrays[0].shape for layer, arrays in layers().items()}
    make_standin_data.write_weights(str(tmp_path / "standin.npy"), 3, shapes)
    weights = pretrained.read(str(tmp_path / "standin.npy"))
    assert weights["conv2/weights"].std() == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert not weights["fc6/biases"].any()


class Hostile:
    """Unpickling it by the plain pickle module would make a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    content = dict(layers(), conv1=Hostile(str(tmp_path / "made")))
    path = save(tmp_path / "hostile.npy", content)
    with pytest.raises(InputError, match="refers to posix.mkdir|refers to nt.mkdir"):
        pretrained.read(path)
    assert not os.path.exists(str(tmp_path / "made"))


def without(layer):
    content = layers()
    del content[layer]
    return content


def changed(layer, change):
    return dict(layers(), **{layer: change(layers()[layer])})


@pytest.mark.parametrize("content, text", [
    (lambda: without("conv4"), "has no conv4"),
    (lambda: changed("conv2", lambda arrays: [arrays[0].transpose(3, 2, 0, 1), arrays[1]]),
     r"conv2/weights in .* is of shape \[32, 8, 5, 5\], expected \[5, 5, 8, 32\]"),
    (lambda: changed("fc6", lambda arrays: arrays[:1]), "fc6/biases in .* is missing"),
    (lambda: changed("fc7", lambda arrays: [arrays[0], arrays[1][:3]]),
     r"fc7/biases in .* is of shape \[3\]"),
    (lambda: changed("conv3", lambda arrays: [arrays[0] * np.nan, arrays[1]]),
     "conv3/weights .* not finite"),
    (lambda: changed("conv5", lambda arrays: ["text", arrays[1]]), "conv5 in .* is not two arrays"),
    (lambda: changed("conv5", lambda _: 3), "conv5 in .* is not two arrays"),
    (lambda: [1, 2], "list|array"), (lambda: {}, "has no conv1")])
def test_wrong_content_is_named(content, text, tmp_path):
    path = save(tmp_path / "w.npy", content())
    with pytest.raises(InputError, match=text):
        pretrained.read(path)


@pytest.mark.parametrize("damage", [
    lambda b: b[:-1000], lambda b: b[:200], lambda b: b[:50], lambda _: b"", lambda b: b[:6],
    lambda _: b"<html>404 not found</html>", lambda b: b[:128] + b"garbage" + b[140:],
    lambda b: b[:128] + b"\x80\x02}q\x00.", lambda _: pickle.dumps({"conv1": []})])
def test_damaged_files_are_refused_in_one_sentence(damage, weights_file, tmp_path):
    with open(weights_file, "rb") as file:
        content = file.read()
    path = tmp_path / "damaged.npy"
    path.write_bytes(damage(content))
    with pytest.raises(InputError) as error:
        pretrained.read(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_plain_array_is_refused(tmp_path):
    np.save(str(tmp_path / "plain.npy"), np.zeros(3))
    with pytest.raises(InputError, match=r"holds an array \[3\] of float64"):
        pretrained.read(str(tmp_path / "plain.npy"))
    with pytest.raises(InputError, match="cannot be read"):
        pretrained.read(str(tmp_path / "none.npy"))


# ---------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def random_run(small_data, tmp_path_factory):
    """(run folder, standard error) of one update from random weights; do not change it."""
    output = tmp_path_factory.mktemp("random")
    with pytest.MonkeyPatch.context() as patch:
        narrow_network(patch)
        code, _, err = train(small_data, output, "--train_iterations=1", "--save_best=False",
                             "--keep_prob=1", FEW)
    assert code == 0, err
    return run_folder(output), err


def test_loading_feeds_the_variables_and_adds_nothing_to_the_graph(weights_file):
    weights = pretrained.read(weights_file)
    with npu_session.new_graph().as_default() as graph, tf.Session() as session:
        variables = masf_func.create_variables(masf_func.glorot_uniform(0))
        session.run(tf.global_variables_initializer())
        before = session.run(variables)
        graph.finalize()
        size = graph.as_graph_def().ByteSize()
        pretrained.load(weights, variables, session)
        assert graph.as_graph_def().ByteSize() == size < 200000
        after = session.run(variables)
    assert_equal({name: after[name] for name in weights}, layers())
    for name in set(variables) - set(weights):
        np.testing.assert_array_equal(after[name], before[name])


def test_a_run_starts_from_the_file_once(weights_file, small_data, tmp_path, monkeypatch):
    """The seed's line is printed at the start only; a resumed run keeps what it has."""
    monkeypatch.chdir(tmp_path)
    flags = [f"--weights_path={weights_file}", "--train_iterations=1", "--save_best=False",
             "--method=deepall", FEW]
    code, out, err = train(small_data, tmp_path / "out", *flags)
    assert code == 0 and "random weights" not in err, err
    assert out.index("Loading pretrained weights") < out.index("Iteration 0")
    folder = run_folder(tmp_path / "out")
    assert read(folder, "result.json")["weights"] == "bvlc_alexnet.npy"
    assert records(folder)[0]["source_loss"] > 0
    code, out, err = train(small_data, tmp_path / "out", *flags, "--train_iterations=2")
    assert code == 0 and "Loading pretrained" not in out and "Restoring model" in out, err
    sentence = refused_early(small_data, tmp_path / "out", *flags, "--weights_path=random")
    assert "started with weights=bvlc_alexnet.npy" in sentence


def test_a_folder_gives_the_weights_of_another_run_s_checkpoint(random_run, tmp_path):
    """All 20 of them, none of its step or slots; before the graph is finalised."""
    folder = os.path.join(random_run[0], "checkpoints")
    args = main.parse_args([f"--weights_path={folder}"])
    start = main.load_weights(args)
    assert args.weights == os.sep.join(folder.split(os.sep)[-2:])
    with npu_session.new_graph().as_default() as graph, tf.Session() as session:
        variables = masf_func.create_variables(masf_func.glorot_uniform(0))
        load = main.weights_loader(start, variables)
        session.run(tf.global_variables_initializer())
        graph.finalize()
        load(session)
        found = session.run(dict(variables, step=tf.train.get_global_step()))
    assert found.pop("step") == 0
    for name, value in last_state(os.path.dirname(folder)).items():
        if name[len("model/"):] in found:
            np.testing.assert_array_equal(found.pop(name[len("model/"):]), value, err_msg=name)
    assert not found
    args = main.parse_args([f"--weights_path={tmp_path}"])
    with pytest.raises(InputError, match="is a folder without a checkpoint"):
        main.load_weights(args)


def test_without_a_file_the_start_is_random_and_the_log_says_so(random_run, small_data, tmp_path,
                                                               monkeypatch, weights_file):
    """The default is ./bvlc_alexnet.npy; a file that the user names must be there."""
    monkeypatch.chdir(tmp_path)
    args = main.parse_args([])
    assert main.load_weights(args) is None and args.weights == "random start"
    shutil.copy(weights_file, "bvlc_alexnet.npy")
    args = main.parse_args([])
    assert main.load_weights(args) and args.weights == "bvlc_alexnet.npy"
    err = random_run[1]
    assert "WARNING: training starts from random weights" in err and "far below the paper" in err
    sentence = refused(small_data, tmp_path / "other", "--weights_path=missing.npy")
    assert "missing.npy cannot be read" in sentence
    assert not os.path.exists(str(tmp_path / "other"))


def test_the_random_start_has_a_loss_near_ln_7(random_run):
    assert records(random_run[0])[0]["source_loss"] == pytest.approx(np.log(7), abs=0.3)
