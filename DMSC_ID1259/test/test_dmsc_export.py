"""The frozen .pb: golden latents through it, names, both TensorFlows, and what goes wrong."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bench
import checkpoints
import data_input
import export
import golden_rules
import network
import npu_session
import training_runs
from npu_session import InputError

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPOSITORY = os.path.dirname(SOURCE)
GOLDEN = golden_rules.files("pretrain_M")
OTHER_TENSORFLOW = 2e-5  # of the largest output: kernels of two TensorFlows round differently
INFERENCE_OPERATIONS = {
    "Placeholder", "Const", "Identity", "Conv2D", "Conv2DBackpropInput", "BiasAdd", "Relu",
    "Reshape", "SpaceToDepth", "DepthToSpace", "Pad", "Transpose", "Tile", "ConcatV2"}


def write_checkpoint(folder, modalities, seed=1, fusion="affinity", fill=None):
    """Prefix of a checkpoint of initial weights, or of fill(name, shape)."""
    path = os.path.join(str(folder), "models", "mymodel.ckpt")
    with npu_session.new_graph().as_default(), tf.Session() as session:
        variables = network.autoencoder_variables(
            network.create_weights(modalities, None, seed, fusion))
        session.run(tf.global_variables_initializer())
        if fill:
            checkpoints.load(session, [(variable, fill(variable.op.name,
                                                       variable.shape.as_list()))
                                       for variable in variables])
        checkpoints.Writer(path, variables).write(session)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Prefix of a checkpoint of two modalities; do not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("weights"), 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder with small.mat: stand-in faces, two modalities, 24 samples, 3 subjects."""
    content = dict(training_runs.small_content(), **{data_input.STANDIN_KEY: "stand-in"})
    return training_runs.write_mat(tmp_path_factory.mktemp("data"), content)


def images(modalities, count, seed=0):
    """Random float32 [count, 32, 32, 1] for each modality, as inputs of a .pb."""
    random = np.random.RandomState(seed)
    return {f"image_{number}": random.uniform(0, 255, (count, 32, 32, 1)).astype(np.float32)
            for number in range(modalities)}


def read_graph_def(path):
    """GraphDef of a .pb."""
    with open(path, "rb") as file:
        return tf.GraphDef.FromString(file.read())


def other_python():
    """An interpreter with the other TensorFlow: $OTHER_PYTHON, or the repository's other one."""
    folders = [os.path.join(REPOSITORY, name) for name in (".venv", ".venv-tf115")]
    paths = [os.environ.get("OTHER_PYTHON", "")] + [
        os.path.join(folder, "bin", "python") for folder in folders
        if os.path.realpath(folder) != os.path.realpath(sys.prefix)]
    found = [path for path in paths if os.path.isfile(path)]
    if not found:
        pytest.skip("no second TensorFlow: neither OTHER_PYTHON nor both of .venv and .venv-tf115 "
                    "in the repository")
    return found[0]


def run_other(*command):
    """Runs the other interpreter; its errors fail the test."""
    done = subprocess.run([other_python()] + list(command), capture_output=True, text=True,
                          timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_latents_through_the_frozen_graph(name, tmp_path):
    """z<m>_slice and z<m>_stats of a pre-training file: the encoder on IMAGES."""
    seed, sizes = golden_rules.find_seed(), golden_rules.sizes(name)
    golden = golden_rules.load(name)
    checkpoint = write_checkpoint(tmp_path, sizes["M"],
                                  fill=lambda *variable: golden_rules.FILL(*variable, seed))
    path = str(tmp_path / "dmsc.pb")
    interface, _ = export.export(checkpoint, path, sizes["N"], part="encode")
    latents = export.run_frozen(path, interface, {
        f"image_{m}": golden_rules.IMAGES(m, sizes["N"], seed) for m in range(sizes["M"])})
    compared = 0
    for m in range(sizes["M"]):
        found, statistics = latents[f"latent_{m}"], golden.get(f"z{m}_stats")
        expected = golden.get(f"z{m}_slice")
        if expected is not None:
            np.testing.assert_allclose(found[:3, :96], expected, rtol=0,
                                       atol=2e-5 * np.abs(expected).max())
            compared += 1
        if statistics is not None:
            values = found.astype(np.float64)
            np.testing.assert_allclose([values.mean(), values.std(), np.linalg.norm(values)],
                                       statistics[:3], rtol=2e-5)
    assert compared


def test_outputs_are_the_plain_layers(weights, tmp_path):
    """Strided 5 x 5 layers on the images themselves, as the paper draws them."""
    path, inputs = str(tmp_path / "dmsc.pb"), images(2, 3)
    interface, _ = export.export(weights, path, 3)
    found = export.run_frozen(path, interface, inputs)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        variables = network.create_weights(2, None, 0)
        checkpoints.load(session, checkpoints.read(weights,
                                                   network.autoencoder_variables(variables)))
        for number in range(2):
            code = bench.reference_encode(tf.constant(inputs[f"image_{number}"]),
                                          variables.own[number])
            made = bench.reference_decode(code, variables.decoders[number])
            for name, tensor in (("latent", code), ("reconstruction", made)):
                expected = session.run(tensor)
                values = found[f"{name}_{number}"].reshape(expected.shape)
                np.testing.assert_allclose(values, expected, rtol=0,
                                           atol=2e-5 * np.abs(expected).max())


def test_difference_above_the_tolerance_fails_and_keeps_the_earlier_pb(
        weights, tmp_path, monkeypatch):
    path = tmp_path / "dmsc.pb"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(FloatingPointError, match=r"differs from .*mymodel\.ckpt by nan"):
        export.export(weights, str(path), 3)
    assert os.listdir(str(tmp_path)) == ["dmsc.pb"]
    assert path.read_bytes() == b"earlier"


def test_largest_difference_sees_every_output_at_its_own_scale():
    first = {"a": np.full((2, 3), 100.0), "b": np.ones((2, 3))}
    second = {"a": np.full((2, 3), 101.0), "b": np.array([[1, 1, 1], [1, 0.5, 1]])}
    assert export.largest_difference(first, second) == 0.5
    assert np.isnan(export.largest_difference(first, {"a": first["a"], "b": first["b"] + np.nan}))


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("part, modality, outputs", [
    ("encode", None, ["latent_0", "latent_1"]),
    ("reconstruct", 1, ["reconstruction_1"]),
    ("both", None, ["latent_0", "latent_1", "reconstruction_0", "reconstruction_1"])])
def test_each_part_has_its_inputs_and_outputs_and_nothing_else(
        weights, tmp_path, part, modality, outputs):
    path = str(tmp_path / "dmsc.pb")
    interface, _ = export.export(weights, path, 7, part=part, modality=modality)
    assert list(interface.outputs) == outputs
    wanted = ["image_0", "image_1"] if modality is None else [f"image_{modality}"]
    nodes = {node.name: node for node in read_graph_def(path).node}
    placeholders = [name for name, node in nodes.items() if node.op == "Placeholder"]
    assert placeholders == wanted == list(interface.inputs)  # the order of atc's inputs
    for name in wanted:
        shape = [size.size for size in nodes[name].attr["shape"].shape.dim]
        assert tuple(shape) == interface.inputs[name] == (7, 32, 32, 1)
    assert {node.op for node in nodes.values()} <= INFERENCE_OPERATIONS
    assert any("dec" in name for name in nodes) == (part != "encode")
    assert "Coef" not in nodes
    values = export.run_frozen(path, interface, images(2, 7))
    assert {name: array.shape for name, array in values.items()} == interface.outputs
    assert interface.outputs.get("latent_0", (7, 1920)) == (7, 1920)


@pytest.mark.parametrize("fusion, width", [("early", 1920), ("intermediate", 1920),
                                           ("late", 3840)])
def test_joint_fusions_have_one_latent_of_all_images(tmp_path, fusion, width):
    checkpoint, path = write_checkpoint(tmp_path, 2, fusion=fusion), str(tmp_path / "dmsc.pb")
    interface, _ = export.export(checkpoint, path, 3, fusion)
    assert interface.outputs == {"latent_0": (3, width), "reconstruction_0": (3, 32, 32, 1),
                                 "reconstruction_1": (3, 32, 32, 1)}
    inputs = images(2, 3)
    first = export.run_frozen(path, interface, inputs)
    inputs["image_1"] = inputs["image_1"][::-1]
    second = export.run_frozen(path, interface, inputs)
    assert not np.array_equal(first["latent_0"], second["latent_0"])
    with pytest.raises(InputError, match=f"--modality=1: with --fusion={fusion}"):
        export.export(checkpoint, path, 3, fusion, modality=1)


def test_attributes_with_default_values_are_left_out(weights, tmp_path):
    path = str(tmp_path / "dmsc.pb")
    export.export(weights, path, 2)
    for node in read_graph_def(path).node:
        assert not {"dilations", "data_format", "use_cudnn_on_gpu", "explicit_paddings"} & set(
            node.attr), node.name


def test_other_tensorflow_reads_our_pb_and_we_read_its(weights, tmp_path):
    ours, theirs, folder = str(tmp_path / "ours.pb"), str(tmp_path / "theirs.pb"), str(tmp_path)
    inputs = images(2, 3)
    interface, _ = export.export(weights, ours, 3)
    np.savez(os.path.join(folder, "inputs.npz"), **inputs)
    run_other("-c", "import sys; sys.path.insert(0, sys.argv[1])\n"
                    "import numpy, export\n"
                    "interface, _ = export.export(sys.argv[2], sys.argv[4], 3)\n"
                    "inputs = dict(numpy.load(sys.argv[5] + '/inputs.npz'))\n"
                    "found = export.run_frozen(sys.argv[3], interface, inputs)\n"
                    "numpy.savez(sys.argv[5] + '/outputs.npz', **found)",
              SOURCE, weights, ours, theirs, folder)
    expected = export.run_frozen(ours, interface, inputs)
    with np.load(os.path.join(folder, "outputs.npz")) as found:
        assert export.largest_difference(expected, found) < OTHER_TENSORFLOW
    found = export.run_frozen(theirs, interface, inputs)
    assert export.largest_difference(expected, found) < OTHER_TENSORFLOW


# ---------------------------------------------------------------- the program


def test_program_exports_writes_inputs_and_says_how_to_go_on(weights, small, tmp_path, capsys):
    output, folder = str(tmp_path / "out" / "dmsc.pb"), str(tmp_path / "in")
    assert export.main(["--checkpoint", weights, "--output", output, "--mat=small", "--data_dir",
                        small, "--write_inputs", folder, "--part=encode"]) == 0
    out = capsys.readouterr().out
    assert float(re.search("largest difference .* output ([0-9.e-]+)", out).group(1)) <= 1e-6
    assert "data: stand-in faces small" in out
    assert "input  image_1:0  float32 [24, 32, 32, 1]" in out  # as many as samples
    assert "output latent_0:0  float32 [24, 1920]" in out
    assert (f"atc --model={output} --framework=3 --output={output[:-3]} --soc_version=Ascend310 "
            '--input_shape="image_0:24,32,32,1;image_1:24,32,32,1" '
            '--out_nodes="latent_0:0;latent_1:0"') in out
    assert (f"./msame --model {output[:-3]}.om --input {folder}/image_0.bin,{folder}/image_1.bin "
            f"--output {tmp_path}/out/om_output --outfmt BIN --loop 1") in out
    data = data_input.load(os.path.join(small, "small.mat"))
    for number in range(2):
        pixels = np.fromfile(os.path.join(folder, f"image_{number}.bin"), "<f4")
        np.testing.assert_array_equal(pixels, data.images[number].ravel())


def test_latents_from_the_chip_are_clustered(small, tmp_path, capsys):
    """Latents in one direction per subject: perfect scores, from .bin and .txt alike."""
    labels = data_input.load(os.path.join(small, "small.mat")).labels
    random = np.random.RandomState(0)
    latents = random.uniform(1, 2, (24, 1)) * random.standard_normal((3, 50))[labels - 1]
    latents = (latents + 0.1 * random.standard_normal((24, 50))).astype(np.float32)
    latents.astype("<f4").tofile(str(tmp_path / "a.bin"))
    np.savetxt(str(tmp_path / "b.txt"), latents)
    flags = ["--mat=small", "--data_dir", small, "--check_latents"]
    for names in (["a.bin"], ["a.bin", "b.txt"]):
        assert export.main(flags + [str(tmp_path / name) for name in names]) == 0
        out = capsys.readouterr().out
        assert "24 samples in 3 clusters of 8, 8, 8" in out
        assert "self-expression of the latents: ACC 100.00% NMI 100.00% ARI 100.00%" in out


def test_latents_without_labels_are_clustered_without_scores(tmp_path, capsys):
    content = training_runs.small_content()
    del content["Label"]
    folder = training_runs.write_mat(tmp_path, content)
    np.random.RandomState(0).standard_normal((24, 9)).astype("<f4").tofile(str(tmp_path / "a.bin"))
    assert export.main(["--mat=small", "--data_dir", folder, "--clusters=2", "--check_latents",
                        str(tmp_path / "a.bin")]) == 0
    out = capsys.readouterr().out
    assert "24 samples in 2 clusters" in out and "ACC" not in out


def test_reconstructions_from_the_chip_are_compared_with_the_images(small, tmp_path, capsys):
    data = data_input.load(os.path.join(small, "small.mat"))
    for number, shift in ((0, 3), (1, 5)):
        (data.images[number] + shift).astype("<f4").tofile(str(tmp_path / f"{number}.bin"))
    flags = ["--mat=small", "--data_dir", small, "--check_reconstructions"]
    assert export.main(flags + [str(tmp_path / "0.bin"), str(tmp_path / "1.bin")]) == 0
    out = capsys.readouterr().out
    assert "modality 0: mean squared error 9.0000 of" in out
    assert "modality 1: mean squared error 25.0000 of" in out
    assert export.main(flags + [str(tmp_path / "1.bin"), "--modality=1"]) == 0
    assert "modality 1: mean squared error 25.0000 of" in capsys.readouterr().out
    with pytest.raises(InputError, match="2 files of reconstructions from modality 1 on"):
        export.main(flags + [str(tmp_path / "1.bin")] * 2 + ["--modality=1"])


@pytest.mark.parametrize("name, content, message", [
    ("none.txt", None, "cannot be read"), ("words.txt", "0.1 zero 0.3", "cannot be read"),
    ("short.txt", "0.1 0.2 0.3", "3 numbers, which is not the same count for each of 2"),
    ("empty.txt", "", "0 numbers"), ("nan.txt", "nan " * 6, "not finite")])
def test_unusable_output_of_the_chip_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        export.read_output(str(path), 2)


@pytest.mark.parametrize("flag", ["--resume=True", "--batch_size=0", "--seed=-1", "--modality=-1"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        export.parse_args([flag])
    assert leaving.value.code == 2


# ---------------------------------------------------------------- checkpoints and disks


def refused(*flags):
    """The sentence of an export that must be refused."""
    code, _, err = training_runs.call(export.main, flags)
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ")
    return err


def test_no_or_damaged_checkpoint(weights, tmp_path):
    assert re.search("no checkpoint .*models.mymodel.ckpt: train one with python "
                     "pretrain_affinity_fusion.py", refused("--output_dir", tmp_path))
    assert os.listdir(str(tmp_path)) == []
    (tmp_path / "bad.ckpt.index").write_bytes(b"bad")
    assert "cannot be read" in refused("--checkpoint", tmp_path / "bad.ckpt", "--batch_size=2")
    (tmp_path / "other").mkdir()
    with npu_session.new_graph().as_default(), tf.Session() as session:
        tf.get_variable("other", [2], initializer=tf.zeros_initializer())
        session.run(tf.global_variables_initializer())
        npu_session.Checkpoints(str(tmp_path / "other")).save(session, "x")
    assert "no encoder" in refused("--checkpoint", tmp_path / "other" / "x", "--batch_size=2")
    assert "0 to 1" in refused("--checkpoint", weights, "--batch_size=2", "--modality=2",
                               "--output", tmp_path / "a.pb")
    assert "made with other settings" in refused(
        "--checkpoint", weights, "--batch_size=2", "--fusion=late", "--output", tmp_path / "a.pb")
    assert not os.path.exists(str(tmp_path / "a.pb"))


def test_data_that_do_not_fit_are_refused(weights, small, tmp_path):
    output = tmp_path / "a.pb"
    other = training_runs.write_mat(tmp_path / "one", training_runs.small_content(1))
    flags = ["--checkpoint", weights, "--output", output, "--mat=small"]
    assert "the data have 1 modalities, the checkpoint 2" in refused(*flags, "--data_dir", other)
    assert "--batch_size=25 is more than the 24 samples" in refused(
        *flags, "--data_dir", small, "--batch_size=25", "--write_inputs", tmp_path / "in")


def test_checkpoint_with_coef_and_adam_slots_is_exported_without_them(tmp_path):
    """Stage 2's own checkpoints hold all variables of a run."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        variables = network.create_weights(2, 24, 3)
        tf.get_variable("Coef/Adam", [24, 24], initializer=tf.zeros_initializer())
        session.run(tf.global_variables_initializer())
        npu_session.Checkpoints(str(tmp_path)).save(session, "step-5")
        expected = session.run(variables.own[1][0][0])
    path = str(tmp_path / "a.pb")
    export.export(str(tmp_path / "step-5"), path, 2)
    nodes = {node.name: node for node in read_graph_def(path).node}
    assert not [name for name in nodes if name.startswith("Coef")]
    kernel = tf.make_ndarray(nodes["1/1_enc_w0"].attr["value"].tensor)
    np.testing.assert_array_equal(kernel, expected)


def test_full_disk_keeps_the_earlier_pb(weights, tmp_path):
    path = tmp_path / "dmsc.pb"
    path.write_bytes(b"earlier")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 16, before[1]))
    try:
        code, _, err = training_runs.call(export.main, [
            "--checkpoint", weights, "--output", path, "--batch_size=2"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1 and re.match("error: .*File too large", err)
    assert os.listdir(str(tmp_path)) == ["dmsc.pb"]
    assert path.read_bytes() == b"earlier"
