"""The stand-in faces: the real file format, its acceptance figures, the same bytes every time."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import resource
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import scipy.cluster.vq
import scipy.io

import baselines
import data_input
import make_standin_data as standin
import metrics
import standin_faces
from npu_session import InputError, run_main

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(HERE)
KMEANS_RUNS = 5


@pytest.fixture(scope="module")
def ten_faces(tmp_path_factory):
    """(path, data_input.Data) of 10 subjects x 32 images, seed 7; do not change it."""
    path = str(tmp_path_factory.mktemp("ten") / "EYB_fc.mat")
    assert standin.make_standin_data(path, 10, 32, seed=7, workers=1) == 320
    return path, data_input.load(path)


def read_bytes(path):
    """Content of a file."""
    with open(str(path), "rb") as file:
        return file.read()


# ---------------------------------------------------------------- acceptance


def test_images_of_one_face_lie_near_nine_dimensions():
    """Leading singular directions of the 64 images: 3 hold most energy, 9 nearly all."""
    for subject in range(3):
        images = standin_faces.draw_subject(0, subject, range(64))[0].reshape(64, -1)
        energies = np.linalg.svd(images.astype(float), compute_uv=False) ** 2
        shares = np.cumsum(energies) / energies.sum()
        assert shares[8] > 0.98
        assert 0.9 < shares[2] < 0.99  # shadows: three would do without


def test_raw_pixels_are_neither_trivial_nor_hopeless(ten_faces):
    """Ridge self-expression of the face finds the subjects mostly, k-means does not."""
    data = ten_faces[1]
    face, = baselines.compare(data.images[:1], 10, data.labels, [1.0])
    assert 0.6 < face.scores.accuracy < 0.97
    pixels = data.images[0].reshape(320, -1).astype(np.float64)
    for seed in range(KMEANS_RUNS):
        start = pixels[np.random.RandomState(seed).choice(320, 10, replace=False)]
        _, found = scipy.cluster.vq.kmeans2(pixels, start, minit="matrix")
        assert metrics.scores(data.labels, found).accuracy < 0.35


def test_grey_levels_use_the_range(ten_faces):
    for images in ten_faces[1].images:
        assert images.min() <= 10 and images.max() == 255
        assert 50 < images.mean() < 130 and (images == 255).mean() < 0.2


# ---------------------------------------------------------------- the faces


def test_lights_are_the_64_flashes():
    lights = standin_faces.LIGHTS
    assert lights.shape == (64, 3) and len({tuple(light) for light in lights.round(6)}) == 64
    np.testing.assert_allclose(np.linalg.norm(lights, axis=1), 1)
    np.testing.assert_allclose(lights[0], [0, 0, 1])  # the camera's axis
    mirrored = {tuple(light) for light in (lights * [-1, 1, 1]).round(6) + 0.0}
    assert mirrored == {tuple(light) for light in lights.round(6) + 0.0}


@pytest.mark.parametrize("count", [1, 7, 32, 63, 64])
def test_fewer_lights_are_spread_from_frontal_to_grazing(count):
    chosen = standin_faces.spread_lights(count)
    assert len(set(chosen)) == count and list(chosen) == sorted(chosen)
    rank = np.argsort(np.argsort(-standin_faces.LIGHTS[:, 2], kind="stable"))[chosen]
    assert abs(rank.mean() - 31.5) <= 1


def test_light_from_the_side_lights_that_side():
    face = standin_faces.draw_face(np.random.RandomState(3))
    light = np.array([1.0, 0.0, 0.0])
    image = standin_faces.shade(face, light, np.random.RandomState(0))
    assert image[:, 42:].mean() > 3 * image[:, :42].mean()
    image = standin_faces.shade(face, np.array([0.0, 0.7, 0.714]), np.random.RandomState(0))
    assert image[:48, 30:54].mean() > image[60:90, 30:54].mean()


def test_a_wall_casts_a_shadow_of_its_height():
    """A wall 0.2 high, light 45 degrees from the right: 0.2 to the left of it is dark."""
    height = np.zeros((96, 84))
    height[:, 60:63] = 0.2
    shadow = standin_faces.visibility(height, np.array([1, 0, 1]) / np.sqrt(2))
    pixels = 0.2 * 42
    assert (shadow[:, 63:] == 1).all() and (shadow[:, :int(60 - pixels) - 2] == 1).all()
    assert (shadow[:, int(60 - pixels) + 3:59] == 0).all()


def test_normals_of_a_slope():
    """Unit length, pointing away from where the ground rises."""
    face = standin_faces.draw_face(np.random.RandomState(0))
    np.testing.assert_allclose((face.normals ** 2).sum(axis=0), 1)
    rows, columns = np.gradient(face.height)
    assert (np.sign(face.normals[0]) == -np.sign(columns)).all()
    assert (np.sign(face.normals[1]) == np.sign(rows)).all()  # y points up
    assert face.albedo.min() >= 0.05 and face.albedo.max() <= 1


def test_area_averages_keep_the_mean_and_the_place():
    rows = standin_faces.average_weights(0, 96, 96)
    np.testing.assert_allclose(rows, np.kron(np.eye(32), np.full(3, 1 / 3)))
    rows = standin_faces.average_weights(2.5, 34.5, 96)
    np.testing.assert_allclose(rows @ np.arange(96), 2.5 + np.arange(32), atol=1e-12)
    np.testing.assert_allclose(rows.sum(axis=1), 1)


def test_modalities_show_the_parts_of_the_face():
    """A picture of its own coordinates: every box is centred where the table says."""
    x, y = standin_faces.grid()
    for picture, axis in ((100 * (x + 1.2) + 0 * y, 0), (100 * (y + 1.2) + 0 * x, 1)):
        crops = standin_faces.crop(picture, np.zeros(2))
        for image, modality in zip(crops, standin_faces.MODALITIES.values()):
            centre = image.mean() / 100 - 1.2
            assert centre == pytest.approx(modality[axis] if modality else 0, abs=0.02)
    assert list(standin_faces.MODALITIES) == ["face", "left eye", "nose", "mouth", "right eye"]


def test_subjects_and_images_differ():
    first, second = (standin_faces.draw_subject(0, subject, [0, 0, 5]) for subject in (0, 1))
    np.testing.assert_array_equal(first[:, 0], first[:, 1])  # an image depends on its light
    for other in (first[:, 2], second[:, 0], standin_faces.draw_subject(1, 0, [0])[:, 0]):
        assert np.abs(first[:, 0].astype(int) - other).mean() > 4


def test_bytes_are_the_same_in_every_python_and_numpy():
    images = standin_faces.draw_subject(0, 0, range(64))
    # Stored under Python 3.7 / numpy 1.21 and found again under Python 3.11 / numpy 2.
    assert zlib.crc32(images.tobytes()) == 464062076


def test_drawing_module_needs_numpy_only():
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); import standin_faces; "
    code += "print([m for m in ('tensorflow', 'tqdm', 'scipy') if m in sys.modules])"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"


# ---------------------------------------------------------------- the file


def test_format_is_the_real_files(ten_faces):
    content = scipy.io.loadmat(ten_faces[0])
    assert content["num_modalities"].shape == (1, 1) and content["num_modalities"][0, 0] == 5
    for number in range(5):
        matrix = content[f"modality_{number}"]
        assert matrix.shape == (1024, 320) and matrix.dtype == np.uint8
    np.testing.assert_array_equal(content["Label"], np.repeat(np.arange(1, 11), 32)[None])
    assert content["Label"].dtype == np.uint8


def test_pixels_are_in_columns_column_by_column(ten_faces):
    content = scipy.io.loadmat(ten_faces[0])
    lights = standin_faces.spread_lights(32)
    expected = standin_faces.draw_subject(7, 2, lights)  # samples 64 to 95
    for number in range(5):
        column = content[f"modality_{number}"][:, 64 + 5]
        np.testing.assert_array_equal(column.reshape(32, 32).T, expected[number, 5])
        np.testing.assert_array_equal(ten_faces[1].images[number][69, :, :, 0],
                                      expected[number, 5])


def test_the_file_says_that_it_is_a_standin(ten_faces):
    path, data = ten_faces
    assert data.is_standin and data.name.startswith("stand-in faces")
    content = scipy.io.loadmat(path)
    assert "NOT Extended Yale B" in content[data_input.STANDIN_KEY][0]
    assert "seed 7" in content[data_input.STANDIN_KEY][0]
    head = read_bytes(path)[:116].decode("ascii")
    assert "stand-in faces, NOT Extended Yale B, seed 7" in head


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(workers, tmp_path):
    paths = [tmp_path / name for name in ("a.mat", "b.mat")]
    standin.make_standin_data(str(paths[0]), 3, 6, 2, seed=1, workers=1)
    standin.make_standin_data(str(paths[1]), 3, 6, 2, seed=1, workers=workers)
    assert read_bytes(paths[0]) == read_bytes(paths[1])


def test_a_small_set_holds_the_first_subjects_of_a_larger_one(ten_faces, tmp_path):
    path = str(tmp_path / "small.mat")
    standin.make_standin_data(path, 2, 32, seed=7, workers=1)
    small = data_input.load(path)
    for ours, theirs in zip(small.images, ten_faces[1].images):
        np.testing.assert_array_equal(ours, theirs[:64])


def test_missing_images_leave_the_others_as_they_are(tmp_path):
    for name, missing, seed in (("a", 0, 1), ("b", 5, 1), ("c", 5, 2)):
        standin.make_standin_data(str(tmp_path / name), 3, 8, missing, seed=seed, workers=1)
    content = {name: scipy.io.loadmat(str(tmp_path / name)) for name in "abc"}
    assert content["b"]["Label"].shape == (1, 19)
    columns = {column.tobytes() for column in content["a"]["modality_0"].T}
    assert all(column.tobytes() in columns for column in content["b"]["modality_0"].T)
    assert not np.array_equal(standin.left_out(3, 8, 5, 1), standin.left_out(3, 8, 5, 2))


def test_the_full_set_has_as_many_images_as_the_real_one():
    assert standin.SUBJECTS * standin.IMAGES - standin.MISSING == 2424
    kept = standin.left_out(38, 64, 8, 0)
    assert kept.sum() == 2424 and kept.shape == (38, 64)


def test_many_subjects_have_labels_that_fit(tmp_path):
    pixels, labels = np.zeros((1, 300, 32, 32), np.uint8), np.arange(1, 301)
    (tmp_path / "a.mat").write_bytes(standin.mat_bytes(pixels, labels, 2**31 - 1))
    np.testing.assert_array_equal(scipy.io.loadmat(str(tmp_path / "a.mat"))["Label"][0], labels)


# ---------------------------------------------------------------- the program


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="a.mat exists already.*--force"):
        standin.make_standin_data(str(path), 1, 2, workers=1)
    assert path.read_bytes() == b"mine"
    standin.make_standin_data(str(path), 1, 2, workers=1, force=True)
    assert path.read_bytes()[:6] == b"MATLAB"


@pytest.mark.parametrize("wrong", [
    {"subjects": 0}, {"images": 65}, {"images": 1.5}, {"seed": -1}, {"seed": 2**31}, {"workers": 0},
    {"subjects": 2, "images": 3, "missing": 6}, {"missing": -1}])
def test_a_bad_number_is_named_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        standin.make_standin_data(str(tmp_path / "new" / "a.mat"), **wrong)
    assert os.listdir(str(tmp_path)) == []


def test_a_dead_worker_ends_the_run_instead_of_hanging_it(tmp_path, monkeypatch):
    monkeypatch.setattr(standin, "send_subjects", lambda *_: os._exit(9))
    with pytest.raises(ChildProcessError, match="--workers=1"):
        standin.make_standin_data(str(tmp_path / "a.mat"), 4, 2, workers=2)
    assert os.listdir(str(tmp_path)) == []


def test_killing_the_program_ends_its_workers(tmp_path):
    # A session of its own, so that its processes can be found and are ended with it in any case.
    program = subprocess.Popen(
        [sys.executable, os.path.join(SOURCE, "make_standin_data.py")]
        + ["--output=a.mat", "--subjects=10000", "--workers=2"],
        cwd=str(tmp_path), stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: len(group_members(program.pid)) == 3)
        time.sleep(0.3)
        program.kill()
        program.wait()
        wait_until(lambda: not group_members(program.pid))
    finally:
        if group_members(program.pid):
            os.killpg(program.pid, signal.SIGKILL)


def group_members(group):
    """Living processes (not zombies) of a process group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True,
                            check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [pid for pid, of, state in rows if of == str(group) and not state.startswith("Z")]


def wait_until(reached):
    """Returns when reached() is true; fails the test after a minute."""
    end = time.time() + 60
    while not reached():
        assert time.time() < end, "not reached within a minute"
        time.sleep(0.05)


def test_command_line_writes_says_standin_and_refuses_a_second_time(
        run_program, tmp_path, monkeypatch, capsys):
    flags = ["--output=d/a.mat", "--subjects=2", "--images=5", "--missing=1", "--workers=2"]
    done = run_program("make_standin_data.py", *flags, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert ("stand-in faces (not Extended Yale B): 2 subjects, 9 samples of 5 modalities, seed 0, "
            "in d/a.mat") in done.stdout
    assert "subject" not in done.stderr  # no progress bar outside a terminal
    before = read_bytes(tmp_path / "d" / "a.mat")
    monkeypatch.chdir(tmp_path)
    assert run_main(standin.main, flags) == 2
    assert capsys.readouterr().err.startswith("error: d/a.mat exists")
    assert read_bytes(tmp_path / "d" / "a.mat") == before


def test_full_disk_gives_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50000, before[1]))
    try:
        code = run_main(standin.main, ["--output=d/a.mat", "--subjects=2", "--images=20",
                                       "--workers=1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    errors = capsys.readouterr().err.splitlines()
    assert code == 1 and [line for line in errors if line.startswith("error: ")] == errors[-1:]
    assert os.listdir(str(tmp_path / "d")) == []


def test_defaults_and_wrong_flags(capsys):
    args = standin.parse_args([])
    assert (args.subjects, args.images, args.missing, args.seed) == (38, 64, None, 0)
    assert args.output == os.path.join("Data", "EYB_fc.mat") and args.force is False
    for flag in ("--unknown=1", "--sub=5", "--seed=-1", "--force=perhaps"):
        with pytest.raises(SystemExit) as stop:
            standin.parse_args([flag])
        assert stop.value.code == 2
        assert flag.split("=")[0] in capsys.readouterr().err


# ---------------------------------------------------------------- for users without data


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The working directory, empty; stand-in files made there have 1 subject x 2 images."""
    make = standin.make_standin_data
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(standin, "make_standin_data",
                        lambda path, seed: make(path, 1, 2, seed=seed, workers=1))
    return tmp_path


@pytest.mark.parametrize("mat", ["YaleB", "EYB_fc"])
def test_without_data_the_standin_is_made_once(empty_folder, capsys, mat):
    path = os.path.join("Data", "EYB_fc.mat")
    assert standin.data_file(None, mat, seed=4) == path
    assert "drawing stand-in faces (not Extended Yale B) into " + path in capsys.readouterr().out
    before = read_bytes(empty_folder / path)
    assert b"seed 4" in before[:116]
    assert standin.data_file(None, mat, seed=5) == path
    out = capsys.readouterr().out
    assert "using" in out if mat == "YaleB" else not out
    assert read_bytes(empty_folder / path) == before


@pytest.mark.parametrize("folder, mat", [("elsewhere", "YaleB"), (None, "ORL"), ("Data", "EYB_fc")])
def test_what_the_user_named_is_never_made(empty_folder, capsys, folder, mat):
    assert standin.data_file(folder, mat) == os.path.join(folder or "Data", mat + ".mat")
    assert os.listdir(str(empty_folder)) == [] and capsys.readouterr().out == ""


def test_the_users_file_comes_first(empty_folder, capsys):
    (empty_folder / "Data").mkdir()
    for name in ("YaleB.mat", "EYB_fc.mat"):
        (empty_folder / "Data" / name).write_bytes(b"mine")
    assert standin.data_file(None, "YaleB") == os.path.join("Data", "YaleB.mat")
    assert capsys.readouterr().out == ""
