"""Test mode: every image once, coordinates, pictures."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import golden_checkpoint
import golden_rules
import metrics
import model_def
import npu_session
from training_runs import contents, narrow_network, program, read, sentence
from utils import drawing

FLAGS = ["--threads=1", "--batch_size=4"]


def find(data, output, *flags):
    """program's answer in test mode."""
    return program(f"--input_dir={data}", f"--output_dir={output}", *FLAGS, *flags, mode="test")


@pytest.fixture(scope="module")
def narrow_checkpoint(tmp_path_factory):
    """Folder (str) with a checkpoint of the narrow network, K = 3."""
    with narrow_network():
        return golden_checkpoint.write(tmp_path_factory.mktemp("ckpt"), K=3)


@pytest.fixture(scope="module")
def ten_faces(faces, tmp_path_factory):
    """Folder with 10 images, which fill no whole number of batches; one of them has no number."""
    folder = tmp_path_factory.mktemp("ten")
    paths = data_input.find_images(faces)[:10]
    for number, path in enumerate(paths):
        shutil.copy(path, str(folder / f"face{number}.JPG"))
    return str(folder)


@pytest.fixture(scope="module")
def found(ten_faces, narrow_checkpoint, tmp_path_factory):
    """(output folder, printed text) of test mode on them."""
    output = tmp_path_factory.mktemp("found")
    code, out, err = find(ten_faces, output, f"--checkpoint={narrow_checkpoint}")
    assert code == 0, err
    return str(output), out


def decoded(path):
    """uint8 RGB of an image file."""
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(data_input.decode(tf.read_file(path)))


def test_each_image_is_evaluated_once(found):
    folder, out = found
    lines = out.splitlines()
    assert lines[:2] == [lines[0], "examples count = 10"] and lines[0].startswith("data: images")
    assert [line for line in lines if line.startswith("evaluated")] == [
        f"evaluated image face{number}.JPG" for number in range(10)]
    assert lines[-2].startswith("rate ") and float(lines[-2].split()[1]) > 0
    assert sorted(os.listdir(os.path.join(folder, "images"))) == [
        f"face{number}-outputs.jpg" for number in range(10)]
    result = read(folder, "test.json")
    assert result["images"] == 10 and result["K"] == 3
    assert result["checkpoint"].endswith("model-7")


def test_coordinates_are_the_networks(found, ten_faces, narrow_checkpoint):
    """Image by image, without batches and pipeline."""
    paths = data_input.find_images(ten_faces)
    with narrow_network(), npu_session.new_graph().as_default(), tf.Session() as session:
        frame = tf.placeholder(tf.string, [])
        images = data_input.cut(data_input.read_frame(frame, 146)[None])
        coordinates = model_def.build_evaluation(images, 3).coordinates
        npu_session.Checkpoints(narrow_checkpoint).restore(session)
        expected = [session.run(coordinates, {frame: path})[0] for path in paths]
    with np.load(os.path.join(found[0], "coordinates.npz")) as arrays:
        np.testing.assert_allclose(arrays["cells"], expected, atol=1e-3)
        assert list(arrays["names"]) == [os.path.basename(path) for path in paths]
        pixels = arrays["pixels"]
    np.testing.assert_allclose(pixels, metrics.to_pixels(expected), atol=1e-2)
    with open(os.path.join(found[0], "coordinates.csv"), newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "x1", "y1", "x2", "y2", "x3", "y3"] and len(rows) == 11
    np.testing.assert_allclose(np.array([row[1:] for row in rows[1:]], float).reshape(10, 3, 2),
                               pixels, atol=1e-3)


def test_pictures_show_the_landmarks_where_they_are(found):
    with np.load(os.path.join(found[0], "coordinates.npz")) as arrays:
        points = metrics.crop_pixels(arrays["cells"])
    picture = decoded(os.path.join(found[0], "images", "face3-outputs.jpg"))
    assert picture.shape == (256, 256, 3)
    colors = 255 * drawing.landmark_colors(3)[1:]
    x, y = np.round(2 * points[3, 2] + 0.5).astype(int)  # the last is drawn on top
    assert np.abs(picture[y, x] - colors[2]).max() < 60
    for path, content in contents(found[0], ".jpg").items():
        assert 2000 < len(content) < 300000, path


def test_the_references_pictures(ten_faces, narrow_checkpoint, tmp_path):
    code, _, err = find(ten_faces, tmp_path, f"--checkpoint={narrow_checkpoint}",
                        "--overlay=reference")
    assert code == 0, err
    picture = decoded(str(tmp_path / "images" / "face9-outputs.jpg"))
    paths = data_input.find_images(ten_faces)
    with narrow_network(), npu_session.new_graph().as_default(), tf.Session() as session:
        images = data_input.cut(data_input.read_frame(paths[9], 146)[None])
        drawn = model_def.build_evaluation(images, 3).drawn
        npu_session.Checkpoints(narrow_checkpoint).restore(session)
        expected = 255 * session.run(drawn)[0]
    assert picture.shape == (128, 128, 3) and np.abs(picture - expected).mean() < 6


def test_no_pictures_of_single_images_on_request(ten_faces, narrow_checkpoint, tmp_path):
    code, out, err = find(ten_faces, tmp_path, f"--checkpoint={narrow_checkpoint}",
                          "--overlay=none", "--K=3")
    assert code == 0, err
    assert os.listdir(str(tmp_path / "images")) == [] and "-outputs.jpg" not in out
    assert os.path.exists(str(tmp_path / "contact_sheet.jpg"))


def test_images_that_differ_in_their_ending_keep_their_pictures(faces, narrow_checkpoint, tmp_path):
    path = data_input.find_images(faces)[0]
    (tmp_path / "data").mkdir()
    for name in ("a.jpg", "a.jpeg"):
        shutil.copy(path, str(tmp_path / "data" / name))
    code, _, err = find(tmp_path / "data", tmp_path / "out", f"--checkpoint={narrow_checkpoint}")
    assert code == 0, err
    assert sorted(os.listdir(str(tmp_path / "out" / "images"))) == [
        "a.jpeg-outputs.jpg", "a.jpg-outputs.jpg"]


def test_the_whole_network_through_the_program(tmp_path):
    """PNG frames whose middle is what the network sees, so that nothing is resized."""
    images = golden_rules.images(2, golden_rules.find_seed())[0]
    pixels = np.round((images + 1) * 127.5).astype(np.uint8)
    for folder in ("data", "out", "out/ckpt"):
        (tmp_path / folder).mkdir()
    golden_checkpoint.write(tmp_path / "out" / "ckpt")
    with npu_session.new_graph().as_default(), tf.Session() as session:
        for number, image in enumerate(np.pad(pixels, ((0, 0), (5, 13), (5, 13), (0, 0)))):
            (tmp_path / "data" / f"{number}.png").write_bytes(
                session.run(tf.image.encode_png(image)))
        coordinates = model_def.build_evaluation(tf.constant(pixels / np.float32(127.5) - 1),
                                                 8).coordinates
        npu_session.Checkpoints(str(tmp_path / "out" / "ckpt")).restore(session)
        expected = session.run(coordinates)
    code, _, err = program(f"--input_dir={tmp_path}/data", f"--output_dir={tmp_path}/out", *FLAGS,
                           "--overlay=none", mode="test", is_narrow=False)
    assert code == 0, err
    with np.load(str(tmp_path / "out" / "coordinates.npz")) as arrays:
        np.testing.assert_allclose(arrays["cells"], expected, atol=1e-3)


# ---------------------------------------------------------------- refused


def test_untrained_networks_are_refused(ten_faces, tmp_path):
    """The reference goes on with random weights."""
    answer = sentence(find(ten_faces, tmp_path))
    assert f"no checkpoint in {tmp_path}/ckpt" in answer and "--checkpoint" in answer
    answer = sentence(find(ten_faces, tmp_path, "--K=8"))
    assert f"no readable checkpoint in {tmp_path}/ckpt" in answer


def test_a_checkpoint_of_another_k_is_named(ten_faces, narrow_checkpoint, tmp_path):
    answer = sentence(find(ten_faces, tmp_path, f"--checkpoint={narrow_checkpoint}", "--K=5"))
    assert "cnn_tower/layer_6/conv/filter [5, 5, 4, 3], this model [5, 5, 4, 5]" in answer


def test_broken_images_are_refused_before_anything_is_written(ten_faces, narrow_checkpoint,
                                                              tmp_path):
    data = shutil.copytree(ten_faces, str(tmp_path / "data"))
    os.truncate(os.path.join(data, "face4.JPG"), 100)
    answer = sentence(find(data, tmp_path / "out", f"--checkpoint={narrow_checkpoint}"))
    assert "face4.JPG cannot be used" in answer
    assert not os.path.exists(str(tmp_path / "out"))


def test_landmarks_that_are_not_finite_are_no_result(ten_faces, tmp_path):
    (tmp_path / "ckpt").mkdir()
    with narrow_network():
        golden_checkpoint.write(tmp_path / "ckpt", K=3)
        with npu_session.new_graph().as_default(), tf.Session() as session:
            layers = model_def.create_variables(3, 0)
            step = tf.train.get_or_create_global_step()
            checkpoints = npu_session.Checkpoints(str(tmp_path / "ckpt"))
            checkpoints.restore(session)
            layers[5].beta.load([np.inf] * 3, session)
            assert session.run(step) == 7
            checkpoints.save(session, "model-8")
    answer = sentence(find(ten_faces, tmp_path), code=3)
    assert "model-8 gives landmarks that are not finite" in answer
    assert not contents(tmp_path, ".csv", ".jpg")


# ---------------------------------------------------------------- drawing


def test_discs_lie_on_their_points():
    image = np.full((20, 20, 3), 0.5)
    picture = drawing.mark_landmarks(image, np.array([[4.0, 10.0], [14.0, 3.0]]))
    assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
    colors = np.round(255 * drawing.landmark_colors(2)).astype(int)
    for (x, y), color in zip([(8, 20), (28, 6)], colors[1:]):
        np.testing.assert_allclose(picture[y:y + 2, x:x + 2], np.tile(color, (2, 2, 1)), atol=1)
        ring = picture[y, x - 5]
        assert ring.max() < 30
    np.testing.assert_array_equal(picture[35:, 35:], 128)


def test_enlarging_keeps_a_ramp():
    ramp = np.arange(10.0)[:, None, None] * np.ones((1, 3, 1))
    enlarged = drawing.enlarge(ramp)[:, 0, 0]
    np.testing.assert_allclose(enlarged[1:-1], np.arange(0.25, 9, 0.5))
