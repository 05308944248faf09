"""Stand-in faces: statistics of the points, pictures that show them, files, failures."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import landmark_lists
import make_standin_data as standin
import metrics
import standin_faces
from npu_session import InputError

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COUNTS = (7, 4, 3)

# Of the five points, (x, y) in pixels: measured on the prototype that the generator describes.
MEANS = [(70.4, 111.4), (106.5, 111.2), (88.6, 136.1), (72.9, 151.4), (104.2, 151.3)]
DEVIATIONS = [(2.2, 1.8), (2.3, 1.9), (5.6, 3.7), (3.3, 4.4), (3.2, 4.3)]
MEAN_SHAPE_ERROR = 11.3  # percent of the inter-ocular distance


@pytest.fixture(scope="module")
def points():
    """Points of 4000 faces, int [4000, 5, 2], without their pictures."""
    heads = [standin_faces.draw_head(np.random.RandomState([0, 0, number]))
             for number in range(4000)]
    return np.round([standin_faces.landmarks(head) for head in heads])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 7 + 4 + 3 stand-in faces."""
    path = str(tmp_path_factory.mktemp("standin") / "new" / "folder")
    standin.make_standin_data(path, *COUNTS, seed=7, workers=1)
    return path


@pytest.fixture(scope="module")
def drawn():
    """Pictures uint8 [40, 218, 178, 3] and points [40, 5, 2] of 40 faces."""
    drawn = [standin_faces.draw_face(0, 0, number) for number in range(40)]
    return [np.stack(part) for part in zip(*drawn)]


def contents(folder):
    """{path below the folder: bytes} of all its files."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def decode(path):
    """uint8 [H, W, C] of a JPEG file."""
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(tf.image.decode_jpeg(tf.read_file(path)))


# ---------------------------------------------------------------- statistics


def test_means_of_the_points(points):
    np.testing.assert_allclose(points.mean(axis=0), MEANS, atol=0.7)


def test_deviations_of_the_points(points):
    np.testing.assert_allclose(points.std(axis=0), DEVIATIONS, atol=0.35)


def test_mean_shape_error(points):
    predicted = metrics.mean_shape(points[:3000], 1000)
    error = metrics.landmark_errors(predicted, points[3000:]).mean()
    assert error == pytest.approx(MEAN_SHAPE_ERROR, abs=0.4)


def test_points_need_the_picture_not_the_set(points):
    """The five points move in many directions: no linear map of two predicts the other three."""
    x, y = points[:, :2], points[:, 2:]
    predicted = metrics.predict(x[3000:], metrics.fit(x[:3000], y[:3000], bias=True))
    left = (predicted - y[3000:]).std(axis=0) / y[3000:].std(axis=0)
    assert left.min() > 0.5


def test_yaw_moves_the_nose_against_the_eyes():
    """Parallax: the head turned to the right shows the nose nearer to the right eye, which is seen
    from the side."""
    head = standin_faces.draw_head(np.random.RandomState(0))._replace(
        yaw=0.0, pitch=0.0, roll=0.0, scale=1.0, origin=np.array([89.0, 111.0]), eyes=1.0,
        nose_height=1.0)
    straight, turned = (standin_faces.landmarks(head._replace(yaw=yaw)) for yaw in (0.0, 0.5))
    np.testing.assert_allclose(straight[:2], [[70, 111], [108, 111]])
    assert straight[2, 0] == pytest.approx(89)
    assert turned[2, 0] - 89 == pytest.approx(22 * np.sin(0.5))
    assert turned[1, 0] - turned[0, 0] == pytest.approx(38 * np.cos(0.5))


def test_roll_turns_about_the_origin_and_pitch_lowers_the_nose():
    head = standin_faces.draw_head(np.random.RandomState(0))._replace(
        yaw=0.0, pitch=0.0, roll=0.0, scale=1.0, origin=np.array([0.0, 0.0]))
    turned = standin_faces.project(head._replace(roll=np.pi / 2), [[1.0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(turned, [[0, 1], [-1, 0]], atol=1e-12)
    lowered = standin_faces.project(head._replace(pitch=0.2), [0.0, 0, 10])
    np.testing.assert_allclose(lowered, [0, 10 * np.sin(0.2)])


# ---------------------------------------------------------------- pictures


def test_pictures_show_dark_pupils_at_the_eyes(drawn):
    """Without glasses or deep shade the pupil is darker than the skin between the eyes."""
    images, points = drawn
    grey = images.mean(axis=3)
    found = []
    for image, place in zip(grey, points):
        pupils = [image[y - 1:y + 2, x - 1:x + 2].mean() for x, y in place[:2]]
        x, y = place[:2].mean(axis=0).astype(int)
        found.append(max(pupils) < image[y + 4:y + 9, x - 2:x + 3].mean())
    assert np.mean(found) > 0.9


def test_pictures_show_red_lips_between_the_corners(drawn):
    images, points = drawn
    colour = images.astype(float)
    redder = []
    for image, place in zip(colour, points):
        x, y = place[3:].mean(axis=0).astype(int)
        lips = image[y - 2:y + 6, x - 8:x + 9].mean(axis=(0, 1))
        cheek_x = int(place[4, 0] + 0.2 * (place[1, 0] - place[0, 0]))
        cheek = image[y - 22:y - 14, cheek_x - 4:cheek_x + 5].mean(axis=(0, 1))
        redder.append(lips[0] / lips[1:].mean() > cheek[0] / cheek[1:].mean())
    assert np.mean(redder) > 0.8


def test_pictures_can_be_told_from_each_other(drawn):
    images = drawn[0].reshape(40, -1).astype(np.float32)
    distances = np.abs(images[:, None, ::50] - images[None, :, ::50]).mean(axis=2)
    assert distances[~np.eye(40, dtype=bool)].min() > 8
    assert images.std(axis=1).min() > 20


def test_a_face_depends_on_its_numbers_only():
    first, points = standin_faces.draw_face(3, 1, 5)
    standin_faces.draw_face(3, 1, 4)
    again, points_again = standin_faces.draw_face(3, 1, 5)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(points, points_again)
    assert first.shape == (218, 178, 3) and first.dtype == np.uint8
    for other in ((4, 1, 5), (3, 0, 5), (3, 1, 6)):
        assert not np.array_equal(first, standin_faces.draw_face(*other)[0])


def test_points_are_the_same_in_every_python_and_numpy():
    found = [standin_faces.draw_face(0, 0, number)[1].ravel().tolist() for number in (0, 1)]
    # Stored under Python 3.7 / numpy 1.21 and found again under Python 3.11 / numpy 2.
    assert found == [[68, 111, 104, 110, 81, 137, 68, 154, 102, 153],
                     [69, 110, 109, 112, 92, 138, 70, 146, 105, 149]]


def test_ellipse_distance_is_exact_on_its_axes_near_the_edge():
    shape = standin_faces.ellipse((10.0, 20.0), (6.0, 3.0), np.pi / 2)
    x, y = np.array([10.0, 10, 13, 13.2, 10]), np.array([26.0, 26.2, 20, 20, 20])
    found = shape.distance(x, y)
    np.testing.assert_allclose(found[:4], [0, 0.2, 0, 0.2], atol=0.01)
    assert found[4] < -3
    np.testing.assert_allclose([shape.low, shape.high], [[7, 14], [13, 26]])


def test_stroke_distance():
    shape = standin_faces.stroke([(0, 0), (10, 0), (10, 5)], 2.0)
    x, y = np.array([5.0, 5, -3, 13, 10]), np.array([0.0, 4, 0, 5, 8])
    np.testing.assert_allclose(shape.distance(x, y), [-2, 2, 1, 1, 1], atol=1e-3)


def test_paint_outside_the_picture_changes_nothing():
    picture = np.zeros((218, 178, 3), np.float32)
    for centre in ((-50, 20), (500, 20), (20, -50), (20, 500)):
        standin_faces.paint(picture, standin_faces.ellipse(centre, (5, 5)), (1, 1, 1))
    assert not picture.any()
    standin_faces.paint(picture, standin_faces.ellipse((0, 0), (5, 5)), (1, 0.5, 0))
    np.testing.assert_allclose(picture[0, 0], [1, 0.5, 0])
    assert not picture[10:].any() and not picture[:, 10:].any()


# ---------------------------------------------------------------- files


def test_folders_and_lists_are_celebas(folder):
    assert sorted(os.listdir(folder)) == sorted(standin.ENTRIES + (standin.STANDIN_NOTE,))
    unlabelled, regressor, test = standin.image_names(COUNTS)
    assert sorted(os.listdir(os.path.join(folder, "data10w"))) == unlabelled + regressor
    assert sorted(os.listdir(os.path.join(folder, "img_align_celeba"))) == test
    found = landmark_lists.read_landmarks(os.path.join(folder, landmark_lists.LANDMARK_FILE))
    assert found.names == unlabelled + regressor + test == [f"{k:06d}.jpg" for k in range(1, 15)]
    split = landmark_lists.split_names(folder)
    assert split[:2] == (regressor, test)
    parts = landmark_lists.read_partition(os.path.join(folder, landmark_lists.PARTITION_FILE))
    assert [parts[name] for name in found.names] == [0] * 11 + [2] * 3


def test_images_and_points_belong_together(folder):
    found = landmark_lists.read_landmarks(os.path.join(folder, landmark_lists.LANDMARK_FILE))
    paths = landmark_lists.find_images(folder, found.names)
    for number, split, place in ((0, 0, 0), (8, 1, 1), (13, 2, 2)):
        picture, points = standin_faces.draw_face(7, split, place)
        np.testing.assert_array_equal(found.points[number], points)
        decoded = decode(paths[number])
        assert decoded.shape == picture.shape
        assert np.abs(decoded.astype(float) - picture).mean() < 6  # JPEG and the camera's noise


def test_note_says_standin_seed_and_counts(folder):
    with open(os.path.join(folder, standin.STANDIN_NOTE)) as file:
        text = file.read()
    assert "NOT CelebA" in text
    for line in ("seed = 7", "unlabelled training images = 7", "regressor training images = 4",
                 "test images = 3"):
        assert line in text.splitlines()


@pytest.mark.parametrize("workers", [1, 2, 20])
def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(workers, folder, tmp_path):
    standin.make_standin_data(str(tmp_path), *COUNTS, seed=7, workers=workers)
    assert contents(str(tmp_path)) == contents(folder)


def test_a_small_set_is_the_beginning_of_a_larger_one(folder, tmp_path):
    standin.make_standin_data(str(tmp_path), 3, 2, 1, seed=7, workers=1)
    small, large = (landmark_lists.read_landmarks(os.path.join(place, landmark_lists.LANDMARK_FILE))
                    for place in (str(tmp_path), folder))
    np.testing.assert_array_equal(small.points, large.points[[0, 1, 2, 7, 8, 11]])


def test_existing_data_is_refused_or_replaced_only_if_it_is_ours(folder, tmp_path):
    mine = tmp_path / "data10w"
    mine.mkdir()
    (mine / "1.jpg").write_bytes(b"mine")
    for force in (False, True):
        with pytest.raises(InputError, match="data10w exists and is not stand-in data"):
            standin.make_standin_data(str(tmp_path), *COUNTS, workers=1, force=force)
    assert contents(str(tmp_path)) == {os.path.join("data10w", "1.jpg"): b"mine"}
    (tmp_path / standin.STANDIN_NOTE).write_text("made here")
    with pytest.raises(InputError, match="--force"):
        standin.make_standin_data(str(tmp_path), *COUNTS, workers=1)
    standin.make_standin_data(str(tmp_path), *COUNTS, seed=7, workers=1, force=True)
    assert contents(str(tmp_path)) == contents(folder)


@pytest.mark.parametrize("wrong", [
    {"count": 0}, {"regressor_count": -1}, {"test_count": 0}, {"count": 10**6}, {"count": 2.5},
    {"seed": -1}, {"seed": 2**31}, {"workers": 0}])
def test_a_bad_number_is_named_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(InputError, match=list(wrong)[0]):
        standin.make_standin_data(str(tmp_path / "new"), **wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failure", [OSError("no space left"), SystemExit(143)])  # as on SIGTERM
def test_a_failure_leaves_nothing_but_what_was_there(tmp_path, monkeypatch, failure):
    (tmp_path / "mine.txt").write_text("mine")

    def fail(*_):
        raise failure

    monkeypatch.setattr(standin, "draw_face", fail)
    with pytest.raises(type(failure)):
        standin.make_standin_data(str(tmp_path), *COUNTS, workers=1)
    assert os.listdir(str(tmp_path)) == ["mine.txt"]


def test_a_dead_worker_ends_the_run_instead_of_hanging_it(tmp_path, monkeypatch):
    monkeypatch.setattr(standin, "send_faces", lambda *_: os._exit(9))
    with pytest.raises(ChildProcessError, match="--workers=1"):
        standin.make_standin_data(str(tmp_path), *COUNTS, workers=2)
    assert os.listdir(str(tmp_path)) == []


def test_data_folder_fills_only_the_default(tmp_path, capsys):
    named = str(tmp_path / "named")
    assert standin.data_folder(named, "unused") == named
    assert not os.path.exists(named)
    default = str(tmp_path / "default")
    for _ in range(2):  # the second time it is there
        assert standin.data_folder(None, default, count=2, regressor_count=1, test_count=1,
                                   workers=1) == default
    assert capsys.readouterr().out.count("drawing stand-in faces (not CelebA)") == 1
    assert len(os.listdir(os.path.join(default, "data10w"))) == 3


# ---------------------------------------------------------------- the program


def command(*flags):
    """The program with these flags, as a list for subprocess."""
    return [sys.executable, os.path.join(SOURCE, "make_standin_data.py")] + list(flags)


def test_program_writes_says_standin_and_refuses_a_second_time(tmp_path, capsys):
    flags = [f"--data_path={tmp_path}/data", "--count=3", "--regressor_count=2", "--test_count=1",
             "--workers=1"]
    standin.main(flags)
    assert "stand-in faces (not CelebA): 3 + 2 training and 1 test images, seed 0" in (
        capsys.readouterr().out)
    with pytest.raises(InputError, match="data10w exists already"):
        standin.main(flags)


def test_killing_the_program_ends_its_workers(tmp_path):
    # A session of its own, so that its processes can be found and are ended with it in any case.
    program = subprocess.Popen(
        command("--data_path=data", "--count=500000", "--workers=2"), cwd=str(tmp_path),
        stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: any(name.endswith("000002.jpg") for _, _, names in os.walk(tmp_path)
                               for name in names))
        program.kill()
        program.wait()
        wait_until(lambda: not group_exists(program.pid))
    finally:
        if group_exists(program.pid):
            os.killpg(program.pid, signal.SIGKILL)


def wait_until(reached):
    """Returns when reached() is true; fails the test after a minute."""
    end = time.time() + 60
    while not reached():
        assert time.time() < end, "not reached within a minute"
        time.sleep(0.05)


def group_exists(group):
    """True while a process of the process group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_full_disk_gives_one_sentence_and_leaves_nothing(run_program, tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
    try:
        code, _, err = run_program("make_standin_data.py", "--data_path=data", "--count=30",
                                   "--workers=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert os.listdir(str(tmp_path / "data")) == []


@pytest.mark.parametrize("flag", ["--unknown=1", "--count=x", "--seed=-1", "--force=perhaps"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        standin.parse_args([flag])
    assert stop.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


def test_defaults_and_both_spellings_of_force():
    args = standin.parse_args([])
    assert (args.count, args.regressor_count, args.test_count, args.seed) == (4000, 1000, 250, 0)
    assert args.force is False
    assert standin.parse_args(["--force"]).force is True
    assert standin.parse_args(["--force=False"]).force is False


def test_drawing_module_needs_numpy_only():
    code = (f"import sys; sys.path.insert(0, {SOURCE!r}); import standin_faces; "
            "print([m for m in ('tensorflow', 'tqdm', 'scipy') if m in sys.modules])")
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"
