"""The recovery program: every flag, what it saves and prints, lazy runs, bad input, properties.

Data: the small stand-in set. VAE: trained on it for some seconds, good enough for the properties.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import glob
import json
import os
import pickle
import re
import shutil

import matplotlib.image
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import compressed_sensing
import data_input
import e2e_def
import estimators
import figures
import main as train_vae
import measurements
import metrics
import model_def
import npu_session
import recovery_store
import train_e2e
from npu_session import InputError

IMAGES, M = 7, 20  # in batches of 3: the last one is incomplete
SEARCH = ["--max-update-iter=8", "--num-random-restarts=2", "--learning-rate=0.1"]
PARAMETERS = "0.0_1.0_0.1_adam_0.1_0.9_False_8_2"  # the folder that SEARCH leads to


@pytest.fixture(scope="module")
def vae_dir(small_data, tmp_path_factory):
    """Folder (str) with a VAE trained on the small stand-in; mean-z test error about 0.025."""
    folder = str(tmp_path_factory.mktemp("vae"))
    assert train_vae.main([
        "--data_dir=" + small_data, "--ckpt_dir=" + folder, "--output_dir=" + folder, "--epochs=60",
        "--learning_rate=0.002", "--threads=1", "--summary_epoch=100", "--eval_epoch=100",
        "--sample_epoch=100", "--ckpt_epoch=100"]) == 0
    return folder


@pytest.fixture(scope="module")
def e2e_dir(small_data, tmp_path_factory):
    """Output folder of train_e2e.py: a learned and a fixed matrix, m = 20, a few steps each."""
    folder = str(tmp_path_factory.mktemp("e2e"))
    for fixed in (False, True):
        assert train_e2e.main([
            "--data_dir=" + small_data, "--output_dir=" + folder, f"--num_measurements={M}",
            f"--fixed_matrix={fixed}", "--max_steps=300", "--threads=1"]) == 0
    return folder


@pytest.fixture
def flags(small_data, vae_dir, tmp_path):
    """Function (*more flags) -> the list of flags of a small recovery of IMAGES images."""
    def build(*more):
        return ["--data-dir", small_data, "--pretrained-model-dir", vae_dir, "--threads=1",
                f"--output-dir={tmp_path}", f"--num-input-images={IMAGES}", "--batch-size=3",
                "--model-types", "vae", f"--num-measurements={M}", "--print-iter=0",
                *SEARCH, *map(str, more)]
    return build


@pytest.fixture
def run(flags, capsys):
    """Function (*more flags) -> (exit code, stdout, stderr) of the program."""
    def call(*more):
        capsys.readouterr()
        code = npu_session.run_main(compressed_sensing.main, flags(*more))
        return (code,) + tuple(capsys.readouterr())
    return call


@pytest.fixture
def recovered(flags):
    """Function (*more flags) -> (parsed flags, images [N, 784], x_hat [N, 784], y of batch 0)."""
    def call(*more):
        args = compressed_sensing.parse_args(flags(*more))
        images = compressed_sensing.input_images(args, compressed_sensing.load_data(args))
        batches = compressed_sensing.make_batches(args, images)
        parts = compressed_sensing.recover(args, batches)[args.model_types[-1]]
        return args, images, np.concatenate([part.x_hat for part in parts]), batches[0].y
    return call


def result_folder(tmp_path, model="vae", parameters=PARAMETERS, detail="gaussian", noise="0.1",
                  m=M, input_type="full-input"):
    return os.path.join(str(tmp_path), "estimated", "mnist", input_type, detail, noise, str(m),
                        model, parameters)


def losses(folder):
    """The two dicts of a result folder."""
    content = []
    for name in ("measurement_losses.pkl", "l2_losses.pkl"):
        with open(os.path.join(folder, name), "rb") as file:
            content.append(pickle.load(file))
    return content


def assert_refused(outcome, *words, code=2):
    assert outcome[0] == code, outcome
    assert "Traceback" not in outcome[2] and outcome[2].startswith("error: ")
    assert outcome[2].count("\n") == 1
    for word in words:
        assert word in outcome[2]


# ---------------------------------------------------------------- flags


# Which test asserts a flag's effect.
FLAG_TESTS = {
    "test_missing_vae_names_the_training_command": ["pretrained_model_dir"],
    "test_end_to_end_pathway": ["e2e_dir"],
    "test_modelarts_addresses_take_the_place_of_folders": ["data_url", "train_url"],
    "test_saves_upstreams_files": ["data_dir", "output_dir", "save_images", "save_stats",
                                   "print_stats", "dataset"],
    "test_flag_changes_the_result": [
        "batch_size", "noise_std", "num_measurements", "mloss1_weight", "mloss2_weight",
        "zprior_weight", "optimizer_type", "learning_rate", "momentum", "max_update_iter",
        "num_random_restarts", "decay_lr", "encoder_start", "lmbd", "sparse_weight", "omp_k",
        "seed", "model_types"],
    "test_input_types": ["input_type", "num_input_images"],
    "test_measurement_types": ["measurement_type", "inpaint_size", "superres_factor"],
    "test_lazy_run_skips_and_not_lazy_recovers_again": ["not_lazy"],
    "test_resume_demands_or_refuses_results": ["resume"],
    "test_checkpoint_iter": ["checkpoint_iter"],
    "test_image_matrix": ["image_matrix"],
    "test_gif_frames_of_all_batches": ["gif", "gif_iter", "gif_dir"],
    "test_progress_lines": ["print_iter"],
    "test_batches_per_run_and_loop_length_do_not_change_results": ["batches_per_run",
                                                                   "iterations_per_loop"],
    "test_platform_flags_reach_the_session": ["threads", "precision_mode", "over_dump",
                                              "data_dump_flag", "data_dump_step", "profiling"],
}


def test_every_flag_has_a_test():
    assert set(FLAG_TESTS) <= set(globals())
    tested = [flag for names in FLAG_TESTS.values() for flag in names]
    assert sorted(tested) == sorted(vars(compressed_sensing.parse_args([])))


def test_defaults_are_the_mnist_experiments():
    args = compressed_sensing.parse_args([])
    assert (args.input_type, args.measurement_type, args.num_measurements) == (
        "full-input", "gaussian", 200)
    assert (args.noise_std, args.mloss1_weight, args.mloss2_weight, args.zprior_weight) == (
        0.1, 0.0, 1.0, 0.1)
    assert (args.optimizer_type, args.learning_rate, args.momentum, args.max_update_iter,
            args.num_random_restarts, args.decay_lr) == ("adam", 0.01, 0.9, 1000, 10, False)
    assert (args.lmbd, args.num_input_images, args.precision_mode) == (
        0.1, 10, "must_keep_origin_dtype")


def test_both_spellings_are_the_same():
    words = ["--num-measurements=30", "--save-images", "--zprior-weight", "0.5", "--omp-k=4",
             "--input-type=random_test", "--gif-dir=a-b", "--gif"]
    args = compressed_sensing.parse_args(words)
    assert args == compressed_sensing.parse_args(
        [re.sub("^--[^=]*", lambda name: "--" + name.group()[2:].replace("-", "_"), word)
         for word in words])
    assert (args.num_measurements, args.save_images, args.zprior_weight, args.omp_k) == (
        30, True, 0.5, 4)
    assert (args.input_type, args.gif_dir) == ("random-test", "a-b")  # values keep their hyphens


def test_help_and_unknown_flag(run_program):
    shown = run_program("compressed_sensing.py", "--help")
    assert shown.returncode == 0
    for name in vars(compressed_sensing.parse_args([])):
        assert "--" + name in shown.stdout
    unknown = run_program("compressed_sensing.py", "--no-such-flag")
    assert unknown.returncode == 2 and "no_such_flag" in unknown.stderr


@pytest.mark.parametrize("changed", [
    ["--batch-size=7"], ["--noise-std=1"], ["--num-measurements=21"], ["--mloss1-weight=1"],
    ["--mloss2-weight=0.2"], ["--zprior-weight=1"], ["--learning-rate=0.2"],
    ["--max-update-iter=9"], ["--num-random-restarts=4"], ["--encoder-start"], ["--seed=2"],
    ["--model-types", "lasso"], ["--optimizer-type=sgd"]], ids=" ".join)
def test_flag_changes_the_result(recovered, changed, base_result):
    """Flags of the search in general; those of one method only: see the next tests."""
    x_hat = recovered(*changed)[2]
    assert x_hat.shape == base_result.shape and np.abs(x_hat - base_result).max() > 1e-4


@pytest.fixture
def base_result(recovered, _cache={}):  # noqa: B006
    if not _cache:
        _cache["x_hat"] = recovered()[2]
    return _cache["x_hat"]


@pytest.mark.parametrize("fixed, first, second", [
    (["--optimizer-type=momentum"], ["--momentum=0.9"], ["--momentum=0.1"]),
    (["--max-update-iter=55"], [], ["--decay-lr"]),
    (["--model-types", "lasso"], ["--lmbd=0.1"], ["--lmbd=1"]),
    (["--model-types", "vae", "vae-sparse"], ["--sparse-weight=0.1"], ["--sparse-weight=0.01"]),
    (["--model-types", "omp"], ["--omp-k=2"], ["--omp-k=5"])],
    ids=["momentum", "decay_lr", "lmbd", "sparse_weight", "omp_k"])
def test_flag_of_one_method_changes_its_result(recovered, fixed, first, second):
    assert np.abs(recovered(*fixed, *first)[2] - recovered(*fixed, *second)[2]).max() > 1e-4


def test_omp_takes_k_pixels(recovered):
    x_hat = recovered("--model-types", "omp", "--omp-k=3")[2]
    assert ((x_hat != 0).sum(1) <= 3).all()
    assert compressed_sensing.parse_args(["--num-measurements=40"]).omp_k == 10


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "momentum", "sgd", "adagrad"])
def test_every_optimizer_recovers(recovered, kind):
    _, images, x_hat, _ = recovered("--optimizer-type", kind, "--learning-rate=0.01")
    assert np.isfinite(x_hat).all() and x_hat.shape == images.shape


def test_platform_flags_reach_the_session(flags, monkeypatch, tmp_path):
    args = compressed_sensing.parse_args(flags(
        "--precision-mode=force_fp32", "--over-dump=True", "--data-dump-flag=True",
        "--data-dump-step=3", "--profiling=True", "--threads=2", "--iterations-per-loop=7"))
    assert estimators.session_config(args).intra_op_parallelism_threads == 2
    seen = []
    monkeypatch.setattr(npu_session, "session_config",
                        lambda *given, **named: seen.append((given, named)))
    estimators.session_config(args)
    (given, named), = seen
    assert given == (args, str(tmp_path)) and named == {"iterations_per_loop": 7}
    assert (args.precision_mode, args.over_dump, args.data_dump_flag, args.data_dump_step,
            args.profiling) == ("force_fp32", True, True, "3", True)


def test_modelarts_addresses_take_the_place_of_folders(flags, small_data, tmp_path):
    assert npu_session.run_main(compressed_sensing.main, flags(
        "--model-types", "lasso", "--save-stats", "--data-dir=/nowhere",
        "--data_url", small_data, "--train_url", tmp_path / "elsewhere")) == 0
    assert len(losses(result_folder(tmp_path / "elsewhere", "lasso", "0.1"))[0]) == IMAGES


# ---------------------------------------------------------------- what is saved and printed


def test_saves_upstreams_files(run, tmp_path, small_data):
    """Paths, pickles, pictures, and statistics that are those of the pickles."""
    code, out, _ = run("--model-types", "lasso", "vae", "--save-images", "--save-stats",
                       "--print-stats")
    assert code == 0 and "data: stand-in digits, 7 images, m = 20" in out
    for model, parameters in (("lasso", "0.1"), ("vae", PARAMETERS)):
        folder = result_folder(tmp_path, model, parameters)
        measured, l2 = losses(folder)
        assert sorted(measured) == sorted(l2) == list(range(IMAGES))
        assert all(type(key) is int and type(l2[key]) is float for key in l2)
        truth = data_input.to_float(data_input.load(small_data, log=lambda _: None).test)
        for k in range(IMAGES):
            picture = matplotlib.image.imread(os.path.join(folder, f"{k}.png"))
            assert picture.shape[:2] == (28, 28)
            # 8 bits a pixel: the error of the picture is that of the estimate but for rounding.
            error = np.mean((picture[..., 0].ravel() - truth[k]) ** 2)
            assert abs(error - l2[k]) < 2e-3
        lines = out.splitlines()
        shown = lines[lines.index(model):lines.index(model) + 4]
        assert float(shown[1].split("=")[1]) == pytest.approx(np.mean(list(measured.values())))
        assert shown[1].startswith("mean measurement loss = ")
        assert float(shown[2].split()[4]) == pytest.approx(np.mean(list(l2.values())))
        assert shown[2].startswith("mean l2 loss = ")
        assert float(shown[3].split()[3]) == pytest.approx(
            np.mean(-10 * np.log10(list(l2.values()))))
        with open(os.path.join(folder, "result.json")) as file:
            result = json.load(file)
        assert result["images"] == IMAGES
        assert result["mean_l2_loss"] == pytest.approx(np.mean(list(l2.values())))
        with open(os.path.join(folder, "config.json")) as file:
            assert json.load(file)["data"] == "stand-in digits"
    assert "vae: Processed upto image 3 / 7\n" in out
    assert "vae: Processed upto image 7 / 7\n" in out


def test_losses_are_those_of_the_estimates(recovered, small_data):
    """The last batch is padded; its images are measured and scored like the others."""
    args, images, x_hat, _ = recovered()
    batches = compressed_sensing.make_batches(args, images)
    assert [batch.count for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(
        images, data_input.to_float(data_input.load(small_data, log=lambda _: None).test[:IMAGES]))
    part = compressed_sensing.score(batches[2], np.repeat(x_hat[6:], 3, axis=0))
    np.testing.assert_allclose(part.l2_loss, [np.mean((x_hat[6] - images[6]) ** 2)])
    np.testing.assert_allclose(part.measurement_loss, [
        np.mean((x_hat[6].astype(float) @ batches[2].matrix - batches[2].y[0]) ** 2)])
    assert np.abs(batches[0].matrix - batches[1].matrix).max() > 1  # a new matrix per batch


def test_folder_names():
    def folder(*words):
        args = compressed_sensing.parse_args(["--output-dir=o", *words])
        return recovery_store.result_folder(args, args.model_types[0]).split("/", 3)[3]
    assert folder("--model-types", "vae") == (
        "full-input/gaussian/0.1/200/vae/0.0_1.0_0.1_adam_0.01_0.9_False_1000_10")
    assert folder("--model-types", "lasso", "--measurement-type=inpaint", "--inpaint-size=10",
                  "--noise-std=0") == "full-input/inpaint_10/0.0/684/lasso/0.1"
    assert folder("--model-types", "omp", "--measurement-type=superres", "--omp-k=9",
                  "--input-type=random-test") == "random-test/superres_2/0.1/196/omp/9"
    assert folder("--model-types", "learned", "--measurement-type=learned",
                  "--num-measurements=30") == "full-input/learned/0.1/30/learned/50_200"
    assert folder("--model-types", "vae-sparse", "--encoder-start") == (
        "full-input/gaussian/0.1/200/vae-sparse/"
        "0.0_1.0_0.1_adam_0.01_0.9_False_1000_10_encoder_0.02")
    assert folder("--measurement-type=project", "--model-types", "vae") == (
        "full-input/project/0.1/784/vae/0.0_1.0_0.1_adam_0.01_0.9_False_1000_10")


def test_nothing_is_written_unless_asked_for(run, tmp_path):
    code, out, _ = run("--model-types", "lasso")
    assert code == 0 and os.listdir(str(tmp_path)) == [] and "mean l2" not in out


def test_progress_lines(run):
    code, out, _ = run("--print-iter=4", "--decay-lr")
    lines = [line for line in out.splitlines() if line.startswith("rr ")]
    assert code == 0 and len(lines) == 3 * 2 * 2  # batches, starts, updates 0 and 4
    assert re.match(r"rr 1 iter 4 lr 0\.1 total_loss \S+ m_loss1 \S+ m_loss2 \S+ zp_loss \S+$",
                    lines[3])
    values = [float(word) for word in lines[0].split()[7::2]]
    assert values[0] == pytest.approx(values[2] + 0.1 * values[3], rel=1e-4)
    assert "rr " not in run("--print-iter=0")[1]


def test_image_matrix(run, tmp_path):
    code, _, _ = run("--model-types", "vae", "lasso", "--image-matrix=2")
    path = os.path.join(os.path.dirname(os.path.dirname(result_folder(tmp_path))),
                        "matrix_vae_lasso.png")
    assert code == 0 and matplotlib.image.imread(path).shape[1] > 500


@pytest.mark.parametrize("choice", [1, 3])
def test_window_without_a_display_is_refused_before_recovering(run, choice, monkeypatch):
    from matplotlib import pyplot
    monkeypatch.setattr(pyplot, "get_backend", lambda: "agg")
    monkeypatch.setattr(compressed_sensing, "recover", None)
    assert_refused(run(f"--image-matrix={choice}"), "display", "use 2")


def test_gif_frames_of_all_batches(run, tmp_path):
    code, _, _ = run("--gif", "--gif-iter=3", "--batches-per-run=2")
    assert code == 0
    for k in range(IMAGES):
        names = os.listdir(os.path.join(str(tmp_path), "gif", str(k)))
        assert sorted(names) == ["3.png", "6.png", "8.png"]
    first, second = (matplotlib.image.imread(os.path.join(str(tmp_path), "gif", name))
                     for name in ("6/3.png", "6/8.png"))
    assert first.shape[:2] == (28, 28) and np.abs(first - second).max() > 0
    assert run("--gif", "--gif-iter=8", f"--gif-dir={tmp_path / 'frames'}")[0] == 0
    assert os.listdir(str(tmp_path / "frames" / "0")) == ["8.png"]
    assert_refused(run("--gif", "--model-types", "lasso"), "--gif", "vae")


def test_batches_per_run_and_loop_length_do_not_change_results(run, tmp_path):
    expected = None
    for number, words in enumerate((
            [], ["--batches-per-run=3"], ["--batches-per-run=2", "--iterations-per-loop=3"])):
        folder = tmp_path / str(number)
        assert run("--save-stats", f"--output-dir={folder}", *words)[0] == 0
        found = [np.array([part[k] for k in range(IMAGES)])
                 for part in losses(result_folder(folder))]
        expected = expected or found
        for one, other in zip(expected, found):
            np.testing.assert_allclose(one, other, rtol=1e-4)


# ---------------------------------------------------------------- inputs and measurements


def test_input_types(recovered, small_data):
    test = data_input.to_float(data_input.load(small_data, log=lambda _: None).test)
    images = {kind: recovered("--input-type", kind)[1]
              for kind in ("full-input", "random-test", "gen-span")}
    assert all(x.shape == (IMAGES, 784) for x in images.values())
    np.testing.assert_array_equal(images["full-input"], test[:IMAGES])
    assert all((test == image).all(1).any() for image in images["random-test"])
    assert np.abs(images["random-test"] - images["full-input"]).max() > 0.5
    assert not any((test == image).all(1).any() for image in images["gen-span"])
    assert recovered("--num-input-images=4")[1].shape == (4, 784)
    other = recovered("--input-type=random-test", "--seed=2")[1]
    assert np.abs(other - images["random-test"]).max() > 0.5


def test_images_of_the_generator_need_no_data(run):
    code, out, _ = run("--input-type=gen-span", "--data-dir=/nowhere", "--save-images")
    assert code == 0 and "data: images drawn from G" in out


@pytest.mark.parametrize("words, m", [
    (["--measurement-type=gaussian"], M), (["--measurement-type=superres"], 196),
    (["--measurement-type=superres", "--superres-factor=4"], 49),
    (["--measurement-type=inpaint"], 783),
    (["--measurement-type=inpaint", "--inpaint-size=10"], 684)],
    ids=["gaussian", "superres", "superres-4", "inpaint", "inpaint-10"])
def test_measurement_types(recovered, run, tmp_path, words, m):
    """Every method that inverts a matrix, on every kind of matrix; one batch of 3."""
    small = ["--num-input-images=3", "--max-update-iter=3", "--omp-k=5"]
    assert recovered(*words, *small)[3].shape == (3, m)
    code, out, err = run("--model-types", "vae", "vae-sparse", "lasso", "omp", *words, *small,
                         "--print-stats", "--image-matrix=2")
    assert code == 0, err
    assert out.count("mean l2 loss") == 4
    pictures = glob.glob(os.path.join(str(tmp_path), "estimated/mnist/full-input/*/0.1", str(m),
                                      "matrix_vae_vae-sparse_lasso_omp.png"))
    assert len(pictures) == 1


def test_projection(recovered, run):
    words = ["--measurement-type=project", "--noise-std=0", "--zprior-weight=0"]
    args = compressed_sensing.parse_args(["--measurement-type=project", "--model-types", "vae"])
    assert args.num_measurements == 784
    assert_refused(run(*words), "784")  # the fixture's m = 20 contradicts it
    _, images, x_hat, y = recovered(*words, "--num-measurements=784", "--encoder-start")
    np.testing.assert_array_equal(y, images[:3])
    assert metrics.l2_loss(x_hat, images).mean() < 0.06


@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_end_to_end_pathway(run, recovered, e2e_dir, tmp_path, kind):
    words = ["--measurement-type", kind, "--e2e-dir", e2e_dir, "--noise-std=0"]
    args, images, x_hat, y = recovered(*words, "--model-types", "learned")
    matrix = e2e_def.restore_matrix(e2e_def.checkpoint_folder(e2e_dir, M, kind == "learned"))
    np.testing.assert_allclose(y, images[:3].astype(float) @ matrix, rtol=1e-6)
    assert metrics.l2_loss(x_hat, images).mean() < 0.08  # the mean image's is 0.07
    code, out, err = run(*words, "--model-types", "learned", "vae", "lasso", "--save-stats")
    assert code == 0, err
    l2 = losses(result_folder(tmp_path, "learned", "50_200", kind, "0.0"))[1]
    np.testing.assert_allclose([l2[k] for k in range(IMAGES)], metrics.l2_loss(x_hat, images),
                               rtol=1e-5)


# ---------------------------------------------------------------- lazy runs and seeds


def test_lazy_run_skips_and_not_lazy_recovers_again(run, tmp_path):
    save = ["--save-stats", "--save-images", "--model-types", "lasso", "vae"]
    assert run(*save)[0] == 0
    folder = result_folder(tmp_path)
    before = losses(folder)
    code, out, _ = run(*save, "--print-stats")
    assert code == 0 and "Processed" not in out and out.count("saved already") == 2
    assert losses(folder) == before and out.count("mean l2 loss") == 2
    os.remove(os.path.join(folder, "5.png"))  # of the second batch
    code, out, _ = run(*save)
    assert code == 0 and re.findall("(.*): Processed upto image (.) ", out) == [
        ("vae", "6"), ("vae", "7")]
    assert losses(folder) == before and os.path.exists(os.path.join(folder, "5.png"))
    code, out, _ = run(*save, "--not-lazy")
    assert code == 0 and out.count("Processed") == 6 and losses(folder) == before


def test_lazy_run_goes_on_after_what_is_saved(run, tmp_path, monkeypatch):
    """An estimator that fails in the second batch costs nothing of the first."""
    original = estimators.ESTIMATORS["lasso"]

    def fails(args, batches):
        yield from original(args, batches[:1])
        raise FloatingPointError("it is not finite")

    words = ["--model-types", "lasso", "--save-stats", "--checkpoint-iter=10"]
    monkeypatch.setitem(estimators.ESTIMATORS, "lasso", fails)
    assert_refused(run(*words), "not finite", code=3)
    folder = result_folder(tmp_path, "lasso", "0.1")
    assert sorted(losses(folder)[1]) == [0, 1, 2]
    assert not os.path.exists(os.path.join(folder, "result.json"))
    monkeypatch.setitem(estimators.ESTIMATORS, "lasso", original)
    code, out, _ = run(*words)
    assert code == 0 and "upto image 3 " not in out and "upto image 7 " in out
    assert sorted(losses(folder)[1]) == list(range(IMAGES))
    cut = losses(folder)
    assert run(*words, "--not-lazy")[0] == 0 and losses(folder) == cut


def test_checkpoint_iter(run, monkeypatch):
    """Counts the writes of the pickles: 3 batches, written at each or at every second and last."""
    words = ["--model-types", "lasso", "--save-stats"]
    for every, writes in ((1, 3), (2, 2)):
        written, dump = [], pickle.dump

        def counted(losses, file, protocol, written=written, dump=dump):
            written.append(len(losses))
            dump(losses, file, protocol=protocol)

        monkeypatch.setattr(pickle, "dump", counted)
        code, _, _ = run(*words, f"--checkpoint-iter={every}", "--not-lazy")
        monkeypatch.undo()
        assert code == 0 and len(written) == 2 * writes and written[-1] == IMAGES


@pytest.mark.parametrize("words, named", [
    (["--seed=2"], "seed = 1, not 2"), (["--num-input-images=8"], "num_input_images = 7"),
    (["--batch-size=2"], "batch_size = 3")], ids=["seed", "images", "batch"])
def test_other_results_of_the_same_name_are_not_mixed(run, tmp_path, words, named):
    save = ["--model-types", "lasso", "--save-stats"]
    assert run(*save)[0] == 0
    folder = result_folder(tmp_path, "lasso", "0.1")
    before = losses(folder)
    assert_refused(run(*save, *words), named, "--not-lazy")
    assert losses(folder) == before
    assert run("--model-types", "lasso", "--print-stats", *words)[0] == 0  # saves nothing
    assert losses(folder) == before
    code, out, err = run(*save, *words, "--not-lazy")
    assert code == 0, err
    assert losses(folder) != before


def test_other_data_and_other_weights_are_not_mixed(run, small_data, tmp_path):
    save = ["--save-stats"]
    assert run(*save)[0] == 0
    other = tmp_path / "other"
    shutil.copytree(small_data, str(other))
    os.remove(str(other / "STANDIN.txt"))
    assert_refused(run(*save, f"--data-dir={other}"), "data = stand-in digits, not MNIST")
    shutil.copy(os.path.join(small_data, "STANDIN.txt"), str(other))
    for part in ("images-idx3", "labels-idx1"):  # the same name, other images
        shutil.copy(str(other / f"train-{part}-ubyte.gz"), str(other / f"t10k-{part}-ubyte.gz"))
    assert_refused(run(*save, f"--data-dir={other}"), "checksum_of_measurements")
    weights = tmp_path / "weights"
    save_vae(str(weights), seed=5)
    assert_refused(run(*save, f"--pretrained-model-dir={weights}"), "checksum_of_weights")


def test_replacing_leaves_no_file_of_the_replaced_run(run, tmp_path, monkeypatch):
    """Pictures of seed 0 must not pass for those of seed 1, whose run saves none."""
    words = ["--model-types", "lasso", "--save-stats"]
    assert run(*words, "--save-images")[0] == 0
    folder = result_folder(tmp_path, "lasso", "0.1")
    with open(os.path.join(folder, "note.txt"), "w") as file:
        file.write("kept")

    def fails(*_):
        raise OSError("it failed")

    monkeypatch.setitem(estimators.ESTIMATORS, "lasso", fails)
    before = losses(folder)
    assert run(*words, "--seed=2", "--not-lazy")[0] == 1
    assert losses(folder) == before and os.path.exists(os.path.join(folder, "0.png"))
    monkeypatch.undo()
    assert run(*words, "--seed=2", "--not-lazy")[0] == 0
    assert not glob.glob(os.path.join(folder, "*.png"))
    assert os.path.exists(os.path.join(folder, "note.txt"))
    assert "Processed" in run(*words, "--seed=2", "--save-images")[1]


def test_resume_demands_or_refuses_results(run):
    save = ["--model-types", "lasso", "--save-stats"]
    assert_refused(run(*save, "--resume=True"), "no results")
    assert run(*save, "--resume=False")[0] == 0
    assert_refused(run(*save, "--resume=False"), "holds results")
    assert run(*save, "--resume=True")[0] == 0


def test_damaged_pickle(run, tmp_path):
    """Wherever it is cut, and whatever is in its place."""
    save = ["--model-types", "lasso", "--save-stats"]
    assert run(*save)[0] == 0
    path = os.path.join(result_folder(tmp_path, "lasso", "0.1"), "l2_losses.pkl")
    with open(path, "rb") as file:
        content = file.read()
    for damaged in (b"", content[:7], content[:-1], b"garbled", pickle.dumps([1, 2]),
                    b"cno_such_module\nname\n."):
        with open(path, "wb") as file:
            file.write(damaged)
        assert_refused(run(*save), "l2_losses.pkl is damaged", "--not-lazy")
    assert run(*save, "--not-lazy")[0] == 0
    with open(path, "rb") as file:
        assert file.read() == content


def test_damaged_config(run, tmp_path):
    save = ["--model-types", "lasso", "--save-stats"]
    assert run(*save)[0] == 0
    with open(os.path.join(result_folder(tmp_path, "lasso", "0.1"), "config.json"), "w") as file:
        file.write('{"seed": 1')
    assert_refused(run(*save), "config.json is damaged")


def test_same_seed_same_results(recovered, base_result):
    np.testing.assert_array_equal(recovered()[2], base_result)
    _, images, _, y = recovered("--model-types", "lasso", "--input-type=random-test", "--seed=3")
    _, again, _, y_again = recovered("--model-types", "lasso", "--input-type=random-test",
                                     "--seed=3")
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(y, y_again)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("words, named", [
    (["--num-measurements=0"], ["number of measurements is 0"]),
    (["--measurement-type=project", "--num-measurements=785"], ["785", "784"]),
    (["--measurement-type=superres", "--superres-factor=3"], ["factor is 3", "divisor of 28"]),
    (["--measurement-type=inpaint", "--inpaint-size=28"], ["28", "leaves no pixel"]),
    (["--batch-size=8"], ["--batch-size=8", "--num-input-images=7"]),
    (["--model-types", "vae", "omp", "--omp-k=20"], ["k = 20", "1 to 19"]),
    (["--model-types", "lasso", "--measurement-type=project", "--num-measurements=784"],
     ["lasso", "project"]),
    (["--model-types", "learned"], ["learned", "gaussian"]),
    (["--model-types", "learned", "--measurement-type=learned", "--e2e-dir=/nowhere"],
     ["train_e2e.py", "--num_measurements=20"]),
    (["--mloss2-weight=0"], ["both 0"]),
    (["--num-input-images=301"], ["301", "300 test images"]),
    (["--data-dir=/nowhere"], ["/nowhere", "make_standin_data"]),
    (["--gif", "--model-types", "lasso"], ["--gif"])], ids=lambda words: " ".join(words))
def test_bad_input_is_refused_before_recovering(run, tmp_path, monkeypatch, words, named):
    monkeypatch.setattr(compressed_sensing, "recover", None)
    assert_refused(run(*words, "--save-stats"), *named)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("words", [
    "--max-update-iter=0", "--num-random-restarts=0", "--learning-rate=0", "--learning-rate=nan",
    "--learning-rate=inf", "--noise-std=-1", "--noise-std=nan", "--zprior-weight=-0.1",
    "--lmbd=0", "--sparse-weight=0", "--omp-k=0", "--batch-size=0", "--num-input-images=0",
    "--checkpoint-iter=0", "--gif-iter=0", "--print-iter=-1", "--batches-per-run=0",
    "--iterations-per-loop=0", "--dataset=celebA", "--input-type=other", "--model-types=other",
    "--seed=-1",
    "--measurement-type=other", "--optimizer-type=other", "--image-matrix=4", "--inpaint-size=x"])
def test_value_out_of_range_is_refused_by_the_parser(words, capsys):
    with pytest.raises(SystemExit) as stop:
        compressed_sensing.parse_args([words])
    assert stop.value.code == 2
    assert words[2:].split("=")[0].replace("-", "_") in capsys.readouterr().err


def test_missing_vae_names_the_training_command(run, tmp_path, monkeypatch):
    monkeypatch.setitem(estimators.ESTIMATORS, "lasso", None)  # nothing may run before the check
    missing = tmp_path / "no-vae"
    for words in (["--model-types", "lasso", "vae"], ["--input-type=gen-span"]):
        assert_refused(run(*words, f"--pretrained-model-dir={missing}"), str(missing),
                       f"python src/main.py --ckpt_dir={missing}")


def save_vae(folder, seed=0, hidden=None):
    """Checkpoint of an untrained VAE; hidden: another width, for a checkpoint that does not fit."""
    before = model_def.N_HIDDEN
    model_def.N_HIDDEN = hidden or before
    try:
        with npu_session.new_graph().as_default(), tf.Session() as session:
            model_def.vae(tf.zeros([1, 784]), tf.zeros([1, 20]), model_def.xavier_uniform(seed))
            session.run(tf.global_variables_initializer())
            npu_session.Checkpoints(folder).save(session, "mnist_vae_model-0")
    finally:
        model_def.N_HIDDEN = before


def test_checkpoint_of_another_architecture_names_the_variable(run, tmp_path):
    folder = str(tmp_path / "narrow")
    save_vae(folder, hidden=30)
    assert_refused(run(f"--pretrained-model-dir={folder}"), "enc/w1", "[784, 30]", "[784, 500]")


def test_damaged_checkpoint(run, tmp_path):
    folder = tmp_path / "damaged"
    save_vae(str(folder))
    with open(str(folder / "mnist_vae_model-0.data-00000-of-00001"), "r+b") as file:
        file.truncate(1000)
    code, _, err = run(f"--pretrained-model-dir={folder}")
    assert code == 2 and "no readable checkpoint" in err and "Traceback" not in err


def test_diverging_search_keeps_earlier_results(run, tmp_path):
    words = ["--save-stats", "--model-types", "lasso", "vae"]
    assert run(*words)[0] == 0
    before = [losses(result_folder(tmp_path)), losses(result_folder(tmp_path, "lasso", "0.1"))]
    outcome = run(*words, "--learning-rate=1e30", "--optimizer-type=sgd")
    assert_refused(outcome, "not finite", "--learning_rate", code=3)
    folder = result_folder(tmp_path, parameters="0.0_1.0_0.1_sgd_1e+30_0.9_False_8_2")
    assert not glob.glob(os.path.join(folder, "*.pkl"))
    assert before == [losses(result_folder(tmp_path)),
                      losses(result_folder(tmp_path, "lasso", "0.1"))]


@pytest.mark.parametrize("words", [["--save-stats"], ["--save-images"], ["--image-matrix=2"]],
                         ids=" ".join)
def test_output_that_cannot_be_written_is_found_before_recovering(run, tmp_path, monkeypatch,
                                                                  words):
    monkeypatch.setattr(compressed_sensing, "recover", None)
    (tmp_path / "file").write_text("in the way")
    outcome = run(*words, f"--output-dir={tmp_path / 'file'}")
    assert_refused(outcome, "file", code=1)
    assert (tmp_path / "file").read_text() == "in the way"


# ---------------------------------------------------------------- properties


def best_objectives(flags, *more):
    """Mean best objective of the first batch, by the estimator's own starts and measurements."""
    args = compressed_sensing.parse_args(flags("--num-input-images=3", *more))
    images = compressed_sensing.input_images(args, compressed_sensing.load_data(args))
    batch, = compressed_sensing.make_batches(args, images)
    x_hat, = list(estimators.vae(args, [batch]))
    return metrics.measurement_loss(x_hat, batch.matrix, batch.y).mean()


def test_more_restarts_never_raise_the_best_objective(flags):
    """Without the prior the objective is the measurement loss; the first starts are the same."""
    words = ["--zprior-weight=0", "--num-measurements=30", "--max-update-iter=25"]
    found = [best_objectives(flags, *words, f"--num-random-restarts={count}")
             for count in (1, 2, 5)]
    assert found[1] <= found[0] * (1 + 1e-5) and found[2] <= found[1] * (1 + 1e-5)
    assert found[2] < found[0]


def test_encoder_start_is_one_more_and_helps(flags):
    words = ["--zprior-weight=0", "--num-measurements=100", "--max-update-iter=20",
             "--num-random-restarts=1"]
    without, with_it = best_objectives(flags, *words), best_objectives(flags, *words,
                                                                       "--encoder-start")
    assert with_it < without * (1 + 1e-5)


def test_sparse_deviation_is_not_worse_at_many_measurements(recovered):
    words = ["--num-measurements=500", "--max-update-iter=30"]
    _, images, plain, _ = recovered(*words)
    _, _, sparse, _ = recovered(*words, "--model-types", "vae", "vae-sparse")
    _, _, alone, _ = recovered(*words, "--model-types", "vae-sparse")
    assert metrics.l2_loss(sparse, images).mean() < 0.5 * metrics.l2_loss(plain, images).mean()
    np.testing.assert_allclose(sparse, alone, atol=1e-6)


def test_linear_estimate_is_exact_where_all_is_measured():
    """A = 28 I and hardly any noise: the estimate is the image itself."""
    random = np.random.RandomState(0)
    images = random.uniform(0.2, 0.8, (2, 784))
    matrix = 28 * np.eye(784)
    batch = estimators.Batch(0, images, 2, matrix, images @ matrix)
    estimate = estimators.linear_estimate(batch, 1e-6, np.full(784, 0.5), np.eye(784))
    np.testing.assert_allclose(estimate, images, atol=1e-5)
    nothing = batch._replace(y=np.full((2, 784), 0.5 * 28))
    np.testing.assert_allclose(
        estimators.linear_estimate(nothing, 1.0, np.full(784, 0.5), np.eye(784)), 0.5)
    projected = batch._replace(matrix=None, y=images)
    np.testing.assert_allclose(
        estimators.linear_estimate(projected, 1e-6, np.full(784, 0.5), np.eye(784)), images,
        atol=1e-4)


def test_recovery_beats_lasso(recovered):
    """The whole pathway on a VAE of 60 short epochs: far better than Lasso at m = 50."""
    words = ["--num-measurements=50", "--max-update-iter=100"]
    _, images, x_hat, _ = recovered(*words)
    lasso = recovered(*words, "--model-types", "lasso")[2]
    assert metrics.l2_loss(x_hat, images).mean() < 0.6 * metrics.l2_loss(lasso, images).mean()


def test_titles_name_data_and_measurements():
    def title(*words):
        return compressed_sensing.measurement_title(compressed_sensing.parse_args(words), "D")
    assert title("--num-measurements=30") == "D: gaussian A, m = 30, noise 0.1"
    assert title("--measurement-type=inpaint", "--inpaint-size=3") == "D: inpaint 3 x 3, noise 0.1"
    assert title("--measurement-type=superres") == "D: superres, factor 2, noise 0.1"


def test_checks_raise_input_errors():
    assert measurements.MEASUREMENT_TYPES and figures.LABELS.keys() == estimators.ESTIMATORS.keys()
    with pytest.raises(InputError):
        compressed_sensing.parse_args(["--num-measurements=-5"])
