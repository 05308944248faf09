"""The frozen .pb: golden values through it, names, both TensorFlows; the files for msame."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_generator
import export
import masf_func
import npu_session
from data_generator import CLASSES, DOMAINS, SIDE
from golden_rules import FILL, IMG, load
from npu_session import InputError
from training_runs import narrow_network, small_files

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(HERE)
REPOSITORY = os.path.dirname(SOURCE)
OTHER_TENSORFLOW = 1e-5  # of the largest logit: kernels of two TensorFlows round differently
INFERENCE_OPERATIONS = {"Placeholder", "Const", "Identity", "Conv2D", "Split", "ConcatV2",
                        "BiasAdd", "Relu", "LRN", "MaxPool", "Reshape", "MatMul", "Add", "AddV2"}
NARROW = ("import sys, types; sys.path[:0] = sys.argv[1:3]; import training_runs; "
          "training_runs.narrow_network(types.SimpleNamespace(setattr=setattr)); import export; ")


def save_checkpoint(folder, name="model1", changes=None):
    """A checkpoint of the network as it starts; changes: {variable: array} instead."""
    with npu_session.new_graph().as_default():
        variables = masf_func.create_variables(masf_func.random_start(3))
        checkpoints = npu_session.Checkpoints(str(folder), list(variables.values()))
        initialize = tf.global_variables_initializer()
        with tf.Session() as session:
            session.run(initialize)
            for variable, value in (changes or {}).items():
                variables[variable].load(value, session)
            checkpoints.save(session, name)
    return str(folder)


@pytest.fixture
def narrow(monkeypatch):
    """A narrow network: a .pb takes 0.3 MB, not 228."""
    narrow_network(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder with a checkpoint of the narrow network."""
    with pytest.MonkeyPatch.context() as patch:
        narrow_network(patch)
        return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def images_of(count, seed=0):
    """float32 [count, 227, 227, 3]."""
    draw = np.random.RandomState(seed).uniform(*export.RANGE, size=(count, SIDE, SIDE, 3))
    return draw.astype(np.float32)


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
                          timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# ---------------------------------------------------------------- the graph


def test_golden_logits_through_the_frozen_graph(tmp_path):
    """The whole network with the weights FILL: logits of forward.npz, atol 2e-5."""
    golden, settings = load("forward"), load("steps_default")
    seed = int(golden["seed"])
    shapes = masf_func.variable_shapes()
    changes = {name[len("model/"):]: FILL(name, shapes[name[len("model/"):]], scale, seed)
               for name, scale in zip(map(str, settings["var_names"]), settings["fill_scale"])}
    folder, path = str(tmp_path / "checkpoints"), str(tmp_path / "masf.pb")
    os.mkdir(folder)
    try:
        save_checkpoint(folder, changes=changes)
        count = len(golden["logits"])
        export.export(folder, path, count)
        logits, = export.frozen_logits(path, [IMG("test", count, seed)])
        np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=2e-5)
        assert os.path.getsize(path) > 2e8
    finally:
        shutil.rmtree(str(tmp_path))  # half a gigabyte


@pytest.mark.usefixtures("narrow")
def test_one_input_one_output_and_operations_of_inference_only(checkpoint, tmp_path):
    path = str(tmp_path / "masf.pb")
    restored, difference = export.export(checkpoint, path, 5)
    assert restored.endswith("model1") and difference <= 1e-6
    graph_def = read_graph_def(path)
    placeholder, = [node for node in graph_def.node if node.op == "Placeholder"]
    assert placeholder.name == "input"
    assert [size.size for size in placeholder.attr["shape"].shape.dim] == [5, SIDE, SIDE, 3]
    assert graph_def.node[-1].name == "out"
    assert {node.op for node in graph_def.node} <= INFERENCE_OPERATIONS
    assert not [node.name for node in graph_def.node if "metric" in node.name]
    logits, = export.frozen_logits(path, [images_of(5)])
    assert logits.shape == (5, 7) and logits.dtype == np.float32
    products = [node for node in graph_def.node if node.op == "MatMul"]
    assert len(products) == 3 and all(set(node.attr) <= {"T"} for node in products)


@pytest.mark.usefixtures("narrow")
def test_both_tensorflows_read_each_other_s_pb(checkpoint, tmp_path):
    ours, theirs, folder = str(tmp_path / "ours.pb"), str(tmp_path / "theirs.pb"), str(tmp_path)
    export.export(checkpoint, ours, 3)
    np.save(os.path.join(folder, "images.npy"), images_of(3))
    run_other("-c", NARROW + "import numpy as np; folder, checkpoint = sys.argv[3:]; "
                             "found, = export.frozen_logits(folder + '/ours.pb', "
                             "[np.load(folder + '/images.npy')]); "
                             "np.save(folder + '/logits.npy', found); "
                             "export.export(checkpoint, folder + '/theirs.pb', 3)",
              HERE, SOURCE, folder, checkpoint)
    expected, = export.frozen_logits(ours, [images_of(3)])
    for found in (np.load(os.path.join(folder, "logits.npy")),
                  export.frozen_logits(theirs, [images_of(3)])[0]):
        assert export.relative_difference(found, expected) < OTHER_TENSORFLOW


@pytest.mark.usefixtures("narrow")
def test_difference_above_the_tolerance_fails_and_keeps_the_earlier_pb(checkpoint, tmp_path,
                                                                       monkeypatch):
    path = tmp_path / "masf.pb"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(export, "relative_difference", lambda *_: float("nan"))
    with pytest.raises(FloatingPointError, match="differ from those of .*model1 by nan"):
        export.export(checkpoint, str(path), 1)
    assert os.listdir(str(tmp_path)) == ["masf.pb"] and path.read_bytes() == b"earlier"


def test_relative_difference_by_hand():
    expected = np.array([[4.0, -8.0]])
    assert export.relative_difference(expected + [[0, 2]], expected) == 0.25
    assert np.isnan(export.relative_difference(expected + np.nan, expected))
    assert export.relative_difference(0 * expected, 0 * expected) == 0


def test_checkpoint_of_another_network_names_the_variable(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"conv1/weights \[11, 11, 3, 16\], this model \[1.*96\]"):
        export.export(checkpoint, str(tmp_path / "masf.pb"), 1)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.usefixtures("narrow")
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    for name in ("model0", "model9"):
        save_checkpoint(tmp_path, name)
    data = tmp_path / "model9.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    restored, _ = export.export(str(tmp_path), str(tmp_path / "masf.pb"), 1)
    assert restored.endswith("model0") and "model9 is damaged" in capsys.readouterr().err


# ---------------------------------------------------------------- files for msame


@pytest.fixture(scope="module")
def sketches(small_data):
    """Images of the stand-in's sketches, eleven of them."""
    lists = data_generator.read_lists(os.path.join(small_data, "filelist"), ["sketch"],
                                      dataroot=os.path.join(small_data, "kfold"))["sketch"]
    rows = np.arange(11) * len(lists.paths) // 11
    return lists._replace(paths=[lists.paths[row] for row in rows], labels=lists.labels[rows])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bin_files_hold_what_training_feeds_the_network(sketches, tmp_path, batch_size):
    paths = export.write_inputs(str(tmp_path), sketches, batch_size)
    assert [os.path.basename(path) for path in paths[:2]] == ["00000.bin", "00001.bin"]
    assert len(paths) == -(-11 // batch_size)
    found = np.concatenate([np.fromfile(path, "<f4").reshape(batch_size, SIDE, SIDE, 3)
                            for path in paths])
    for number, path in enumerate(sketches.paths):
        with tf.Graph().as_default(), tf.Session() as session:
            pixels = session.run(data_generator.preprocess(data_generator.decode(path, False)))
        np.testing.assert_array_equal(found[number], pixels)
    with open(os.path.join(str(tmp_path), "inputs.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sketches.paths
    assert [int(row["label"]) for row in rows] == sketches.labels.tolist()
    assert [int(row["position"]) for row in rows] == [n % batch_size for n in range(11)]
    assert export.read_table(str(tmp_path))["00000.bin"] == sketches.labels[:batch_size].tolist()


def write_table(folder, labels_by_file):
    """The table that write_inputs would write."""
    with open(os.path.join(str(folder), "inputs.csv"), "w") as file:
        file.write("file,position,path,label\n")
        for name, labels in labels_by_file.items():
            file.writelines(f"{name},{n},x.png,{label}\n" for n, label in enumerate(labels))


def check(bin_dir, outputs):
    """Exit code of the program that reads msame's outputs."""
    return export.main([f"--check_output={outputs}", f"--bin_dir={bin_dir}"])


def test_accuracy_of_what_msame_wrote(tmp_path, capsys):
    """Two files of two images, the last one filled up; names and formats as msame's."""
    write_table(tmp_path, {"00000.bin": [0, 6], "00001.bin": [6]})
    folder = tmp_path / "output" / "2026"
    folder.mkdir(parents=True)
    logits = np.zeros((2, 2, 7), np.float32)
    logits[0, 0, 0] = logits[0, 1, 6] = logits[1, 0, 3] = logits[1, 1, 6] = 1
    logits[0].tofile(str(folder / "00000_output_0.bin"))
    np.savetxt(str(folder / "00001_output_0.txt"), logits[1])
    assert check(tmp_path, tmp_path / "output") == 0
    printed = capsys.readouterr().out
    assert re.search(r"accuracy of .*output 0.666667 \(3 images\)", printed)
    assert "per class: dog 1.0000, elephant nan" in printed and "person 0.5000" in printed


@pytest.mark.parametrize("name, content, message", [
    ("00001_output_0.bin", None, "no output for 00000.bin below .*: expected 00000_output_0.bin"),
    ("00000_output_0.txt", "0.1 zero", "cannot be read as msame's output"),
    ("00000_output_0.txt", "1 2 3", "holds 3 numbers, expected 7 for each of 2 images"),
    ("00000_output_0.txt", "1 2 3 4 5 6 7", "holds 7 numbers, expected 7 for each of 2 images"),
    ("00000_output_0.txt", "nan " * 14, "not finite"),
])
def test_unusable_output_is_refused(tmp_path, name, content, message):
    write_table(tmp_path, {"00000.bin": [0, 6]})
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / name).write_text(content or "")
    with pytest.raises(InputError, match=message):
        check(tmp_path, tmp_path / "output")


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "file,position,path,label\n",
                                     "file,position,path,label\n00000.bin,0,x,dog\n"])
def test_folder_without_a_usable_table_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "inputs.csv").write_text(content)
    with pytest.raises(InputError, match="inputs.csv (cannot be read|lists no images)"):
        check(tmp_path, tmp_path)


# ---------------------------------------------------------------- the program


@pytest.mark.usefixtures("narrow")
def test_program_exports_writes_inputs_and_says_how_to_go_on(checkpoint, small_data, tmp_path,
                                                             capsys):
    path, bins = str(tmp_path / "out" / "masf.pb"), str(tmp_path / "in")
    data = [f"--dataroot={small_data}/kfold", f"--filelist_root={small_data}/filelist"]
    assert export.main([f"--ckpt_dir={checkpoint}", f"--output={path}", f"--bin_dir={bins}",
                        "--batch_size=4", "--images=10", "--target_domain=photo",
                        "--threads=1"] + data) == 0
    printed = capsys.readouterr().out
    assert "input  input:0  float32 [4, 227, 227, 3]\noutput out:0  float32 [4, 7]" in printed
    assert "data: stand-in for PACS, photo" in printed
    assert (f"atc --model={path} --framework=3 --output={path[:-3]} --soc_version=Ascend310 "
            '--input_shape="input:4,227,227,3" --out_nodes="out:0"') in printed
    assert (f"./msame --model {path[:-3]}.om --input {bins}/bins --output {bins}/output "
            "--outfmt BIN --loop 1") in printed
    accuracy = re.search(r"accuracy of .*masf.pb ([0-9.]+) \(10 images\)", printed).group(1)
    folder = os.path.join(bins, "output", "now")
    os.makedirs(folder)
    pixels = [np.fromfile(os.path.join(bins, "bins", name), "<f4").reshape(4, SIDE, SIDE, 3)
              for name in sorted(os.listdir(os.path.join(bins, "bins")))]
    for number, logits in enumerate(export.frozen_logits(path, pixels)):
        logits.tofile(os.path.join(folder, f"{number:05d}_output_0.bin"))
    assert check(bins, os.path.join(bins, "output")) == 0
    assert f" {accuracy} (10 images)" in capsys.readouterr().out
    labels = np.concatenate(list(export.read_table(bins).values()))
    assert len(set(labels)) == len(CLASSES)  # thinned evenly: every class is there


@pytest.mark.usefixtures("narrow")
def test_no_checkpoint_names_the_training_program(tmp_path, capsys):
    assert npu_session.run_main(export.main, [f"--ckpt_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert re.search("error: no checkpoint in .*: train with main.py", error)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.usefixtures("narrow")
def test_missing_list_is_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(InputError, match="photo.txt cannot be read"):
        export.main([f"--ckpt_dir={checkpoint}", f"--output={tmp_path}/masf.pb",
                     f"--bin_dir={tmp_path}/in", "--target_domain=photo",
                     f"--filelist_root={tmp_path}"])
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.usefixtures("narrow")
def test_full_disk_keeps_the_earlier_pb(checkpoint, tmp_path, run_program):
    path = tmp_path / "masf.pb"
    path.write_bytes(b"earlier")
    with small_files(2 ** 16):
        code, _, err = run_program("export.py", f"--ckpt_dir={checkpoint}", f"--output={path}")
    assert code == 1
    assert re.search("error: .*File too large", err) and "Traceback" not in err
    assert os.listdir(str(tmp_path)) == ["masf.pb"] and path.read_bytes() == b"earlier"


@pytest.mark.parametrize("flags", [["--resume=True"], ["--ckpt_dir=x", "--batch_size=0"], [],
                                   ["--check_output=x"], ["--ckpt_dir=x", "--target_domain=y"]])
def test_wrong_flags_are_refused(flags):
    with pytest.raises(SystemExit) as leaving:
        export.parse_args(flags)
    assert leaving.value.code == 2


def test_every_domain_can_be_the_target():
    for domain in DOMAINS:
        assert export.parse_args(["--ckpt_dir=x", f"--target_domain={domain}"]).images is None
