"""MNIST's idx files, good and bad, the order of batches, and the training pipeline."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import gzip
import os
import shutil
import struct

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import main
import npu_session
from golden_rules import find_seed, load
from npu_session import InputError

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REAL_MNIST = os.path.join(
    os.environ.get("REAL_DATA_DIR") or os.path.join(REPOSITORY, os.pardir, "shared", "data"),
    "mnist")


def image_file(count=3, announced=None, height=28, width=28, magic=2051):
    """Content of an idx file of images; pixels 0, 1, 2, ... modulo 251."""
    pixels = np.arange(count * height * width) % 251
    header = struct.pack(">iiii", magic, count if announced is None else announced, height, width)
    return header + pixels.astype(np.uint8).tobytes()


def label_file(labels, announced=None):
    """Content of an idx file of labels."""
    count = len(labels) if announced is None else announced
    return struct.pack(">ii", 2049, count) + bytes(labels)


def good_contents():
    """Name -> content of the four files: 24 training and 5 test images."""
    return {"train-images-idx3-ubyte": image_file(24),
            "train-labels-idx1-ubyte": label_file([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1] * 2),
            "t10k-images-idx3-ubyte": image_file(5),
            "t10k-labels-idx1-ubyte": label_file([9, 8, 7, 6, 5])}


def write_files(folder, contents, ending=".gz"):
    """Writes the contents, gzipped if the ending is .gz; returns the folder as str."""
    os.makedirs(str(folder), exist_ok=True)
    for name, content in contents.items():
        packed = gzip.compress(content) if ending == ".gz" else content
        with open(os.path.join(str(folder), name + ending), "wb") as file:
            file.write(packed)
    return str(folder)


def write_raw(folder, name, content):
    """Writes one file as it is; returns its path."""
    path = os.path.join(str(folder), name)
    with open(path, "wb") as file:
        file.write(content)
    return path


def quiet(line):
    """A log function that only checks the line."""
    assert line.startswith("Extracting ")


def batch_golden():
    """batches.npz and the number of images in its data set."""
    golden = load("batches")
    return golden, int(golden["indices"].max()) + 1


# ---------------------------------------------------------------- order of batches


def test_golden_order_of_batches():
    """indices [batches, batch size] of a set of 250 images, seed SEED."""
    golden, count = batch_golden()
    batches, batch_size = golden["indices"].shape
    rows = data_input.BatchOrder(count, batch_size, find_seed()).rows(0, batches)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, golden["indices"])


def test_golden_order_can_be_entered_anywhere():
    """A resumed run asks for batches from the middle first, and may go back."""
    golden, count = batch_golden()
    batches, batch_size = golden["indices"].shape
    order = data_input.BatchOrder(count, batch_size, find_seed())
    for first in [batches - 1, batches // 2, 0, 1, batches - 2]:
        for length in range(1, batches - first + 1):
            np.testing.assert_array_equal(order.rows(first, length),
                                          golden["indices"][first:first + length])


def test_golden_pixel_scaling():
    """first_pixel_first_batch = to_float of the image number, bit-equal; also in the pipeline."""
    golden, count = batch_golden()
    batch_size = golden["indices"].shape[1]
    first = golden["indices"][0].astype(np.uint8)
    np.testing.assert_array_equal(data_input.to_float(first), golden["first_pixel_first_batch"])
    images = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 784, axis=1)
    rows = data_input.BatchOrder(count, batch_size, find_seed()).rows(0, 1)
    x, _ = pipeline_batches(images, rows, 0, find_seed())[0]
    np.testing.assert_array_equal(x[:, 0], golden["first_pixel_first_batch"])


def test_every_pass_holds_each_image_once():
    rows = data_input.BatchOrder(30, 10, seed=5).rows(0, 12)
    for one_pass in rows.reshape(4, 30):
        np.testing.assert_array_equal(np.sort(one_pass), np.arange(30))


def test_order_depends_on_the_seed():
    orders = [data_input.BatchOrder(30, 10, seed).rows(0, 3) for seed in (5, 5, 6)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


def test_batch_as_large_as_the_set_works_and_a_larger_one_is_refused():
    rows = data_input.BatchOrder(7, 7, seed=0).rows(0, 2)
    np.testing.assert_array_equal(np.sort(rows, axis=1), [np.arange(7)] * 2)
    with pytest.raises(InputError, match="--batch_size=8 is more than the 7 training images"):
        data_input.BatchOrder(7, 8, seed=0)


# ---------------------------------------------------------------- pipeline


def pipeline_batches(images, rows, first_step, seed):
    """The (x, eps) that the pipeline delivers for the rows, and that it then ends."""
    with npu_session.new_graph().as_default():
        pipeline = data_input.training_pipeline(images, rows.shape[1], 20, seed)
        batch = pipeline.next_batch()
        with tf.Session() as session:
            session.run(pipeline.initializer, pipeline.feed(rows, first_step))
            batches = [session.run(batch) for _ in rows]
            with pytest.raises(tf.errors.OutOfRangeError):
                session.run(batch)
    return batches


def test_pipeline_delivers_the_rows_scaled_exactly():
    images = np.random.RandomState(0).randint(0, 256, (9, 784)).astype(np.uint8)
    rows = np.array([[3, 1, 4, 1], [5, 8, 2, 6]], np.int32)
    for row, (x, eps) in zip(rows, pipeline_batches(images, rows, 0, seed=3)):
        assert x.dtype == eps.dtype == np.float32 and eps.shape == (4, 20)
        np.testing.assert_array_equal(x, data_input.to_float(images[row]))


def test_pipeline_noise_depends_on_seed_and_step_only():
    images, rows = np.zeros((4, 784), np.uint8), np.zeros((3, 50), np.int32)
    whole = [eps for _, eps in pipeline_batches(images, rows, 0, seed=3)]
    entered = [eps for _, eps in pipeline_batches(images, rows[:2], 1, seed=3)]
    np.testing.assert_array_equal(whole[1:], entered)
    assert (whole[0] != whole[1]).all()
    other = pipeline_batches(images, rows[:1], 0, seed=4)[0][1]
    assert (whole[0] != other).all()
    assert abs(np.mean(whole)) < 0.08 and abs(np.std(whole) - 1) < 0.06  # 4 sigma of 3000 numbers


# ---------------------------------------------------------------- good files


def check_good(data):
    """The files of good_contents(), of which 24 // 12 images are set aside for validation."""
    assert data.train.shape == (22, 784) and data.test.shape == (5, 784)
    assert data.train.dtype == data.test.dtype == data.train_labels.dtype == np.uint8
    assert data.train_file_count == 24
    np.testing.assert_array_equal(data.train.ravel(), np.arange(2 * 784, 24 * 784) % 251)
    np.testing.assert_array_equal(data.train_labels[:3], [2, 3, 4])
    np.testing.assert_array_equal(data.test_labels, [9, 8, 7, 6, 5])


@pytest.mark.parametrize("ending", [".gz", ""])
@pytest.mark.parametrize("subfolder", ["", "MNIST-data"])
def test_files_are_found_gzipped_or_not_and_in_mnist_data(tmp_path, ending, subfolder):
    write_files(tmp_path / subfolder, good_contents(), ending)
    lines = []
    data = data_input.load(str(tmp_path), lines.append)
    check_good(data)
    assert data.name == "MNIST"
    folder = os.path.join(str(tmp_path), subfolder) if subfolder else str(tmp_path)
    assert lines == ["Extracting " + os.path.join(folder, name + ending)
                     for name in data_input.FILES.values()]


def test_standin_data_is_named_as_such(small_data):
    data = data_input.load(small_data, quiet)
    assert data.name == "stand-in digits"
    assert data.train.shape == (1100, 784) and data.test.shape == (300, 784)
    assert data.train_file_count == 1200
    assert len(data.train_labels) == 1100 and len(data.test_labels) == 300


def test_real_mnist():
    """Counts, and the published mean and standard deviation of the training pixels."""
    if not os.path.isdir(REAL_MNIST):
        pytest.skip(f"no MNIST in {REAL_MNIST} (set REAL_DATA_DIR)")
    data = data_input.load(REAL_MNIST, quiet)
    assert data.name == "MNIST" and data.train_file_count == 60000
    assert data.train.shape == (55000, 784) and data.test.shape == (10000, 784)
    assert data.train_labels.shape == (55000,) and data.test_labels.shape == (10000,)
    assert np.bincount(data.test_labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(data.train.mean() / 255 - 0.1307) < 5e-4
    assert abs(data.train.std() / 255 - 0.3081) < 5e-4


# ---------------------------------------------------------------- bad files


BAD_IMAGES = {
    "truncated gzip": (gzip.compress(image_file())[:-12], "cannot be read"),
    "damaged gzip": (gzip.compress(image_file())[:40] + b"\xff" * 40
                     + gzip.compress(image_file())[80:], "cannot be read"),
    "HTML": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "cannot be read"),
    "empty": (b"", "holds 0 bytes"),
    "only a header's beginning": (gzip.compress(image_file()[:10]), "holds 10 bytes"),
    "labels": (gzip.compress(label_file([1] * 20)), "begins with the number 2049, not 2051"),
    "wrong magic": (gzip.compress(image_file(magic=2052)), "begins with the number 2052"),
    "27 x 28": (gzip.compress(image_file(height=27)), "27 x 28, not 28 x 28"),
    "one image missing": (gzip.compress(image_file(3, announced=4)), "announces 4 items"),
    "one image too many": (gzip.compress(image_file(3, announced=2)), "announces 2 items"),
    "no images": (gzip.compress(image_file(0)), "announces 0 items"),
    "negative count": (gzip.compress(image_file(3, announced=-3)), "announces -3 items"),
    "count that overflows": (gzip.compress(image_file(3, announced=3 + 2 ** 28)),
                             "announces 268435459 items"),
}


@pytest.mark.parametrize("kind", sorted(BAD_IMAGES))
def test_bad_image_file_is_one_clear_error(tmp_path, kind):
    content, message = BAD_IMAGES[kind]
    path = write_raw(tmp_path, "train-images-idx3-ubyte.gz", content)
    with pytest.raises(InputError, match=message) as caught:
        data_input.read_idx(path, data_input.IMAGE_MAGIC)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_bad_label_file_is_one_clear_error(tmp_path):
    path = write_raw(tmp_path, "labels", label_file([1, 2, 3], announced=4))
    with pytest.raises(InputError, match="announces 4 items of 1 bytes but holds 3"):
        data_input.read_idx(path, data_input.LABEL_MAGIC)
    path = write_raw(tmp_path, "labels", image_file())
    with pytest.raises(InputError, match="2051, not 2049"):
        data_input.read_idx(path, data_input.LABEL_MAGIC)


def test_folder_in_place_of_a_file_is_passed_over(tmp_path):
    write_files(tmp_path, good_contents())
    os.remove(str(tmp_path / "t10k-labels-idx1-ubyte.gz"))
    os.mkdir(str(tmp_path / "t10k-labels-idx1-ubyte.gz"))
    with pytest.raises(InputError, match="has no t10k-labels-idx1-ubyte.gz"):
        data_input.load(str(tmp_path), quiet)


@pytest.mark.parametrize("missing", sorted(data_input.FILES.values()))
def test_missing_file_is_named(tmp_path, missing):
    contents = good_contents()
    del contents[missing]
    with pytest.raises(InputError, match=f"has no {missing}.gz"):
        data_input.load(write_files(tmp_path, contents), quiet)


@pytest.mark.parametrize("folder", ["", "not there"])
def test_empty_or_absent_folder_says_what_to_do(tmp_path, folder):
    with pytest.raises(InputError, match="no MNIST files in .*make_standin_data.py"):
        data_input.load(str(tmp_path / folder), quiet)


@pytest.mark.parametrize("split, name", [("train", "train-labels-idx1-ubyte"),
                                         ("test", "t10k-labels-idx1-ubyte")])
def test_labels_and_images_of_different_counts(tmp_path, split, name):
    folder = write_files(tmp_path, dict(good_contents(), **{name: label_file([1, 2, 3])}))
    with pytest.raises(InputError, match=f"{split} images but 3 {split} labels"):
        data_input.load(folder, quiet)


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"])
def test_label_above_nine(tmp_path, name):
    contents = good_contents()
    contents[name] = contents[name][:-1] + b"\x0a"
    with pytest.raises(InputError, match="label is 10"):
        data_input.load(write_files(tmp_path, contents), quiet)


def refused(capsys, *flags):
    """Runs main.py's program in this process; it must end with code 2 and one sentence, returned.

    Returns: (the sentence on stderr, what it had printed before on stdout).
    """
    capsys.readouterr()
    assert npu_session.run_main(main.main, list(flags)) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err, output.out


@pytest.mark.parametrize("flags, message", [
    (["--batch_size=1101", "--num_samples=2000"], "--batch_size=1101 is more than the 1100"),
    (["--num_samples=99"], "--num_samples=99 is less than one batch of 100")])
def test_fewer_images_than_a_batch_is_refused_before_training(small_data, tmp_path, capsys, flags,
                                                              message):
    output = str(tmp_path / "output")
    error, printed = refused(capsys, "--data_dir=" + small_data, "--output_dir=" + output, *flags)
    assert message in error and "start training" not in printed
    assert not os.path.exists(output)  # a corrected second try finds no run with other flags


def test_damaged_data_is_refused_before_anything_is_written(small_data, tmp_path, capsys):
    folder, output = str(tmp_path / "data"), str(tmp_path / "output")
    shutil.copytree(small_data, folder)
    path = os.path.join(folder, "t10k-images-idx3-ubyte.gz")
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    error, _ = refused(capsys, "--data_dir=" + folder, "--output_dir=" + output)
    assert path in error and not os.path.exists(output)
