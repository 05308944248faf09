"""The frozen .pb: golden values through it, names, both TensorFlows, and what goes wrong."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import export
import model_def
import npu_session
import util
from golden_rules import IMG, RS, find_seed, load
from npu_session import InputError

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(HERE), "src")
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
BOTH = export.PARTS["both"]
ACTIVATION = {"rtol": 0, "atol": 2e-5}  # of the golden README
OTHER_TENSORFLOW = {"rtol": 0, "atol": 2e-6}  # kernels of two TensorFlows round differently
INFERENCE_OPERATIONS = {"Placeholder", "Const", "Identity", "MatMul", "Add", "AddV2", "BiasAdd",
                        "Softplus", "Exp", "Sqrt", "Mul", "Sigmoid"}


@pytest.fixture(scope="module")
def golden_pb(golden_checkpoint, tmp_path_factory):
    """Path of the .pb, with both parts, of the VAE with the golden weights; batch as in golden."""
    path = str(tmp_path_factory.mktemp("pb") / "csgm_vae.pb")
    export.export(golden_checkpoint, path, BOTH, golden_batch_size())
    return path


def golden_batch_size():
    """Images in vae.npz."""
    return len(load("vae")["z_mean"])


def golden_inputs():
    """x and eps: RS(SEED), in order; z: RS(SEED + 1), filled up to a batch with zeros."""
    count, rs = golden_batch_size(), RS(find_seed())
    x, eps = IMG(rs, count), rs.standard_normal((count, model_def.N_Z)).astype(np.float32)
    samples = len(load("vae")["x_sample"])
    z = np.zeros_like(eps)
    z[:samples] = RS(find_seed() + 1).standard_normal((samples, model_def.N_Z))
    return {"x_ph": x, "eps": eps, "x_ph_1": z}


def read_graph_def(path):
    """GraphDef of a .pb."""
    with open(path, "rb") as file:
        return tf.GraphDef.FromString(file.read())


def placeholder_shapes(graph_def):
    """{name: shape} of the placeholders, in the order of the graph."""
    return {node.name: [size.size for size in node.attr["shape"].shape.dim]
            for node in graph_def.node if node.op == "Placeholder"}


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
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# ---------------------------------------------------------------- values


def test_golden_reconstruction_through_the_frozen_graph(golden_pb):
    """x_reconstr_mean and the seed's error of vae.npz; inputs as golden_inputs."""
    golden, inputs = load("vae"), golden_inputs()
    pixels = export.run_frozen(golden_pb, BOTH, inputs)["gen/Sigmoid"]
    expected = golden["x_reconstr_mean_0_3"]
    np.testing.assert_allclose(pixels[:len(expected)], expected, **ACTIVATION)
    np.testing.assert_allclose(util.reconstruction_error(pixels, inputs["x_ph"]),
                               golden["reconstruct_error"], rtol=1e-5)


def test_golden_sampler_through_the_frozen_graph(golden_pb):
    """x_sample of vae.npz: the decoder on RS(SEED + 1)."""
    expected = load("vae")["x_sample"]
    pixels = export.run_frozen(golden_pb, BOTH, golden_inputs())["gen_1/Sigmoid"]
    np.testing.assert_allclose(pixels[:len(expected)], expected, **ACTIVATION)


def test_golden_eps_of_zeros_gives_the_reconstruction_at_z_mean(golden_pb):
    """gen/Sigmoid at eps = 0 is gen_1/Sigmoid at z_mean of vae.npz."""
    inputs = golden_inputs()
    inputs.update({"eps": np.zeros_like(inputs["eps"]), "x_ph_1": load("vae")["z_mean"]})
    pixels = export.run_frozen(golden_pb, BOTH, inputs)
    np.testing.assert_allclose(pixels["gen/Sigmoid"], pixels["gen_1/Sigmoid"], **ACTIVATION)


def test_difference_above_the_tolerance_fails_and_keeps_the_earlier_pb(
        golden_checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "vae.pb"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(FloatingPointError, match="differs from .*mnist_vae_model-0 by nan"):
        export.export(golden_checkpoint, str(path), BOTH, 3)
    assert os.listdir(str(tmp_path)) == ["vae.pb"]
    assert path.read_bytes() == b"earlier"


def test_largest_difference_sees_every_output():
    first = {"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}
    second = {"a": np.zeros((2, 3)), "b": np.array([[0, 0, 0], [0, -0.5, 0]])}
    assert export.largest_difference(first, second) == 0.5
    assert np.isnan(export.largest_difference(first, {"a": first["a"], "b": first["b"] + np.nan}))


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("name", sorted(export.PARTS))
def test_each_part_has_its_inputs_and_outputs_and_nothing_else(golden_checkpoint, tmp_path, name):
    part, path = export.PARTS[name], str(tmp_path / "vae.pb")
    export.export(golden_checkpoint, path, part, 7)
    graph_def = read_graph_def(path)
    assert placeholder_shapes(graph_def) == {
        wanted: [7, export.WIDTHS[wanted]] for wanted in part.inputs}
    assert list(placeholder_shapes(graph_def)) == list(part.inputs)  # the order of atc's inputs
    names = {node.name for node in graph_def.node}
    assert set(part.outputs) <= names
    assert ("enc/w1" in names) == (name != "sample")
    assert {node.op for node in graph_def.node} <= INFERENCE_OPERATIONS
    values = export.run_frozen(path, part, export.random_inputs(part, 7, seed=1))
    assert sorted(values) == sorted(part.outputs)
    assert all(pixels.shape == (7, model_def.N_INPUT) for pixels in values.values())


def test_attributes_with_default_values_are_left_out(golden_pb):
    products = [node for node in read_graph_def(golden_pb).node if node.op == "MatMul"]
    assert len(products) == 10
    assert all(set(node.attr) <= {"T"} for node in products)


def test_other_tensorflow_reads_our_pb(golden_pb, tmp_path):
    inputs, folder = golden_inputs(), str(tmp_path)
    np.savez(os.path.join(folder, "inputs.npz"), **inputs)
    run_other("-c", "import sys; sys.path.insert(0, sys.argv[1])\n"
                    "import numpy, export\n"
                    "inputs = dict(numpy.load(sys.argv[3] + '/inputs.npz'))\n"
                    "found = export.run_frozen(sys.argv[2], export.PARTS['both'], inputs)\n"
                    "numpy.savez(sys.argv[3] + '/outputs.npz', *found.values())",
              SOURCE, golden_pb, folder)
    expected = export.run_frozen(golden_pb, BOTH, inputs)
    with np.load(os.path.join(folder, "outputs.npz")) as found:
        for name, pixels in zip(found.files, expected.values()):
            np.testing.assert_allclose(found[name], pixels, **OTHER_TENSORFLOW)


def test_we_read_the_other_tensorflows_pb(golden_checkpoint, golden_pb, tmp_path):
    path, inputs = str(tmp_path / "other.pb"), golden_inputs()
    run_other(os.path.join(SOURCE, "export.py"), "--ckpt_dir=" + golden_checkpoint,
              "--output=" + path, f"--batch_size={golden_batch_size()}")
    found = export.run_frozen(path, BOTH, inputs)
    for name, pixels in export.run_frozen(golden_pb, BOTH, inputs).items():
        np.testing.assert_allclose(found[name], pixels, **OTHER_TENSORFLOW)


# ---------------------------------------------------------------- the program


def test_program_exports_writes_inputs_and_says_how_to_go_on(
        run_program, golden_checkpoint, small_data, tmp_path):
    path, folder = str(tmp_path / "out" / "vae.pb"), str(tmp_path / "in")
    done = run_program("export.py", "--ckpt_dir", golden_checkpoint, "--output", path,
                       "--batch_size=50", "--data_dir", small_data, "--write_inputs", folder)
    assert done.returncode == 0, done.stderr
    assert float(re.search("largest difference .* ([0-9.e-]+)", done.stdout).group(1)) <= 1e-6
    assert "input  x_ph_1:0  float32 [50, 20]" in done.stdout
    assert "output gen/Sigmoid:0  float32 [50, 784]" in done.stdout
    assert (f"atc --model={path} --framework=3 --output={path[:-3]} --soc_version=Ascend310 "
            '--input_shape="x_ph:50,784;eps:50,20;x_ph_1:50,20" '
            '--out_nodes="gen/Sigmoid:0;gen_1/Sigmoid:0"') in done.stdout
    assert (f"./msame --model {path[:-3]}.om --input "
            f"{folder}/test_img.bin,{folder}/test_eps.bin,{folder}/test_z.bin "
            f"--output {tmp_path}/out/om_output --outfmt TXT --loop 1") in done.stdout
    images = np.fromfile(os.path.join(folder, "test_img.bin"), "<f4").reshape(50, 784)
    expected = data_input.to_float(data_input.load(small_data).test[:50])
    np.testing.assert_array_equal(images, expected)
    assert not np.fromfile(os.path.join(folder, "test_eps.bin"), "<f4").any()
    inputs = export.file_inputs(BOTH, images, seed=1)
    np.testing.assert_array_equal(
        np.fromfile(os.path.join(folder, "test_z.bin"), "<f4"), inputs["x_ph_1"].ravel())
    error = util.reconstruction_error(
        export.run_frozen(path, BOTH, inputs)["gen/Sigmoid"], images)
    assert f"reconstruct_error of {path} {error:.6f} (50 images)" in done.stdout
    assert "data: stand-in digits" in done.stdout


def test_output_of_the_chip_is_compared_with_the_test_images(small_data, tmp_path, capsys):
    images = data_input.to_float(data_input.load(small_data).test[:20])
    pixels = np.clip(images + np.float32(0.25) * (images < 0.5), 0, 1)
    pixels.astype("<f4").tofile(str(tmp_path / "result.bin"))
    np.savetxt(str(tmp_path / "result.txt"), pixels)
    expected = 0.0625 * np.mean(images < 0.5)
    for name in ("result.bin", "result.txt"):
        flags = ["--check_output", str(tmp_path / name), "--data_dir", small_data]
        assert export.main(flags + ["--batch_size=20"]) == 0
        assert f"{name} {expected:.6f} (20 images)" in capsys.readouterr().out


@pytest.mark.parametrize("name, content, message", [
    ("none.txt", None, "cannot be read"),
    ("words.txt", "0.1 zero 0.3", "cannot be read"),
    ("short.txt", "0.1 0.2 0.3", "3 numbers, expected 2 x 784"),
    ("nan.txt", "nan " * 1568, "not finite"),
])
def test_unusable_output_of_the_chip_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        export.read_output(str(path), 2)


def test_sampler_needs_no_images_but_z(golden_checkpoint, small_data, tmp_path, capsys):
    folder = str(tmp_path / "in")
    assert export.main(["--part=sample", "--ckpt_dir", golden_checkpoint, "--output",
                        str(tmp_path / "sampler.pb"), "--batch_size=4", "--data_dir", small_data,
                        "--write_inputs", folder, "--soc_version=Ascend310P3"]) == 0
    assert os.listdir(folder) == ["test_z.bin"]
    text = capsys.readouterr().out
    assert ('--soc_version=Ascend310P3 --input_shape="x_ph_1:4,20" '
            '--out_nodes="gen_1/Sigmoid:0"') in text


def test_too_few_test_images_are_refused_before_anything_is_written(
        golden_checkpoint, small_data, tmp_path):
    with pytest.raises(InputError, match="--batch_size=301 is more than the 300 test images"):
        export.main(["--ckpt_dir", golden_checkpoint, "--output", str(tmp_path / "vae.pb"),
                     "--batch_size=301", "--data_dir", small_data, "--write_inputs",
                     str(tmp_path)])
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("flag", ["--resume=True", "--batch_size=0", "--seed=-1", "--frozen=1"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        export.parse_args([flag])
    assert leaving.value.code == 2


# ---------------------------------------------------------------- checkpoints and disks


def test_no_checkpoint_names_the_training_command(run_program, tmp_path):
    done = run_program("export.py", "--output_dir", tmp_path)
    assert done.returncode == 2
    assert re.search("error: no checkpoint in .*models/mnist-vae: train a VAE with python "
                     "src/main.py", done.stderr)
    assert os.listdir(str(tmp_path)) == []


def save_checkpoint(folder, name, shapes):
    """A checkpoint of variables with these {name: shape}, all ones."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        for variable, shape in shapes.items():
            tf.get_variable(variable, shape, initializer=tf.ones_initializer())
        session.run(tf.global_variables_initializer())
        npu_session.Checkpoints(folder).save(session, name)


def test_checkpoint_of_another_architecture_names_the_variable(golden_checkpoint, tmp_path):
    shapes = {name: array.shape for name, array in checkpoint_arrays(golden_checkpoint).items()}
    shapes["enc/w2"] = (500, 400)
    save_checkpoint(str(tmp_path), "other-0", shapes)
    with pytest.raises(InputError, match=r"enc/w2 \[500, 400\], this model \[500, 500\]"):
        export.export(str(tmp_path), str(tmp_path / "vae.pb"), BOTH, 3)
    assert not os.path.exists(str(tmp_path / "vae.pb"))


def checkpoint_arrays(folder):
    """{name: array} of the newest checkpoint in a folder."""
    reader = tf.train.load_checkpoint(folder)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def test_damaged_checkpoint_falls_back_to_the_one_before(golden_checkpoint, tmp_path, capsys):
    with npu_session.new_graph().as_default(), tf.Session() as session:
        model_def.evaluation(2, model_def.xavier_uniform(0))
        checkpoints = npu_session.Checkpoints(str(tmp_path))
        npu_session.Checkpoints(golden_checkpoint).restore(session)
        for number in (0, 5):
            checkpoints.save(session, f"mnist_vae_model-{number}")
    data = tmp_path / "mnist_vae_model-5.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    restored, _ = export.export(str(tmp_path), str(tmp_path / "vae.pb"), BOTH, 3)
    assert restored.endswith("mnist_vae_model-0")
    assert "mnist_vae_model-5 is damaged" in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_one_sentence(run_program, golden_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    read_only = tmp_path / "read_only"
    read_only.mkdir()
    read_only.chmod(0o500)
    folders = [tmp_path / "file"] + ([] if os.access(str(read_only), os.W_OK) else [read_only])
    for folder in folders:  # root may write to read_only
        done = run_program("export.py", "--ckpt_dir", golden_checkpoint, "--batch_size=2",
                           "--output", folder / "vae.pb")
        assert done.returncode == 1
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in done.stderr


def test_full_disk_keeps_the_earlier_pb(golden_checkpoint, tmp_path):
    path = tmp_path / "vae.pb"
    path.write_bytes(b"earlier")
    done = subprocess.run(
        [sys.executable, os.path.join(SOURCE, "export.py"), "--ckpt_dir", golden_checkpoint,
         "--output", str(path)], capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, 2 ** 20)))
    assert done.returncode == 1
    assert re.search("error: .*File too large", done.stderr)
    assert os.listdir(str(tmp_path)) == ["vae.pb"]
    assert path.read_bytes() == b"earlier"
