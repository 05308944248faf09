"""The frozen generators: golden values, names, both TensorFlows, and what the chip sends back."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import adagan_gmm
import draws
import export
import metrics
import mixture
import sample
from golden_rules import assert_close, fill, find_seed, inputs, load
from made_runs import change_flags, make_run, save_component
from npu_session import InputError

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPOSITORY = os.path.dirname(SOURCE)
GOLDEN_CASES = {"unrolled_js_sgd": [], "unrolled_js_sgd_native": [],
                "toy_sgd": ["--unrolled=False"]}
OTHER_TENSORFLOW = 1e-6  # of the largest coordinate: kernels of two TensorFlows round differently
INFERENCE_OPERATIONS = {"Placeholder", "Const", "Identity", "MatMul", "Add", "AddV2", "BiasAdd",
                        "Tanh", "Relu", "Reshape"}
EVALUATION = "Evaluating: log_p={:.3f}, C={:.3f}"


def golden_run(folder, case):
    """Flags of a run in `folder` whose only component has the golden weights of a case."""
    settings = make_run(folder, [np.zeros((2, 2))], *GOLDEN_CASES[case])
    save_component(folder, settings, 0, lambda name, shape: fill(
        name, shape, find_seed(), native=case.endswith("native")))
    return settings


def random_generator(seed):
    """Values for save_component: a generator that spreads over the data's square."""
    random = np.random.RandomState(seed)
    return lambda _, shape: 1.5 * random.standard_normal(shape)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder (str) of a run with three components of 200 samples; do not change it."""
    folder = str(tmp_path_factory.mktemp("run"))
    settings = make_run(folder, [np.zeros((200, 2))] * 3, "--samples_per_component=200",
                        betas=[1, 0.5, 0.2])
    for number in range(3):
        save_component(folder, settings, number, random_generator(number))
    return folder


@pytest.fixture(scope="module")
def exported(made):
    """The same folder, its components exported to export/ with the default flags."""
    export.main(["--output_dir", made])
    return made


def pb(folder, number=0):
    """Path of an exported component."""
    return os.path.join(folder, "export", f"generator_{number:02d}.pb")


def noise_of(folder):
    """The exported noise [200, 5]."""
    return np.fromfile(os.path.join(folder, "export", "noise.bin"), "<f4").reshape(200, 5)


def read_graph_def(path):
    """GraphDef of a .pb."""
    with open(path, "rb") as file:
        return tf.GraphDef.FromString(file.read())


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("case", sorted(GOLDEN_CASES))
def test_golden_samples_through_the_frozen_graph(case, tmp_path):
    """init/G of gan_<case>.npz: the generator as filled, on batch 0 of the noise."""
    expected = load("gan_" + case)["init/G"]
    settings = golden_run(str(tmp_path), case)
    noise = inputs(find_seed()).noise[:len(expected)]
    path = str(tmp_path / "generator.pb")
    difference = export.export(str(tmp_path / "ckpt" / "component-00"), path, settings, noise)
    assert difference <= export.TOLERANCE
    assert_close(export.run_frozen(path, noise)[..., 0, 0], expected)


def test_every_component_has_its_own_values(exported):
    first, second, third = (export.run_frozen(pb(exported, number), noise_of(exported))
                            for number in range(3))
    assert first.shape == (200, 2, 1, 1) and first.dtype == np.float32
    assert np.all(first != second) and np.all(second != third)


def test_trained_run_gives_its_stored_samples_again(tmp_path):
    """adagan_gmm.py, then export.py: the .pb makes of the run's noise what the run stored."""
    folder, moved = str(tmp_path / "run"), str(tmp_path / "moved")
    assert not adagan_gmm.main(["--output_dir", folder, "--steps=2", "--max_steps=30",
                                "--toy_dataset_size=640", "--samples_per_component=150",
                                "--plots=False", "--mixture_c_epoch_num=1", "--threads=1"])
    shutil.move(folder, moved)
    export.main(["--output_dir", moved])
    settings = sample.run_settings(moved)
    drawn = draws.SeededDraws(settings.seed, settings)
    for number in range(2):
        drawn.go_on(number)
        stored = np.load(os.path.join(moved, f"samples0{number}.npy"))
        assert_close(export.run_frozen(pb(moved, number), drawn.component_noise(150)), stored,
                     OTHER_TENSORFLOW)


def test_checkpoints_may_lie_elsewhere(exported, tmp_path):
    shutil.copytree(exported, str(tmp_path / "run"))
    shutil.move(str(tmp_path / "run" / "ckpt"), str(tmp_path / "checkpoints"))
    export.main([f"--output_dir={tmp_path / 'run'}", f"--ckpt_dir={tmp_path / 'checkpoints'}",
                 f"--export_dir={tmp_path / 'out'}", "--component=1"])
    with open(pb(exported, 1), "rb") as first, open(
            str(tmp_path / "out" / "generator_01.pb"), "rb") as second:
        assert first.read() == second.read()


def test_difference_above_the_tolerance_fails_and_keeps_the_earlier_pb(
        made, tmp_path, monkeypatch):
    path = tmp_path / "generator.pb"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(export, "largest_difference", lambda *_: float("nan"))
    with pytest.raises(FloatingPointError, match="differs from .*component-00 by nan"):
        export.export(os.path.join(made, "ckpt", "component-00"), str(path),
                      sample.run_settings(made), np.zeros((3, 5), np.float32))
    assert os.listdir(str(tmp_path)) == ["generator.pb"]
    assert path.read_bytes() == b"earlier"


def test_largest_difference_is_relative_and_sees_nan():
    found, expected = np.array([[4.5, -2]]), np.array([[5., -2]])
    assert export.largest_difference(found, expected) == 0.1
    assert np.isnan(export.largest_difference(found * np.nan, expected))


# ---------------------------------------------------------------- the graph


def test_graph_holds_only_the_generator(exported):
    graph_def = read_graph_def(pb(exported))
    names = [node.name for node in graph_def.node]
    assert {node.op for node in graph_def.node} <= INFERENCE_OPERATIONS
    assert names[-1] == "GENERATOR/output" and len(names) < 40
    source, = [node for node in graph_def.node if node.op == "Placeholder"]
    assert source.name == "noise_ph"
    assert [size.size for size in source.attr["shape"].shape.dim] == [200, 5]
    constants = {name for name in names if name.endswith(("/W", "/b"))}
    assert constants == {f"GENERATOR/h{layer}_lin/{kind}" for layer in range(3) for kind in "Wb"}


def test_shape_of_the_output_is_fixed(exported):
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(read_graph_def(pb(exported)), name="")
        assert graph.get_tensor_by_name("GENERATOR/output:0").shape.as_list() == [200, 2, 1, 1]


def test_the_same_export_twice_writes_the_same_bytes(made, tmp_path):
    for name in ("a", "b"):
        export.main(["--output_dir", made, "--export_dir", str(tmp_path / name)])
    for name in os.listdir(str(tmp_path / "a")):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


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


def test_the_other_tensorflow_loads_our_pb_and_exports_the_same(exported, tmp_path):
    """One process of it: runs our .pb, and exports our checkpoint itself."""
    found, folder = str(tmp_path / "found.npy"), str(tmp_path / "other")
    done = subprocess.run(
        [other_python(), "-c", "import sys; sys.path.insert(0, sys.argv[1])\n"
         "import numpy, export\n"
         "noise = numpy.fromfile(sys.argv[3], '<f4').reshape(200, 5)\n"
         "numpy.save(sys.argv[4], export.run_frozen(sys.argv[2], noise))\n"
         "export.main(['--output_dir', sys.argv[5], '--export_dir', sys.argv[6]])\n",
         SOURCE, pb(exported), os.path.join(exported, "export", "noise.bin"), found, exported,
         folder], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = export.run_frozen(pb(exported), noise_of(exported))
    assert_close(np.load(found), expected, OTHER_TENSORFLOW)
    theirs = os.path.join(folder, "generator_00.pb")
    assert_close(export.run_frozen(theirs, noise_of(exported)), expected, OTHER_TENSORFLOW)


# ---------------------------------------------------------------- the program


def test_program_exports_and_says_how_to_go_on(run_program, made, tmp_path):
    folder = str(tmp_path / "out")
    done = run_program("export.py", "--output_dir", made, "--export_dir", folder,
                       "--component=1", "--batch_size=40", "--soc_version=Ascend310P3", "--seed=4")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(folder)) == ["generator_01.pb", "noise.bin"]
    assert float(re.search("largest difference ([0-9.e-]+)", done.stdout).group(1)) <= 1e-6
    assert f"input  noise_ph:0  float32 [40, 5]  {folder}/noise.bin" in done.stdout
    assert "output GENERATOR/output:0  float32 [40, 2, 1, 1]" in done.stdout
    assert (f"atc --model={folder}/generator_01.pb --framework=3 --output={folder}/generator_01 "
            '--soc_version=Ascend310P3 --input_shape="noise_ph:40,5" '
            '--out_nodes="GENERATOR/output:0"') in done.stdout
    assert (f"./msame --model {folder}/generator_01.om --input {folder}/noise.bin "
            f"--output {folder}/generator_01_output --outfmt BIN --loop 1") in done.stdout
    noise = np.fromfile(os.path.join(folder, "noise.bin"), "<f4").reshape(40, 5)
    np.testing.assert_array_equal(noise, np.random.RandomState(4).standard_normal(
        (40, 5)).astype(np.float32))


def test_noise_has_the_runs_distribution(made):
    settings = sample.run_settings(made)
    settings.latent_space_distr = "uniform"
    noise = export.make_noise(settings, 1000, 0)
    assert noise.shape == (1000, 5) and noise.dtype == np.float32
    assert -1 <= noise.min() < -0.9 and 0.9 < noise.max() < 1


def chip_outputs(folder, target, change=lambda samples: samples):
    """Paths of .bin files with what the .pb files make of the noise, changed."""
    paths = []
    for number in range(3):
        samples = change(export.run_frozen(pb(folder, number), noise_of(folder)))
        paths.append(os.path.join(str(target), f"output_{number}.bin"))
        samples.astype("<f4").tofile(paths[-1])
    return paths


def test_output_of_the_chip_is_evaluated_as_in_training(exported, tmp_path, capsys):
    paths = chip_outputs(exported, tmp_path)
    assert not export.main(["--output_dir", exported, "--seed=3", "--check_output"] + paths)
    text = capsys.readouterr().out
    assert len(re.findall(r"component \d, largest difference from the .pb 0\n", text)) == 3
    mixed, random = mixture.Mixture(), np.random.RandomState(3)
    for path, beta in zip(paths, [1, 0.5, 0.2]):
        mixed.add(np.fromfile(path, "<f4").reshape(200, 2, 1, 1), beta)
    data = sample.training_data(sample.run_settings(exported))
    found = metrics.evaluate(data.points[:500], mixed.sample(1000, random),
                             mixed.sample(500, random))
    assert EVALUATION.format(found.log_p, found.C) in text
    assert sample.truth_line(mixed.sample(10000, random), data) in text
    assert os.path.getsize(os.path.join(exported, "export", "output_samples.png")) > 5e3


def test_rounding_of_the_chip_is_measured(exported, tmp_path, capsys):
    """Half precision has 11 bits; numbers in text are read too, and one component alone."""
    path, = chip_outputs(exported, tmp_path, lambda x: x.astype(np.float16))[1:2]
    text = str(tmp_path / "output.txt")
    np.savetxt(text, np.fromfile(path, "<f4").reshape(200, 2), "%.9g")
    for name in (path, text):
        export.main(["--output_dir", exported, "--component=1", "--check_output", name])
        line = capsys.readouterr().out
        difference = float(re.search("component 1, largest difference from the .pb (.*)\n",
                                     line).group(1))
        assert 1e-5 < difference < 1e-3


@pytest.mark.parametrize("name, content, message", [
    ("none.bin", None, "cannot be read"),
    ("words.txt", "0.1 zero 0.3", "cannot be read"),
    ("short.txt", "0.1 0.2 0.3", "3 numbers, expected 200 x 2"),
    ("nan.txt", "nan " * 400, "not finite"),
], ids=["missing", "words", "short", "nan"])
def test_unusable_output_of_the_chip_is_refused(exported, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        export.main(["--output_dir", exported, "--check_output", str(path)])


def test_more_outputs_than_components(exported, tmp_path):
    paths = chip_outputs(exported, tmp_path)
    with pytest.raises(InputError, match="4 files for 3 components"):
        export.main(["--output_dir", exported, "--check_output"] + paths + paths[:1])
    with pytest.raises(InputError, match="2 files for 1 components"):
        export.main(["--output_dir", exported, "--component=0", "--check_output"] + paths[:2])


def test_output_without_an_export_to_compare_with(made, exported, tmp_path):
    paths = chip_outputs(exported, tmp_path)
    with pytest.raises(InputError, match="noise.bin cannot be read"):
        export.main(["--output_dir", made, "--export_dir", str(tmp_path), "--check_output"] + paths)
    shutil.copy(os.path.join(exported, "export", "noise.bin"), str(tmp_path))
    with pytest.raises(InputError, match="no .*generator_00.pb to compare with"):
        export.main(["--output_dir", made, "--export_dir", str(tmp_path), "--check_output"] + paths)


# ---------------------------------------------------------------- folders and disks


@pytest.mark.parametrize("flag", ["--resume=True", "--batch_size=0", "--component=-1",
                                  "--seed=-1", "--frozen=1"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        export.parse_args([flag])
    assert leaving.value.code == 2


def test_folder_without_a_run(tmp_path):
    with pytest.raises(InputError, match="holds no config.json: give the folder of a run"):
        export.main(["--output_dir", str(tmp_path)])
    assert os.listdir(str(tmp_path)) == []


def test_component_that_there_is_not(made):
    with pytest.raises(InputError, match="--component=3: .* has components 0 to 2"):
        export.main(["--output_dir", made, "--component=3"])


@pytest.fixture
def own(made, tmp_path):
    """A copy of the run to spoil."""
    folder = str(tmp_path / "own")
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("export"))
    return folder


def test_checkpoint_of_another_shape_names_the_variable(own):
    change_flags(own, latent_space_dim=7)
    with pytest.raises(InputError, match=r"component-00 has GENERATOR/h0_lin/W \[5, 16\], .*\[7, "):
        export.main(["--output_dir", own])
    assert not os.path.exists(pb(own))


def test_damaged_and_missing_checkpoints_are_named(own):
    data = os.path.join(own, "ckpt", "component-01.data-00000-of-00001")
    with open(data, "r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match="component-01 cannot be read"):
        export.main(["--output_dir", own])
    assert os.path.isfile(pb(own)) and not os.path.exists(pb(own, 1))
    os.remove(os.path.join(own, "ckpt", "component-01.index"))
    with pytest.raises(InputError, match="component-01 cannot be read"):
        export.main(["--output_dir", own, "--component=1"])
    export.main(["--output_dir", own, "--component=2"])
    assert os.path.isfile(pb(own, 2))


@pytest.mark.parametrize("flags, name", [
    (["--batch_size=2"], "generator_00.pb"), (["--batch_size=1000"], "noise.bin")])
def test_full_disk_keeps_the_earlier_file(own, flags, name):
    """The .pb has about 4000 bytes, the noise of 1000 samples 20000."""
    folder = os.path.join(own, "export")
    os.makedirs(folder)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(b"earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = 1000 if name.endswith(".pb") else 10000
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{name} cannot be written: File too large"):
            export.main(["--output_dir", own] + flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with open(os.path.join(folder, name), "rb") as file:
        assert file.read() == b"earlier"
    assert not [found for found in os.listdir(folder) if found.endswith(".tmp")]


def test_folder_that_cannot_be_written(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        export.main(["--output_dir", made, "--export_dir", str(tmp_path / "file" / "x")])
