"""Every model's export.py, from a checkpoint to onnxruntime: an engine that is not TensorFlow.

What a model's own network computes from random inputs comes also from the .pb of its checkpoint,
and from that .pb once tf2onnx has converted it. As a program: prints the differences as a table.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import functools
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tensorflow.compat.v1 as tf
import tf2onnx

TOOLS = Path(__file__).resolve().parent
SEED = 20
BATCH = 3  # images or samples per call
ONE_THREAD = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
#            so that sums have the same order on every machine
OPSET = 13  # of ONNX
# Largest accepted difference over the largest |value| of an output. Summed up in another order, n
# float32 products are off by about sqrt(n) 2^-24 of their size: 6e-6 for the longest sum, MASF's
# fc6 with n = 9216. Softmax makes the scores' absolute error, of values up to 6, a relative one.
TOLERANCE = 1e-5

Export = collections.namedtuple("Export", "pb inputs outputs")  # path, {name: shape}, names
Prepared = collections.namedtuple("Prepared", "graph_def inputs expected")  # {name: array}
# Largest |difference| of .pb and onnxruntime from the network, and largest |value|.
Difference = collections.namedtuple("Difference", "output shape pb onnx size")


# ---------------------------------------------------------------- the models' own networks
# Each function writes a checkpoint and returns (inputs, outputs), both {name in the .pb: array}. It
# runs in the model's folder, in a process of its own: modules of two models have the same names.


def adagan(folder, _):
    """A run of one component; what its generator made of the run's noise."""
    import adagan_gmm
    import draws
    import sample
    assert not adagan_gmm.main([
        "--output_dir", folder, "--steps=1", "--max_steps=20", "--toy_dataset_size=640",
        f"--samples_per_component={BATCH}", "--mixture_c_epoch_num=1", "--plots=False",
        "--threads=1"])
    settings = sample.run_settings(folder)
    drawn = draws.SeededDraws(settings.seed, settings)
    drawn.go_on(0)
    return ({"noise_ph": drawn.component_noise(BATCH)},
            {"GENERATOR/output": np.load(os.path.join(folder, "samples00.npy"))})


def csgm(folder, random):
    """The VAE as in training, and its generator."""
    import model_def
    inputs = {"x_ph": uniform(random, 0, 1, model_def.N_INPUT),
              "eps": uniform(random, -2, 2, model_def.N_Z),
              "x_ph_1": uniform(random, -2, 2, model_def.N_Z)}
    x, eps, z = map(tf.constant, inputs.values())
    initializer = model_def.xavier_uniform(SEED)
    outputs = {"gen/Sigmoid": model_def.vae(x, eps, initializer).x_reconstr_mean,
               "gen_1/Sigmoid": model_def.generator(z, initializer)[1]}
    return inputs, save_and_compute(os.path.join(folder, "models", "mnist-vae"), "model-0", outputs)


def dmsc(folder, random):
    """The autoencoder of two modalities as in training, on packed images."""
    import network
    images = [uniform(random, 0, 255, network.SIDE, network.SIDE, 1) for _ in range(2)]
    weights = network.create_weights(len(images), None, SEED)
    result = network.forward(weights, [tf.constant(network.pack(image)) for image in images], None)
    outputs = {f"latent_{number}": tf.reshape(code, [BATCH, -1])
               for number, code in enumerate(result.codes)}
    outputs.update({f"reconstruction_{number}": tf.py_func(network.unpack, [made], tf.float32)
                    for number, made in enumerate(result.reconstructed)})
    return ({f"image_{number}": image for number, image in enumerate(images)},
            save_and_compute(os.path.join(folder, "models"), "mymodel.ckpt", outputs))


def factorized(folder, random):
    """The network of test mode, with five landmarks."""
    import model_def
    images = uniform(random, -1, 1, 128, 128, 3)
    evaluation = model_def.build_evaluation(tf.constant(images), 5, SEED)
    outputs = {"coordinates": evaluation.coordinates, "heat_maps": evaluation.heat_maps}
    return {"images": images}, save_and_compute(os.path.join(folder, "ckpt"), "model-0", outputs)


def masf(folder, random):
    """The whole AlexNet as in evaluation."""
    import masf_func
    images = uniform(random, -124, 151, masf_func.SIDE, masf_func.SIDE, 3)
    variables = masf_func.create_variables(masf_func.random_start(SEED))
    logits = masf_func.alexnet(tf.constant(images), variables).logits
    return {"input": images}, save_and_compute(folder, "model-0", {"out": logits})


NETWORKS = {"AdaGAN": adagan, "CSGM": csgm, "DMSC_ID1259": dmsc, "Factorized_ID1301": factorized,
            "MASF_ID1191": masf}


def uniform(random, low, high, *shape):
    """float32 [BATCH, *shape]."""
    return random.uniform(low, high, (BATCH,) + shape).astype(np.float32)


def save_and_compute(folder, name, outputs):
    """Values of a dict of tensors with variables as in the checkpoint that this writes.

    Biases and what belongs to batch norm get different values for each channel, so that a mistaken
    one shows.
    """
    import npu_session
    os.makedirs(folder, exist_ok=True)
    random = np.random.RandomState(SEED)
    checkpoints = npu_session.Checkpoints(folder)
    with tf.Session(config=ONE_THREAD) as session:
        session.run(tf.global_variables_initializer())
        for variable in tf.global_variables():
            if variable.shape.ndims == 1:
                values = session.run(variable) + random.uniform(0, 0.2, variable.shape.as_list())
                if variable.op.name.endswith("moving_variance"):
                    values *= 0.1  # as small as activations are: heat maps have peaks
                variable.load(values, session)
        checkpoints.save(session, name)
        return session.run(outputs)


def store_network(model, folder):
    """Runs a model's function; its result goes to <folder>/{inputs,outputs}.npz."""
    import npu_session
    with npu_session.new_graph().as_default():
        inputs, outputs = NETWORKS[model](folder, np.random.RandomState(SEED))
    np.savez(os.path.join(folder, "inputs.npz"), **inputs)
    np.savez(os.path.join(folder, "outputs.npz"), **outputs)


# ---------------------------------------------------------------- checkpoint -> .pb -> onnx


def run(model, *command):
    """Standard output of this Python in the model's folder."""
    folder = TOOLS.parent / model
    done = subprocess.run(
        [sys.executable] + list(command), capture_output=True, text=True, timeout=600,
        cwd=str(folder / "src" if (folder / "src").is_dir() else folder),
        env=dict(os.environ, PYTHONPATH=str(TOOLS), PYTHONDONTWRITEBYTECODE="1"))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def exported(model, folder):
    """Export of the model's network in `folder`, as its export.py and the line for atc have it."""
    flags = {"MASF_ID1191": ["--ckpt_dir", folder]}.get(model, ["--output_dir", folder])
    out = run(model, "export.py", f"--batch_size={BATCH}", "--threads=1", *flags)
    line, = [line for line in out.splitlines() if line.startswith("atc ")]
    atc = dict(flag[2:].split("=", 1) for flag in shlex.split(line)[1:])
    shapes = [part.split(":") for part in atc["input_shape"].split(";")]
    return Export(atc["model"],
                  {name: tuple(map(int, sizes.split(","))) for name, sizes in shapes},
                  [name[:-len(":0")] for name in atc["out_nodes"].split(";")])


def read_graph_def(path):
    """GraphDef of a .pb."""
    with open(path, "rb") as file:
        return tf.GraphDef.FromString(file.read())


def run_tensorflow(graph_def, inputs, outputs):
    """{output: array} of {input: array}."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.Session(graph=graph, config=ONE_THREAD) as session:
            return session.run({name: name + ":0" for name in outputs},
                               {name + ":0": values for name, values in inputs.items()})


def run_onnx(graph_def, inputs, outputs):
    """run_tensorflow's result by tf2onnx and onnxruntime."""
    names, wanted = ([name + ":0" for name in part] for part in (inputs, outputs))
    model, _ = tf2onnx.convert.from_graph_def(graph_def, input_names=names, output_names=wanted,
                                              opset=OPSET)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(wanted, dict(zip(names, inputs.values())))))


def load(path):
    """{name: array} of an .npz."""
    with np.load(path) as arrays:
        return dict(arrays)


@functools.lru_cache(maxsize=1)  # MASF's graph has 228 MB
def prepare(model):
    """Prepared of a model, by way of a temporary folder; its names are those for atc."""
    with tempfile.TemporaryDirectory() as folder:
        run(model, "-c", "import sys, test_exports; test_exports.store_network(*sys.argv[1:])",
            model, folder)
        inputs, expected = (load(os.path.join(folder, name + ".npz"))
                            for name in ("inputs", "outputs"))
        export = exported(model, folder)
        assert export.inputs == {name: values.shape for name, values in inputs.items()}
        assert sorted(export.outputs) == sorted(expected)
        return Prepared(read_graph_def(export.pb), inputs, expected)


def measure(model):
    """List of Difference, one for each output of a model."""
    graph_def, inputs, expected = prepare(model)
    tensorflow, onnx = (engine(graph_def, inputs, expected)
                        for engine in (run_tensorflow, run_onnx))
    return [Difference(name, values.shape, largest(tensorflow[name] - values),
                       largest(onnx[name] - values), largest(values))
            for name, values in expected.items()]


def largest(values):
    """Largest |value|; NaN if there is one."""
    return float(np.max(np.abs(values)))


# ---------------------------------------------------------------- tests


def with_changed_weight(graph_def, name):
    """A copy in which the first entry of a constant is larger by 0.01."""
    changed = tf.GraphDef.FromString(graph_def.SerializeToString())
    node, = [node for node in changed.node if node.name == name]
    values = tf.make_ndarray(node.attr["value"].tensor).copy()
    values.flat[0] += 0.01
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))
    return changed


@pytest.mark.parametrize("layer", ["h0_lin", "h1_lin", "h2_lin"])
@pytest.mark.parametrize("kind", ["W", "b"])
def test_a_changed_weight_shows_in_onnxruntime(layer, kind):
    graph_def, inputs, expected = prepare("AdaGAN")
    changed = with_changed_weight(graph_def, f"GENERATOR/{layer}/{kind}")
    found = run_onnx(changed, inputs, expected)["GENERATOR/output"]
    samples = expected["GENERATOR/output"]
    assert largest(found - samples) > 10 * TOLERANCE * largest(samples)


@pytest.mark.parametrize("model", sorted(NETWORKS))
def test_pb_and_onnxruntime_compute_what_the_network_does(model):
    for difference in measure(model):
        assert difference.pb <= TOLERANCE * difference.size, difference
        assert difference.onnx <= TOLERANCE * difference.size, difference


# ---------------------------------------------------------------- the table


def main():
    """Prints the table, in Markdown."""
    print(f"Python {platform.python_version()}, TensorFlow {tf.__version__}, tf2onnx "
          f"{tf2onnx.__version__} (opset {OPSET}), onnxruntime {onnxruntime.__version__}, "
          f"{time.strftime('%Y-%m-%d')}, seed {SEED}\n")
    print("| model | inputs | output | .pb - network | onnxruntime - network | largest value |")
    print("|---|---|---|---|---|---|")
    for model in sorted(NETWORKS):
        shapes = ", ".join(f"{name} {list(values.shape)}"
                           for name, values in prepare(model).inputs.items())
        for found in measure(model):
            print(f"| {model} | {shapes} | {found.output} {list(found.shape)} | {found.pb:.2g} | "
                  f"{found.onnx:.2g} | {found.size:.3g} |", flush=True)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main()
