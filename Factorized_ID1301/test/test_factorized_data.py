"""Image files, batches, pairs and pipelines."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import golden_rules
import npu_session
import VDSR
from golden_rules import assert_close, stats
from npu_session import InputError
from utils import warp

PLAIN = data_input.Preparation(scale_size=146, crop_size=146, pair_warp=0.1, tps_weight=0.0,
                               exact_coordinates=False, seed=3)


def flags():
    return VDSR.parse_args(["--threads=1"])


def write(path, content):
    with open(str(path), "wb") as file:
        file.write(content)
    return str(path)


def run_in_graph(build):
    """Value of what build() makes."""
    with tf.Graph().as_default():
        made = build()
        with tf.Session() as session:
            return session.run(made)


def encoded(image, ending):
    """Bytes of a uint8 image [h, w, channels] as .jpg or .png."""
    encode = tf.image.encode_png if ending == ".png" else tf.image.encode_jpeg
    return run_in_graph(lambda: encode(image))


def noise(height, width, channels, seed=0):
    rs = np.random.RandomState(seed)
    return rs.randint(0, 256, (height, width, channels)).astype(np.uint8)


# ---------------------------------------------------------------- golden


@pytest.fixture(scope="module")
def golden_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden_images")
    golden = golden_rules.load("pipeline")
    return [write(folder / f"{i:06d}.jpg", golden[f"jpeg_{i}"].tobytes()) for i in (1, 2)]


def test_golden_decoding_and_resizing(golden_paths):
    golden = golden_rules.load("pipeline")
    decoded, frame = run_in_graph(lambda: (
        data_input.decode(tf.read_file(golden_paths[0])),
        data_input.read_frame(golden_paths[0], 146)))
    np.testing.assert_array_equal(decoded[::8, ::8], golden["decoded_1_every8"])
    assert decoded.mean() == pytest.approx(float(golden["decoded_1_mean"]), rel=1e-6)
    assert_close(frame[::4, ::4], golden["resized146_1_every4"], 1e-5)
    assert_close(stats(frame)[:3], golden["resized146_1_stats"], 1e-5)


@pytest.mark.parametrize("mode", ["train", "test"])
def test_golden_pairs(golden_paths, mode):
    golden = golden_rules.load("pipeline")

    def pair():
        frames = tf.stack([data_input.read_frame(path, 146) for path in golden_paths])
        first, second = (warp.transformations(tf.constant(np.stack([golden[name]] * 2)))
                         for name in ("draws_w0", "draws_w01"))
        images, deformed, positions = data_input.make_pairs(
            frames, first if mode == "train" else None, second, PLAIN)
        return images, deformed, positions, second
    images, deformed, positions, T = run_in_graph(pair)
    assert_close(T, golden[f"{mode}_T"], 1e-5)
    for name, found in (("A", images), ("B", deformed)):
        assert_close(found[:, ::4, ::4], golden[f"{mode}_{name}_every4"], 1e-5)
        assert_close(stats(found), golden[f"{mode}_{name}_stats"], 1e-5)
    np.testing.assert_array_equal(positions, run_in_graph(
        lambda: warp.warped_cells(tf.constant(T))))


# ---------------------------------------------------------------- files


def test_images_are_sorted_by_number_or_by_name(tmp_path):
    for name in ("10.jpg", "9.jpg", "000011.PNG", ".hidden.jpg", "notes.txt"):
        write(tmp_path / name, b"x")
    names = [os.path.basename(path) for path in data_input.find_images(str(tmp_path))]
    assert names == ["9.jpg", "10.jpg", "000011.PNG"]
    write(tmp_path / "a.jpeg", b"x")
    names = [os.path.basename(path) for path in data_input.find_images(str(tmp_path))]
    assert names == ["000011.PNG", "10.jpg", "9.jpg", "a.jpeg"]


def test_images_may_lie_in_data10w(tmp_path):
    (tmp_path / "data10w").mkdir()
    path = write(tmp_path / "data10w" / "1.jpg", b"x")
    assert data_input.find_images(str(tmp_path)) == [path]
    other = write(tmp_path / "2.jpg", b"x")
    assert data_input.find_images(str(tmp_path)) == [other]


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no folder .*nowhere"):
        data_input.find_images(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds no images: expected .jpg, .jpeg, .png"):
        data_input.find_images(str(tmp_path))


# ---------------------------------------------------------------- order of batches


def test_every_epoch_is_a_permutation_without_the_remainder():
    order = data_input.BatchOrder(11, 3, seed=5)
    assert order.per_epoch == 3
    rows = order.rows(0, 7)
    assert rows.shape == (7, 3) and rows.dtype == np.int32
    for epoch in (rows[:3], rows[3:6]):
        assert len(set(epoch.ravel())) == 9
    assert not np.array_equal(rows[:3], rows[3:6])
    np.testing.assert_array_equal(order.rows(4, 3), rows[4:7])
    assert not np.array_equal(data_input.BatchOrder(11, 3, seed=6).rows(0, 7), rows)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="--batch_size=4 is more than the 3 images"):
        data_input.BatchOrder(3, 4, 0)


# ---------------------------------------------------------------- one image


@pytest.mark.parametrize("ending, channels", [(".jpg", 1), (".jpg", 3), (".png", 1), (".png", 3),
                                              (".png", 4)])
def test_grey_colour_and_transparent_images_become_rgb(tmp_path, ending, channels):
    smooth = np.full((40, 30, channels), 90, np.uint8)
    smooth[:20, :, 0] = 200
    path = write(tmp_path / ("x" + ending), encoded(smooth, ending))
    image = run_in_graph(lambda: data_input.decode(tf.read_file(path)))
    assert image.shape == (40, 30, 3)
    expected = np.repeat(smooth, 3, 2) if channels == 1 else smooth[:, :, :3]
    assert np.abs(image[::39].astype(int) - expected[::39]).max() <= 6


def test_mixed_sizes_and_formats_make_one_batch(tmp_path):
    for number, (height, width, ending) in enumerate([(218, 178, ".jpg"), (100, 300, ".png"),
                                                      (146, 146, ".jpeg"), (30, 20, ".png")]):
        write(tmp_path / f"{number}{ending}", encoded(noise(height, width, 3), ending))
    paths = data_input.find_images(str(tmp_path))
    np.testing.assert_array_equal(data_input.image_sizes(paths, flags()),
                                  [(218, 178), (100, 300), (146, 146), (30, 20)])
    images = evaluated(paths, 2)[0]
    assert images.shape == (4, 128, 128, 3) and np.isfinite(images).all()


CMYK = "FFD8FFEE000E41646F626500640000000000"  # start and Adobe's mark, transform 0


def test_cmyk_jpegs_become_rgb(tmp_path):
    """A JPEG of four components of 8 x 8 pixels, all coefficients 0, i.e. mid values."""
    quantisation = "FFDB004300" + "01" * 64
    frame = "FFC00014080008000804" + "".join(f"0{i}1100" for i in range(1, 5))
    tables = "FFC4001400" + "01" + "00" * 15 + "00" + "FFC4001410" + "01" + "00" * 15 + "00"
    scan = "FFDA000E04" + "".join(f"0{i}00" for i in range(1, 5)) + "003F00" + "00" + "FFD9"
    path = write(tmp_path / "1.jpg", bytes.fromhex(CMYK + quantisation + frame + tables + scan))
    image = run_in_graph(lambda: data_input.decode(tf.read_file(path)))
    assert image.shape == (8, 8, 3) and image.min() == image.max() in range(60, 70)
    np.testing.assert_array_equal(data_input.image_sizes([path], flags()), [(8, 8)])


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "html", "text", "gone"])
@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_broken_images_are_named_before_training(tmp_path, damage, ending):
    content = encoded(noise(50, 40, 3), ending)
    broken = {"empty": b"", "cut": content[:len(content) // 2], "garbage": os.urandom(500),
              "html": b"<html>404</html>", "text": b"x", "gone": None}[damage]
    paths = [write(tmp_path / f"{i}{ending}", content) for i in range(4)]
    if broken is None:
        os.remove(paths[2])
    else:
        write(paths[2], broken)
    with pytest.raises(InputError) as refused:
        data_input.image_sizes(paths, flags())
    sentence = str(refused.value)
    assert sentence.startswith(paths[2] + " cannot be used: ") and "\n" not in sentence
    assert "copy it again, or remove it" in sentence


def test_kept_images_are_the_resized_ones_rounded(faces):
    paths = data_input.find_images(faces)[:3]
    kept = data_input.load_images(paths, flags())
    assert kept.dtype == np.uint8 and kept.shape == (3, 146, 146, 3)
    frame = run_in_graph(lambda: data_input.read_frame(paths[1], 146))
    assert np.abs(kept[1] / 127.5 - 1 - frame).max() <= 0.5 / 127.5 + 1e-6


# ---------------------------------------------------------------- pipelines


def batches(source, rows, first_step, preparation=PLAIN, threads=1):
    """The training pipeline's batches of the steps, a list of (images, deformed, positions)."""
    with tf.Graph().as_default(), tf.Session() as session:
        pipeline = data_input.training_pipeline(source, rows.shape[1], preparation, threads)
        following = pipeline.next_batch()
        assert all(tensor.shape.is_fully_defined() for tensor in following)
        session.run(pipeline.initializer, pipeline.feed(rows, first_step))
        found = [session.run(following) for _ in rows]
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run(following)
    return found


def assert_same_batches(ours, theirs):
    for one, other in zip(ours, theirs):
        for mine, expected in zip(one, other):
            np.testing.assert_array_equal(mine, expected)


ROWS = np.array([[0, 5, 2], [7, 7, 1], [3, 4, 6], [0, 5, 2]], np.int32)


@pytest.fixture(scope="module")
def paths(faces):
    return data_input.find_images(faces)


@pytest.fixture(scope="module")
def four_batches(paths):
    return batches(paths, ROWS, 10)


def test_batches_depend_on_seed_and_step_only(paths, four_batches):
    assert_same_batches(batches(paths, ROWS[2:], 12, threads=3), four_batches[2:])
    other_seed = batches(paths, ROWS[:1], 10, PLAIN._replace(seed=4))[0]
    other_step = batches(paths, ROWS[:1], 11)[0]
    for other in (other_seed, other_step, four_batches[3]):
        assert np.abs(other[0] - four_batches[0][0]).max() > 0.1


def test_pairs_are_what_their_draws_say(paths, four_batches):
    def expected():
        frames = tf.stack([data_input.read_frame(paths[row], 146) for row in ROWS[1]])
        first, second = (tf.concat(part, 0) for part in zip(*(
            data_input.draw_warps(1, 3 * 11 + row, PLAIN) for row in range(3))))
        return data_input.make_pairs(frames, first, second, PLAIN)
    for ours, theirs in zip(four_batches[1], run_in_graph(expected)):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)
    images, deformed, positions = four_batches[1]
    assert images.shape == deformed.shape == (3, 128, 128, 3)
    assert positions.shape == (3, 42, 42, 2)
    assert np.abs(images).max() <= 1 and np.abs(images[0] - images[1]).max() > 0.1


def test_cached_images_differ_by_their_rounding_only(paths, four_batches):
    kept = data_input.load_images(paths[:8], flags())
    for ours, theirs in zip(batches(kept, ROWS, 10), four_batches):
        assert np.abs(ours[0] - theirs[0]).max() <= 0.5 / 127.5 + 1e-5
        np.testing.assert_array_equal(ours[2], theirs[2])


def test_exact_and_bent_warps_reach_the_batches(paths, four_batches):
    exact = batches(paths, ROWS[:1], 10, PLAIN._replace(exact_coordinates=True))[0]
    np.testing.assert_array_equal(exact[1], four_batches[0][1])
    assert np.abs(exact[2] - four_batches[0][2]).max() > 1
    bent = batches(paths, ROWS[:1], 10, PLAIN._replace(tps_weight=0.01))[0]
    assert 0.1 < np.abs(bent[2] - four_batches[0][2]).mean() < 10
    T = run_in_graph(lambda: data_input.draw_warps(500, 1, PLAIN._replace(tps_weight=0.01)))
    for weights in (T[0][:, :, 3:], T[1][:, :, 3:]):
        assert weights.std() == pytest.approx(0.01, rel=0.1)
        assert abs(np.corrcoef(weights[:, 0, 0], weights[:, 1, 0])[0, 1]) < 0.2


def test_crops_are_random_whole_and_repeatable(paths):
    larger = PLAIN._replace(scale_size=160, crop_size=140)

    def crops():
        ramp = tf.tile(tf.range(160.0)[:, None, None] * 1000 + tf.range(160.0)[None, :, None],
                       [1, 1, 3])
        return [data_input.random_crop(ramp, number, larger) for number in range(40)]
    corners = [crop[0, 0, 0] for crop in run_in_graph(crops)]
    rows, columns = np.divmod(corners, 1000)
    for found in (rows, columns):
        assert 0 <= found.min() < 4 and 16 < found.max() <= 20 and len(set(found)) > 10
    first, again = (batches(paths, ROWS[:1], 3, larger) for _ in range(2))
    assert_same_batches(first, again)


def evaluated(paths, batch_size, preparation=PLAIN):
    """(images, indices) of all batches of the evaluation pipeline, joined."""
    with tf.Graph().as_default(), tf.Session() as session:
        pipeline = data_input.evaluation_pipeline(paths, batch_size, preparation, threads=1)
        following = pipeline.next_batch()
        assert all(tensor.shape.is_fully_defined() for tensor in following)
        session.run(pipeline.initializer, pipeline.feed())
        found = [session.run(following) for _ in range(-(-len(paths) // batch_size))]
        with pytest.raises(tf.errors.OutOfRangeError):
            session.run(following)
    return [np.concatenate(arrays) for arrays in zip(*found)]


@pytest.mark.parametrize("count, batch_size", [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_evaluation_gives_each_image_once_and_fills_up(paths, count, batch_size):
    images, indices = evaluated(paths[:count], batch_size)
    np.testing.assert_array_equal(indices, np.arange(-(-count // batch_size) * batch_size))
    frame = run_in_graph(lambda: data_input.read_frame(paths[count - 1], 146))
    for row in range(count - 1, len(images)):
        np.testing.assert_array_equal(images[row], frame[5:133, 5:133])


def test_evaluation_crops_the_centre(paths):
    images, _ = evaluated(paths[:1], 1, PLAIN._replace(scale_size=160, crop_size=140))
    frame = run_in_graph(lambda: data_input.read_frame(paths[0], 160))
    np.testing.assert_array_equal(images[0], frame[15:143, 15:143])


def test_the_host_session_is_an_ordinary_one_without_an_npu():
    with tf.Graph().as_default(), data_input.host_session(flags()) as session:
        assert session.run(tf.constant(1)) == 1
    assert npu_session.backend() == "cpu"
