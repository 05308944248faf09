"""The frozen .pb: golden values through it, both TensorFlows, .bin files, what goes wrong."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re
import resource

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import evaluate
import export
import golden_rules
from golden_rules import load
from npu_session import InputError

BATCH = 4
OTHER_TENSORFLOW = {"coordinates": 2e-3, "heat_maps": 1e-5}  # kernels of two TensorFlows round
INFERENCE_OPERATIONS = {
    "Placeholder", "Const", "Identity", "Conv2D", "FusedBatchNorm", "FusedBatchNormV2",
    "FusedBatchNormV3", "Relu", "MaxPool", "Transpose", "Reshape", "Softmax", "Mul", "Sum",
    "ConcatV2", "Add", "AddV2", "Sub", "Pack", "Unpack", "StridedSlice", "Range", "ExpandDims",
    "Tile", "Shape", "Split", "Cast"}


@pytest.fixture(scope="module")
def golden_pb(checkpoint, tmp_path_factory):
    """Path of their .pb; as many images per call as in infer.npz."""
    path = str(tmp_path_factory.mktemp("pb") / "landmarks.pb")
    export.export(checkpoint, path, 8, golden_batch_size())
    return path


@pytest.fixture(scope="module")
def golden_outputs(golden_pb):
    """Its outputs for golden_images."""
    return export.run_frozen(golden_pb, golden_images())


@pytest.fixture(scope="module")
def exported(run_program, faces, checkpoint, tmp_path_factory):
    """(.pb, folder of .bin files, what was printed) of the program with --write_inputs."""
    folder = tmp_path_factory.mktemp("exported")
    path, inputs = str(folder / "out" / "landmarks.pb"), str(folder / "in")
    code, out, err = run_program("export.py", "--checkpoint", checkpoint, "--output", path,
                                 f"--batch_size={BATCH}", "--data_path", faces, "--write_inputs",
                                 inputs, "--threads=1")
    assert code == 0, err
    return path, inputs, out


@pytest.fixture(scope="module")
def other_tensorflow(run_other, checkpoint, golden_pb, tmp_path_factory):
    """(outputs of golden_pb for golden_images as a .npz, a .pb of the checkpoint), of it."""
    folder = tmp_path_factory.mktemp("other")
    images, outputs, path = (str(folder / name) for name in ("images.npy", "out.npz", "other.pb"))
    np.save(images, golden_images())
    run_other("-c", "import sys, numpy, export, npu_session\n"
                    "found = export.run_frozen(sys.argv[1], numpy.load(sys.argv[2]))\n"
                    "numpy.savez(sys.argv[3], **found)\n"
                    "sys.exit(npu_session.run_main(export.main, sys.argv[4:]))",
              golden_pb, images, outputs, "--checkpoint=" + checkpoint, "--output=" + path,
              f"--batch_size={golden_batch_size()}", "--threads=1")
    return outputs, path


def golden_batch_size():
    """Images in infer.npz."""
    return len(load("infer")["expect_A_row_col"])


def golden_images():
    """The first tower's images, by the rule of the golden README."""
    return golden_rules.images(golden_batch_size(), golden_rules.find_seed())[0]


def read_graph_def(path):
    """GraphDef of a .pb."""
    with open(path, "rb") as file:
        return tf.GraphDef.FromString(file.read())


def assert_close(found, expected, tolerance):
    """Both are results of run_outputs."""
    for name in export.OUTPUTS:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance[name])


# ---------------------------------------------------------------- values


def test_golden_coordinates_and_heat_maps_through_the_frozen_graph(golden_outputs):
    """expect_A_row_col and predA_stats of infer.npz; images A and variables by rule."""
    golden, found = load("infer"), golden_outputs
    golden_rules.assert_close(found["coordinates"], golden["expect_A_row_col"], 1e-4)
    mean, deviation, norm, _, highest = golden_rules.stats(found["heat_maps"])
    golden_rules.assert_close([mean, deviation, norm, highest], golden["predA_stats"], 1e-4)
    assert found["heat_maps"].sum(axis=(1, 2)) == pytest.approx(1, abs=1e-4)


def test_difference_above_the_tolerance_fails_and_keeps_the_earlier_pb(
        checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "landmarks.pb"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(export, "differences",
                        lambda *_: dict.fromkeys(export.OUTPUTS, float("nan")))
    with pytest.raises(FloatingPointError, match="differs from .*model-7 by .*nan"):
        export.export(checkpoint, str(path), 8, 1)
    assert os.listdir(str(tmp_path)) == ["landmarks.pb"]
    assert path.read_bytes() == b"earlier"


def test_differences_see_every_output():
    first = dict.fromkeys(export.OUTPUTS, np.zeros((2, 3)))
    second = dict(first, heat_maps=np.array([[0, 0, 0], [0, -0.5, 0]]))
    assert export.differences(first, second) == {"coordinates": 0.0, "heat_maps": 0.5}


# ---------------------------------------------------------------- the graph


def test_one_input_two_outputs_and_inference_only(golden_pb):
    nodes = {node.name: node for node in read_graph_def(golden_pb).node}
    placeholders = {name: [size.size for size in node.attr["shape"].shape.dim]
                    for name, node in nodes.items() if node.op == "Placeholder"}
    assert placeholders == {"images": [golden_batch_size(), 128, 128, 3]}
    assert set(export.OUTPUTS) <= set(nodes)
    assert "cnn_tower/layer_6/BatchNorm/Relu" in nodes
    assert {node.op for node in nodes.values()} <= INFERENCE_OPERATIONS


def test_attributes_with_default_values_are_left_out(golden_pb):
    convolutions = [node for node in read_graph_def(golden_pb).node if node.op == "Conv2D"]
    assert len(convolutions) == 6
    assert all(set(node.attr) <= {"T", "strides", "padding"} for node in convolutions)


def test_other_tensorflow_reads_our_pb(golden_outputs, other_tensorflow):
    with np.load(other_tensorflow[0]) as found:
        assert_close(found, golden_outputs, OTHER_TENSORFLOW)


def test_we_read_the_other_tensorflows_pb(golden_outputs, other_tensorflow):
    assert_close(export.run_frozen(other_tensorflow[1], golden_images()), golden_outputs,
                 OTHER_TENSORFLOW)


# ---------------------------------------------------------------- the program


def test_program_says_what_it_did_and_how_to_go_on(exported):
    path, inputs, printed = exported
    assert float(re.search("output: coordinates ([0-9.e-]+)", printed).group(1)) <= 1e-3
    assert "input  images:0  float32 [4, 128, 128, 3]" in printed
    assert "output coordinates:0  float32 [4, 8, 2]" in printed
    assert "output heat_maps:0  float32 [4, 42, 42, 8]" in printed
    assert f"data: stand-in faces\nwrote 4 batches of 4 images to {inputs}" in printed
    assert (f"atc --model={path} --framework=3 --output={path[:-3]} --soc_version=Ascend310 "
            '--input_shape="images:4,128,128,3" --input_format=NHWC '
            '--out_nodes="coordinates:0;heat_maps:0"') in printed
    assert (f"./msame --model {path[:-3]}.om --input {inputs} "
            f"--output {os.path.dirname(path)}/om_output --outfmt BIN --loop 1") in printed


def batches_of(inputs):
    """The images that were written, float32 [4, 4, 128, 128, 3]."""
    assert sorted(os.listdir(inputs)) == [export.BATCH_NAME % number for number in range(4)]
    return np.array([np.fromfile(os.path.join(inputs, name), "<f4")
                     for name in sorted(os.listdir(inputs))]).reshape(4, BATCH, 128, 128, 3)


def test_inputs_are_prepared_as_in_test_mode(exported, faces):
    """8 images to fit on, 6 held out, the last one repeated twice to fill up the batch."""
    images = batches_of(exported[1]).reshape(16, 128, 128, 3)
    data = evaluate.load_data(evaluate.parse_args([f"--data_path={faces}"]))
    assert len(data.paths) == 14
    with tf.Graph().as_default(), tf.Session() as session:
        for row in (0, 7, 13):
            frame = data_input.read_frame(data.paths[row], 146)
            np.testing.assert_array_equal(images[row], session.run(data_input.cut(frame[None]))[0])
    np.testing.assert_array_equal(images[14:], images[[13, 13]])


def test_outputs_of_the_chip_give_the_error_that_evaluate_gives(
        exported, faces, checkpoint, tmp_path, capsys):
    """The .pb plays the chip, and writes as msame does: a folder named by the time."""
    folder = tmp_path / "om_output" / "20240101_10_00_00_0"
    folder.mkdir(parents=True)
    for number, images in enumerate(batches_of(exported[1])):
        found = export.run_frozen(exported[0], images)
        for place, name in enumerate(export.OUTPUTS):
            found[name].astype("<f4").tofile(str(folder / f"batch_{number:06d}_output_{place}.bin"))
    assert export.main([f"--check_output={tmp_path}/om_output", f"--data_path={faces}",
                        f"--batch_size={BATCH}", "--threads=1"]) == 0
    printed = capsys.readouterr().out
    assert evaluate.main([f"--data_path={faces}", f"--checkpoint={checkpoint}", "--threads=1",
                          f"--result_dir={tmp_path}/result", f"--batch_size={BATCH}"]) == 0
    expected = capsys.readouterr().out
    assert "data: stand-in faces" in printed and "K = 8" in printed
    rows = [[float(cell) for cell in re.findall(r"\d+\.\d+", line)]
            for text in (printed, expected) for line in text.splitlines()
            if line.startswith(("| no bias", "| bias", "| mean shape"))]
    assert len(rows) == 6
    np.testing.assert_allclose(rows[:3], rows[3:], atol=0.03)


@pytest.mark.parametrize("values, message", [
    ({}, "holds no batch_"),
    ({0: 4}, "holds 1 outputs, expected 2"),
    ({0: 4, 1: 3}, "holds 3 numbers"),
    ({0: 8, 1: 4}, "holds 4 numbers"),
    ({0: 0, 1: 0}, "holds 0 numbers"),
    ({0: np.array([1, 2, 3, np.nan]), 1: 4}, "not finite"),
])
def test_unusable_output_of_the_chip_is_refused(tmp_path, values, message):
    for number, content in values.items():
        content = np.ones(content) if isinstance(content, int) else content
        content.astype("<f4").tofile(str(tmp_path / f"batch_{number:06d}_output_0.bin"))
    with pytest.raises(InputError, match=message):
        export.read_outputs(str(tmp_path), 3, 2)


def test_the_newest_output_counts(tmp_path):
    for age, name in ((100, "old"), (50, "new")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "batch_000000_output_0.bin"
        np.full(2, age, "<f4").tofile(str(path))
        os.utime(str(path), (10 ** 9 - age, 10 ** 9 - age))
    assert export.read_outputs(str(tmp_path), 1, 1)[0, 0, 0] == 50


def test_a_folder_with_other_inputs_is_refused(exported, faces):
    args = export.parse_args([f"--data_path={faces}"])
    with pytest.raises(InputError, match="holds batch_.*already"):
        export.write_inputs(exported[1], evaluate.load_data(args), args)


@pytest.mark.parametrize("flag", ["--resume=True", "--batch_size=0", "--seed=-1", "--frozen=1"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        export.parse_args([flag])
    assert leaving.value.code == 2


# ---------------------------------------------------------------- checkpoints and disks


def test_no_checkpoint_names_the_training_command(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in .*ckpt: train with python train.py"):
        export.main([f"--output_dir={tmp_path}"])
    assert os.listdir(str(tmp_path)) == []


def test_checkpoint_of_another_k_names_the_variable(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"layer_6/conv/filter \[5, 5, 256, 8\], this model "
                                         r"\[5, 5, 256, 10\]"):
        export.main([f"--checkpoint={checkpoint}", f"--output={tmp_path}/a.pb", "--K=10"])
    assert os.listdir(str(tmp_path)) == []


def test_full_disk_keeps_the_earlier_pb(checkpoint, tmp_path):
    path = tmp_path / "landmarks.pb"
    path.write_bytes(b"earlier")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, before[1]))
    try:
        with pytest.raises(OSError, match="landmarks.pb cannot be written: File too large"):
            export.export(checkpoint, str(path), 8, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(str(tmp_path)) == ["landmarks.pb"]
    assert path.read_bytes() == b"earlier"
