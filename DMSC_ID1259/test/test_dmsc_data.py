"""data_input.py: the .mat file, what is wrong with one, and the order of batches."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
import pytest
import scipy.io
import tensorflow.compat.v1 as tf

import data_input
import golden_rules
import network
import npu_session
import training_runs
from npu_session import InputError
from training_runs import MODALITIES, SAMPLES, SUBJECTS, write_mat


@pytest.fixture(scope="module")
def content():
    """Content of the small file; copy it before changing it."""
    return training_runs.small_content()


def written(folder, content, **changes):
    """Path of a .mat file with the content, changed; a change to None removes the key."""
    changed = {key: value for key, value in dict(content, **changes).items() if value is not None}
    return os.path.join(write_mat(folder, changed), "small.mat")


# ---------------------------------------------------------------- golden


def test_golden_file_and_its_first_image(tmp_path):
    golden, content = golden_rules.load("pipeline"), golden_rules.PIPELINE_DATA(
        golden_rules.find_seed())
    sums = [content[f"modality_{m}"].sum(dtype=np.int64) for m in range(len(golden["mat_colsum"]))]
    np.testing.assert_array_equal(sums, golden["mat_colsum"])
    np.testing.assert_array_equal(content["modality_0"][:16, 0], golden["mat0_first16"])
    data = data_input.load(written(tmp_path, content))
    np.testing.assert_array_equal(data.images[0][0, :, :, 0], golden["img0_sample0"])
    assert len(data.images) == golden_rules.PIPELINE_MODALITIES
    np.testing.assert_array_equal(data.labels, np.repeat([1, 2, 3], 8))


@pytest.mark.parametrize("name", ["nb_N7_B7", "nb_N7_B3"])
def test_golden_batches(name):
    """Columns: samples delivered, index in the epoch, epochs completed."""
    samples, batch_size = (int(part[1:]) for part in name.split("_")[1:])
    golden = golden_rules.load("pipeline")[name]
    order = data_input.BatchOrder(samples, batch_size, seed=0)
    np.testing.assert_array_equal(order.rows(0, len(golden)), golden[:, :batch_size])
    for batch, (index, epochs) in enumerate(golden[:, batch_size:]):
        assert divmod(batch, order.per_pass) == (epochs, index // batch_size - 1)


def test_golden_order_of_pretraining():
    golden = golden_rules.load("pipeline")
    calls, samples = golden["pre_order"].shape
    order = data_input.BatchOrder(samples, samples, seed=0)
    np.testing.assert_array_equal(order.rows(0, calls), golden["pre_order"])
    np.testing.assert_array_equal(golden["pre_epoch"], np.arange(calls))


# ---------------------------------------------------------------- loading


def test_a_pixel_goes_where_matlab_puts_it(tmp_path, content):
    matrix = np.zeros((1024, SAMPLES))
    matrix[3 * 32 + 5, 2] = 200  # column 3, row 5 of image 2
    data = data_input.load(written(tmp_path, content, modality_1=matrix))
    assert data.images[1].dtype == np.float32 and data.images[1].shape == (SAMPLES, 32, 32, 1)
    assert np.argwhere(data.images[1]).tolist() == [[2, 5, 3, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64, bool])
def test_any_numeric_type_is_read(dtype, tmp_path, content):
    matrix = (content["modality_0"] % 2).astype(dtype)
    data = data_input.load(written(tmp_path, content, modality_0=matrix))
    np.testing.assert_array_equal(
        data.images[0], matrix.T.reshape(-1, 32, 32, 1).swapaxes(1, 2).astype(np.float32))


@pytest.mark.parametrize("labels", [
    np.repeat([0, 1, 2], 8)[None], np.repeat([1, 2, 3], 8)[:, None],
    np.repeat([5, 7, 90], 8)[None].astype(np.float64), np.repeat([-2, 0, 1], 8)[None].astype(int)])
def test_labels_from_any_number_in_a_row_or_column(labels, tmp_path, content):
    data = data_input.load(written(tmp_path, content, Label=labels))
    np.testing.assert_array_equal(data.labels, np.repeat([1, 2, 3], 8))
    assert data.clusters == 3 and isinstance(data.clusters, int)


def test_more_than_42_classes_do_not_overflow_a_byte(tmp_path, content):
    labels = np.repeat(np.arange(50), 7)[None].astype(np.uint8)
    changes = {f"modality_{m}": np.tile(content[f"modality_{m}"], 15)[:, :350]
               for m in range(MODALITIES)}
    data = data_input.load(written(tmp_path, content, Label=labels, **changes))
    assert 6 * data.clusters + 1 == 301


def test_without_labels_the_number_of_clusters_is_needed(tmp_path, content):
    path = written(tmp_path, content, Label=None)
    with pytest.raises(InputError, match="no Label: give the number of clusters with --clusters"):
        data_input.load(path)
    data = data_input.load(path, clusters=3)
    assert data.labels is None and data.clusters == 3


def test_first_subjects(tmp_path, content):
    shuffled = np.random.RandomState(0).permutation(SAMPLES)
    changes = {f"modality_{m}": content[f"modality_{m}"][:, shuffled] for m in range(MODALITIES)}
    path = written(tmp_path, content, Label=content["Label"][:, shuffled], **changes)
    data = data_input.load(path, subjects=2)
    assert data.clusters == 2 and len(data.images[0]) == 16 and "first 2 subjects" in data.name
    assert sorted(data.labels) == [1] * 8 + [2] * 8
    plain = data_input.load(path)
    np.testing.assert_array_equal(data.images[1], plain.images[1][plain.labels <= 2])
    with pytest.raises(InputError, match="has only 3 classes"):
        data_input.load(path, subjects=4)


def test_names_of_data_and_modalities(tmp_path, content):
    data = data_input.load(written(tmp_path, content))
    assert (data.name, data.is_standin) == ("small", False)
    assert data.names == ["modality 0", "modality 1"]
    data = data_input.load(written(tmp_path, content, standin="made", modality_names=np.array(
        ["face", "nose"], object)))
    assert data.name == "stand-in faces small" and data.is_standin
    assert data.names == ["face", "nose"]


# ---------------------------------------------------------------- bad files


def square(side):
    return np.zeros((side * side, SAMPLES), np.uint8)


def nan_at(content, value=np.nan):
    matrix = content["modality_1"].astype(np.float64)
    matrix[7, 3] = value
    return matrix


@pytest.mark.parametrize("changes, text", [
    ({"num_modalities": None}, "no num_modalities; its keys are Label, modality_0, modality_1"),
    ({"num_modalities": 0}, "num_modalities is"),
    ({"num_modalities": 1.5}, "num_modalities is"),
    ({"num_modalities": "two"}, "num_modalities is"),
    ({"num_modalities": 3}, "no modality_2, though num_modalities is 3"),
    ({"modality_1": None}, "no modality_1"),
    ({"modality_1": np.zeros((1000, SAMPLES))}, "modality_1 has 1000 rows, which is no square"),
    ({"modality_1": square(16)}, "256 rows, which is images of 16 x 16"),
    ({"modality_1": np.zeros((SAMPLES, 1024))}, f"modality_1 has {SAMPLES} rows"),
    ({"modality_1": np.zeros((1024, SAMPLES - 1))}, "modality_0 24, modality_1 23"),
    ({"modality_1": np.zeros((32, 32, SAMPLES))}, "modality_1 is not a matrix"),
    ({"modality_1": np.zeros((1024, SAMPLES), complex)}, "not a matrix of real numbers"),
    ({"modality_1": "words"}, "modality_1 is not a matrix"),
    ({"modality_1": np.full((1024, SAMPLES), 256)}, "values from 256 to 256"),
    ({"modality_1": np.full((1024, SAMPLES), -1)}, "values from -1 to -1, expected grey levels"),
    ({"Label": np.ones((1, SAMPLES - 1))}, "Label has 23 numbers for 24 images"),
    ({"Label": np.full((1, SAMPLES), 1.5)}, "something else than whole numbers"),
    ({"Label": np.full((1, SAMPLES), np.nan)}, "something else than whole numbers"),
    ({"Label": np.ones((1, SAMPLES))}, "1 cluster; there is nothing to tell apart"),
    ({"Label": np.repeat(np.arange(4), 6)[None]}, "24 images for 4 clusters; more than 6 K"),
])
def test_what_is_wrong_with_the_file_is_named(changes, text, tmp_path, content):
    path = written(tmp_path, content, **changes)
    with pytest.raises(InputError) as error:
        data_input.load(path)
    assert text in str(error.value) and path in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_found(value, tmp_path, content):
    with pytest.raises(InputError, match="at pixel 7 of image 3"):
        data_input.load(written(tmp_path, content, modality_1=nan_at(content, value)))


def test_pixels_of_0_to_1_are_warned_about(tmp_path, content, capsys):
    path = written(tmp_path, content, modality_1=content["modality_1"] / 255.0)
    assert data_input.load(path).images[1].max() <= 1
    warning = capsys.readouterr().err
    assert "modality_1 has values from 0 to 1" in warning
    assert "multiply the images by 255" in warning
    data_input.load(written(tmp_path, content))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", [b"", b"<html>404</html>", None, "cut", "flip"])
def test_a_damaged_or_missing_file_is_one_sentence(damage, tmp_path, content):
    path = str(tmp_path / "small.mat")
    scipy.io.savemat(path, content, do_compression=True)  # only then it has checksums
    with open(path, "rb") as file:
        whole = file.read()
    if damage is None:
        os.remove(path)
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 0xff]) + whole[middle + 1:]
        with open(path, "wb") as file:
            file.write({"cut": whole[:middle], "flip": flipped}.get(damage, damage))
    with pytest.raises(InputError, match=r"there is no data file|cannot be read|has no "):
        data_input.load(path)


def test_a_matlab_7_3_file_is_named(tmp_path):
    path = tmp_path / "small.mat"
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(header + b"\x89HDF\r\n\x1a\n" * 64)
    with pytest.raises(InputError, match="save it with -v7"):
        data_input.load(str(path))


def test_bytes_of_a_file_that_scipy_wrote_compressed_are_read(tmp_path, content):
    scipy.io.savemat(str(tmp_path / "c.mat"), content, do_compression=True)
    assert data_input.load(str(tmp_path / "c.mat")).clusters == SUBJECTS


# ---------------------------------------------------------------- order of batches, residence


def test_every_pass_has_every_sample_once_and_any_place_can_be_entered():
    order = data_input.BatchOrder(10, 5, seed=3)
    rows = order.rows(0, 8)
    for number in range(4):
        assert sorted(rows[2 * number:2 * number + 2].ravel()) == list(range(10))
    assert rows[0].tolist() == [0, 1, 2, 3, 4] and rows[2].tolist() != [0, 1, 2, 3, 4]
    for first in (6, 2, 0, 5):
        np.testing.assert_array_equal(order.rows(first, 2), rows[first:first + 2])
        np.testing.assert_array_equal(data_input.BatchOrder(10, 5, 3).rows(first, 2),
                                      rows[first:first + 2])


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_cannot_be_is_refused(batch_size):
    with pytest.raises(InputError, match="choose 1 to 10"):
        data_input.BatchOrder(10, batch_size, seed=0)


def test_rows_arrive_in_the_graph_in_their_order():
    rows = data_input.BatchOrder(6, 3, seed=0).rows(0, 5)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        pipeline = data_input.row_pipeline(3)
        following = pipeline.next_rows()
        for first in (0, 2):
            session.run(pipeline.initializer, pipeline.feed(rows[first:]))
            np.testing.assert_array_equal([session.run(following) for _ in range(3)],
                                          rows[first:first + 3])


def test_resident_arrays_are_in_no_checkpoint_and_not_in_the_graph():
    images = [network.pack(np.full((4, 32, 32, 1), value, np.float32)) for value in (1, 2)]
    with npu_session.new_graph().as_default() as graph, tf.Session() as session:
        variables, fill, feed = data_input.resident(images)
        session.run(fill, feed)
        for variable, image in zip(variables, images):
            np.testing.assert_array_equal(session.run(variable), image)
        assert tf.global_variables() == [] == tf.trainable_variables()
        assert graph.as_graph_def().ByteSize() < images[0].nbytes


def test_equalised_images_have_the_same_energy_and_directions(tmp_path):
    content = training_runs.small_content()
    content["modality_1"] = content["modality_1"].copy()
    content["modality_1"][:, 3] = 0
    path = os.path.join(write_mat(tmp_path, content), "small.mat")
    plain, equal = data_input.load(path), data_input.load(path, equalise=True)
    assert equal.name == "small, equalised"
    for before, after in zip(plain.images, equal.images):
        before, after = (image.reshape(SAMPLES, -1).astype(np.float64) for image in (before, after))
        energy, lit = np.square(before).sum(1), before.any(axis=1)
        assert len(set(np.round(energy))) > 2
        np.testing.assert_allclose(np.square(after[lit]).sum(1), energy.mean(), rtol=1e-5)
        np.testing.assert_allclose(after[lit] * np.linalg.norm(before[lit], axis=1)[:, None],
                                   before[lit] * np.sqrt(energy.mean()), rtol=1e-4)
    np.testing.assert_array_equal(equal.images[1][3], 0)
