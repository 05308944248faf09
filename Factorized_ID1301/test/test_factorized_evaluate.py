"""Evaluation: from a checkpoint, images and lists to errors, equivariance and pictures."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import csv
import io
import json
import os
import shutil

import matplotlib.image
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import evaluate
import golden_checkpoint
import landmark_lists
import metrics
import model_def
import npu_session
from npu_session import InputError

COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])  # of the oracle's blobs
FILES = ("coordinates.csv", "coordinates.npz", "errors.csv", "errors.png", "contact_sheet.jpg",
         "equivariance.jpg", "result.json")
LARGEST = 300 * 1024  # bytes of a picture


@pytest.fixture(scope="module")
def evaluated(faces, checkpoint, tmp_path_factory):
    """(result folder, what the program printed) of the checkpoint on the stand-in faces."""
    output, printed = str(tmp_path_factory.mktemp("output")), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert evaluate.main(flags(faces, checkpoint, f"--output_dir={output}")) == 0
    return os.path.join(output, "evaluation"), printed.getvalue()


@pytest.fixture
def copied(faces, tmp_path):
    """A copy of the stand-in faces that may be changed, as a path object."""
    shutil.copytree(faces, str(tmp_path / "faces"))
    return tmp_path / "faces"


def flags(data, checkpoint, *others):
    """Command line of a small evaluation."""
    return [f"--data_path={data}", f"--checkpoint={checkpoint}", "--batch_size=4",
            "--threads=1"] + list(others)


def refused(data, checkpoint, tmp_path, *others):
    """The sentence of an evaluation that must be refused before anything is written."""
    with pytest.raises(InputError) as caught:
        evaluate.main(flags(data, checkpoint, f"--result_dir={tmp_path}/result", *others))
    assert os.listdir(str(tmp_path / "result")) == []
    return str(caught.value)


def read_result(folder):
    with open(os.path.join(folder, "result.json")) as file:
        return json.load(file)


# ---------------------------------------------------------------- what it writes


def test_all_files_and_nothing_else(evaluated):
    folder, printed = evaluated
    assert sorted(os.listdir(folder)) == sorted(FILES)
    for name in FILES[3:6]:
        assert 5000 < os.path.getsize(os.path.join(folder, name)) < LARGEST
        assert os.path.join(folder, name) in printed


def test_result_says_what_it_is_from(evaluated, checkpoint, faces):
    result = read_result(evaluated[0])
    assert result["data"] == "stand-in faces"
    assert (result["K"], result["step"], result["seed"]) == (8, 7, 1)
    assert (result["training_images"], result["test_images"]) == (8, 6)
    assert result["checkpoint"] == os.path.join(checkpoint, "model-7")
    assert os.path.join(faces, landmark_lists.TESTING_FILE) in result["lists"]
    assert "data: stand-in faces" in evaluated[1]


def test_errors_follow_from_the_coordinates(evaluated, faces):
    """The regression, done again from the files on disk."""
    with np.load(os.path.join(evaluated[0], "coordinates.npz")) as found:
        names, cells, pixels = (found[name] for name in ("names", "cells", "pixels"))
    split = landmark_lists.split_names(faces)
    assert names.tolist() == split.training + split.testing
    np.testing.assert_allclose(pixels, metrics.to_pixels(cells), rtol=1e-6)
    listed = landmark_lists.read_landmarks(os.path.join(faces, landmark_lists.LANDMARK_FILE))
    y = landmark_lists.select(listed, names.tolist(), "list")
    measured = metrics.evaluate(pixels[:8], y[:8], pixels[8:], y[8:])
    result = read_result(evaluated[0])
    for name, errors in measured._asdict().items():
        assert result["error_percent"][name] == pytest.approx(errors.mean, rel=1e-3)
        np.testing.assert_allclose(result["error_percent_per_point"][name], errors.per_point,
                                   rtol=1e-3)
        assert f"| {errors.mean:.2f} |" in evaluated[1]


def test_tables_on_disk_agree(evaluated):
    with open(os.path.join(evaluated[0], "errors.csv"), newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["method", "lefteye", "righteye", "nose", "leftmouth", "rightmouth", "mean"]
    result = read_result(evaluated[0])
    assert [row[0] for row in rows] == list(evaluate.METHODS.values())
    for row, name in zip(rows, evaluate.METHODS):
        assert float(row[-1]) == pytest.approx(result["error_percent"][name], abs=1e-4)
    with open(os.path.join(evaluated[0], "coordinates.csv"), newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 14


def test_coordinates_are_those_of_the_network(evaluated, faces, checkpoint):
    """Of the last image, computed alone: the batch it was in does not matter."""
    with np.load(os.path.join(evaluated[0], "coordinates.npz")) as found:
        name, cells = str(found["names"][-1]), found["cells"][-1]
    path, = landmark_lists.find_images(faces, [name])
    with npu_session.new_graph().as_default(), tf.Session() as session:
        images = data_input.cut(data_input.read_frame(path, 146)[None])
        coordinates = model_def.build_evaluation(images, 8).coordinates
        npu_session.Checkpoints(checkpoint, tf.global_variables()).restore(session)
        np.testing.assert_allclose(session.run(coordinates)[0], cells, atol=1e-3)


def test_warps_depend_on_the_seed_only():
    drawn = [evaluate.draw_warps(5, evaluate.parse_args([f"--seed={seed}"])) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0.1
    assert drawn[0].shape == (5, 2, 7) and not drawn[0][:, :, 3:].any()


# ---------------------------------------------------------------- a network that is right


Oracle = collections.namedtuple("Oracle", "coordinates")


def blob_image(points):
    """float [218, 178, 3] in [0, 1]: a coloured blob at each of five points (x, y)."""
    rows, columns = np.mgrid[:218, :178]
    image = np.zeros((218, 178, 3))
    for (x, y), colour in zip(points, COLOURS):
        weight = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)[..., None]
        image = image * (1 - weight) + weight * colour
    return image


def find_blobs(images, layers):
    """Stands in for model_def.evaluate: where each colour is, on the same cells."""
    del layers
    seen = tf.nn.avg_pool((images[:, 22:106, 22:106] + 1) / 2, [1, 2, 2, 1], [1, 2, 2, 1], "VALID")
    found = []
    for colour in COLOURS:
        distance = tf.reduce_sum(tf.square(seen - tf.constant(colour, tf.float32)), 3)
        maps = tf.nn.softmax(tf.reshape(-30 * distance, [-1, 1764]))
        found.append(tf.stack([tf.reduce_sum(maps * tf.constant(plane, tf.float32), 1)
                               for plane in np.indices((42, 42)).reshape(2, -1)], 1))
    return Oracle(tf.stack(found, 1))


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    """(data folder, checkpoint folder): 24 + 8 images of blobs at their annotated points."""
    folder, random = tmp_path_factory.mktemp("blobs"), np.random.RandomState(0)
    (folder / "img_align").mkdir()
    names = [f"{number:06d}.png" for number in range(1, 33)]
    centre = np.array([[70, 95], [108, 95], [89, 115], [72, 135], [106, 135]])
    points = np.round(centre + random.uniform(-9, 9, size=(32, 5, 2)))
    for name, places in zip(names, points):
        matplotlib.image.imsave(str(folder / "img_align" / name), blob_image(places))
    landmark_lists.write_landmarks(str(folder / landmark_lists.LANDMARK_FILE), names, points)
    landmark_lists.write_partition(
        str(folder / landmark_lists.PARTITION_FILE),
        {name: 0 if number < 24 else 2 for number, name in enumerate(names)})
    return str(folder), golden_checkpoint.write(folder, K=5)


def test_right_landmarks_have_nearly_no_error(blobs, tmp_path, monkeypatch):
    """Landmarks found in the network's input lie on the originals' points, and follow the warp."""
    monkeypatch.setattr(model_def, "evaluate", find_blobs)
    data, checkpoint = blobs
    assert evaluate.main(flags(data, checkpoint, f"--result_dir={tmp_path}")) == 0
    result = read_result(str(tmp_path))
    assert result["K"] == 5 and result["data"] == f"images of {os.path.basename(data)}"
    with np.load(str(tmp_path / "coordinates.npz")) as found:
        listed = landmark_lists.read_landmarks(os.path.join(data, landmark_lists.LANDMARK_FILE))
        np.testing.assert_allclose(found["pixels"], listed.points, atol=1.2)
        assert abs((found["pixels"] - listed.points).mean()) < 0.3
    errors = result["error_percent"]
    assert max(errors["bias"], errors["no_bias"]) < 4 < 20 < errors["mean_shape"]
    assert result["equivariance_pixels"]["median"] < 0.7
    assert result["equivariance_pixels"]["ignoring_the_warp"] > 5


# ---------------------------------------------------------------- what is refused


def test_a_list_that_misses_images(copied, checkpoint, tmp_path):
    path = copied / landmark_lists.LANDMARK_FILE
    landmarks = landmark_lists.read_landmarks(str(path))
    landmark_lists.write_landmarks(str(path), landmarks.names[:-2], landmarks.points[:-2])
    assert "misses 2 of the 14 images asked for, 000037.jpg for one" in refused(
        copied, checkpoint, tmp_path)
    path.unlink()
    assert "has no list_landmarks_align_celeba.txt" in refused(copied, checkpoint, tmp_path)


def test_images_that_are_missing_or_broken(copied, checkpoint, tmp_path):
    (copied / "img_align_celeba" / "000033.jpg").write_bytes(b"\xff\xd8\xff")
    assert "000033.jpg cannot be used" in refused(copied, checkpoint, tmp_path)
    (copied / "img_align_celeba" / "000033.jpg").unlink()
    assert "1 of 14 listed images, 000033.jpg for one" in refused(copied, checkpoint, tmp_path)


def test_no_data_folder(checkpoint, tmp_path):
    assert "there is no folder" in refused(tmp_path / "none", checkpoint, tmp_path)


def test_no_checkpoint_or_another_program_s(faces, tmp_path):
    assert "no checkpoint in" in refused(faces, tmp_path / "none", tmp_path)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        tf.get_variable("other", [3])
        session.run(tf.global_variables_initializer())
        npu_session.Checkpoints(str(tmp_path)).save(session, "model-1")
    assert "has no cnn_tower/layer_6/conv/filter" in refused(faces, tmp_path, tmp_path)


def test_a_checkpoint_of_another_k(faces, checkpoint, tmp_path):
    message = refused(faces, checkpoint, tmp_path, "--K=5")
    assert "cnn_tower/layer_6/conv/filter [5, 5, 256, 8], this model [5, 5, 256, 5]" in message


def test_crop_larger_than_scale(faces, checkpoint):
    with pytest.raises(InputError, match="--crop_size=150 is larger"):
        evaluate.parse_args(flags(faces, checkpoint, "--crop_size=150"))


def test_landmarks_that_are_not_finite(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(model_def, "evaluate", lambda images, layers: Oracle(
        find_blobs(images, layers).coordinates * np.nan))
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate.main(flags(*blobs, f"--result_dir={tmp_path}"))


def test_folder_that_cannot_be_written(faces, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the folder"):
        evaluate.main(flags(faces, checkpoint, f"--result_dir={tmp_path}/file/result"))


@pytest.mark.parametrize("flag", ["--resume=True", "--K=0", "--batch_size=0", "--seed=-1"])
def test_wrong_flags(flag):
    with pytest.raises(SystemExit) as leaving:
        evaluate.parse_args([flag])
    assert leaving.value.code == 2


def test_program_ends_with_one_sentence(run_program, tmp_path):
    code, _, err = run_program("evaluate.py", "--data_path", tmp_path, "--output_dir",
                               tmp_path / "o")
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "neither training.txt and testing.txt" in errors[0]
    assert "Traceback" not in err
