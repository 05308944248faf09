"""The stand-in digits: MNIST's file format, MNIST-like statistics, the same bytes every time."""
# Licensed under the Apache License, Version 2.0; see LICENSE.

import gzip
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(HERE), "src")
if SOURCE not in sys.path:
    sys.path.insert(0, SOURCE)

import make_standin_data as standin  # noqa: E402
import standin_digits  # noqa: E402
from npu_session import InputError  # noqa: E402

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

# statistic: (MNIST, stand-in, tolerance). The first two are published figures of 60000 training
# images. The tolerance is about four standard deviations of the statistic over sets of 5000
# stand-in images, plus the rounding of the figure; for the PCA shares also the 0.001 to 0.002 by
# which 5000 images overstate them. It is smaller than the distance between MNIST and stand-in
# wherever the two differ clearly (PCA shares, variance, residual).
STATISTICS = {
    "mean": (0.1307, 0.1291, 0.003),
    "std": (0.3081, 0.3004, 0.003),
    "zero pixels": (0.809, 0.806, 0.004),
    "pixels >= 0.5": (0.132, 0.129, 0.003),
    "pixels > 250": (0.072, 0.064, 0.0025),
    "ink mean": (102.4, 101.2, 2.2),
    "ink std": (33.9, 32.3, 2.0),
    "box height": (19.7, 19.4, 0.15),
    "box width": (15.8, 15.5, 0.3),
    "centre row": (14.0, 14.0, 0.03),
    "centre column": (14.0, 14.0, 0.03),
    "centre row std": (0.29, 0.30, 0.02),
    "centre column std": (0.29, 0.30, 0.02),
    "PCA share 5": (0.332, 0.375, 0.010),
    "PCA share 10": (0.488, 0.528, 0.009),
    "PCA share 20": (0.644, 0.684, 0.008),
    "PCA share 50": (0.825, 0.869, 0.005),
    "PCA share 100": (0.915, 0.950, 0.003),
    "PCA share 200": (0.966, 0.986, 0.002),
    "total variance": (52.7, 45.0, 1.0),
    "residual after 20": (0.0240, 0.0181, 0.0006),
}


def read_idx(path):
    """Reads a gzip idx file knowing the format only: (magic, dimensions, array uint8)."""
    with gzip.open(path, "rb") as stream:
        content = stream.read()
    rank = content[3]
    dimensions = struct.unpack(">" + "I" * rank, content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    return struct.unpack(">I", content[:4])[0], dimensions, values.reshape(dimensions)


def read_bytes(folder):
    """{file name: bytes} of everything in a folder."""
    return {name: open(os.path.join(folder, name), "rb").read() for name in os.listdir(folder)}


def extents(filled):
    """Length from the first to the last True of each row of a bool array [n, 28]."""
    last = filled.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)
    return last - filled.argmax(axis=1) + 1


def statistics(images):
    """The table's statistics of uint8 [n, 28, 28]: {name: float}."""
    grey = images / 255.0
    ink = grey.sum(axis=(1, 2))
    index = np.arange(28)
    rows = (grey.sum(axis=2) * index).sum(axis=1) / ink
    columns = (grey.sum(axis=1) * index).sum(axis=1) / ink
    variances = np.linalg.eigvalsh(np.cov(grey.reshape(-1, 784).T, bias=True))[::-1]
    found = {
        "mean": grey.mean(),
        "std": grey.std(),
        "zero pixels": (images == 0).mean(),
        "pixels >= 0.5": (grey >= 0.5).mean(),
        "pixels > 250": (images > 250).mean(),
        "ink mean": ink.mean(),
        "ink std": ink.std(),
        "box height": extents((images > 0).any(axis=2)).mean(),
        "box width": extents((images > 0).any(axis=1)).mean(),
        "centre row": rows.mean(),
        "centre column": columns.mean(),
        "centre row std": rows.std(),
        "centre column std": columns.std(),
        "total variance": variances.sum(),
        "residual after 20": variances[20:].sum() / 784,
    }
    for count in (5, 10, 20, 50, 100, 200):
        found[f"PCA share {count}"] = variances[:count].sum() / variances.sum()
    return found


def real_mnist(split, count):
    """First images and labels of real MNIST; skips the test where there is none."""
    root = os.path.join(os.path.dirname(os.path.dirname(HERE)), os.pardir, "shared", "data")
    folder = os.path.join(os.environ.get("REAL_DATA_DIR", root), "mnist")
    paths = standin.split_paths(folder, split)
    if not all(os.path.exists(path) for path in paths):
        pytest.skip("no real MNIST in " + folder)
    return [read_idx(path)[2][:count] for path in paths]


def nearest_label(images, labels, queries):
    """Label of the nearest image (Euclidean) for each query: uint8 [q]."""
    known = images.reshape(len(images), -1) / np.float32(255)
    asked = queries.reshape(len(queries), -1) / np.float32(255)
    closeness = asked.dot(known.T) - 0.5 * (known**2).sum(axis=1)
    return labels[closeness.argmax(axis=1)]


@pytest.fixture(scope="module")
def digits():
    """The first 5000 training images of seed 0 and their labels."""
    blocks = [standin_digits.draw_block(0, 0, block) for block in range(5)]
    return [np.concatenate(part) for part in zip(*blocks)]


@pytest.fixture(scope="module")
def statistics_of_standin(digits):
    return statistics(digits[0])


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory):
    """A folder with 2300 + 450 stand-in images: an incomplete last block in both sets."""
    folder = str(tmp_path_factory.mktemp("standin") / "new" / "folder")
    standin.make_standin_data(folder, 2300, 450, seed=7, workers=1)
    return folder


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_statistic_equals_the_published_standin_figure(name, statistics_of_standin):
    _, expected, tolerance = STATISTICS[name]
    assert statistics_of_standin[name] == pytest.approx(expected, abs=tolerance)


def test_the_same_statistics_of_real_mnist_equal_its_published_figures():
    found = statistics(real_mnist("train", 10000)[0])
    for name, (expected, _, tolerance) in STATISTICS.items():
        assert found[name] == pytest.approx(expected, abs=tolerance), name


def test_ink_stays_in_a_20_pixel_box_as_in_mnist(digits):
    inked = digits[0] > 0
    assert extents(inked.any(axis=2)).max() == 20
    assert extents(inked.any(axis=1)).max() == 20


def test_full_ink_and_empty_paper_both_occur_in_nearly_every_image(digits):
    assert digits[0].min(axis=(1, 2)).max() == 0
    assert (digits[0].max(axis=(1, 2)) > 200).mean() > 0.99


def test_labels_are_uniform(digits):
    counts = np.bincount(digits[1], minlength=10)
    # Chi-square with 9 degrees of freedom: 27.9 is exceeded once in a thousand seeds.
    assert ((counts - 500.0) ** 2 / 500).sum() < 27.9


def test_pictures_show_their_labels(digits):
    """A nearest-image rule is right 0.84 to 0.86 of the time over seeds (0.93 on real MNIST), in
    the worst class 0.68; wrong labels or unreadable pictures would bring a class near 0.1."""
    images, labels = digits
    found = nearest_label(images[:4000], labels[:4000], images[4000:])
    accuracy = [(found == labels[4000:])[labels[4000:] == digit].mean() for digit in range(10)]
    assert min(accuracy) > 0.5
    assert np.mean(accuracy) > 0.8


def test_pictures_resemble_mnist_digit_by_digit(digits):
    images, labels = real_mnist("t10k", 1000)
    found = nearest_label(digits[0], digits[1], images)
    assert (found == labels).mean() > 0.75  # measured 0.81 to 0.82 over three seeds


def test_no_two_images_are_equal(digits):
    assert len({image.tobytes() for image in digits[0]}) == len(digits[0])


def test_draw_digits_draws_the_label_asked_for_and_advances_by_count_only():
    generators = [np.random.RandomState(3) for _ in range(2)]
    ones = standin_digits.draw_digits(np.full(40, 1), generators[0])
    eights = standin_digits.draw_digits([8] * 40, generators[1])
    assert ones.shape == (40, 28, 28) and ones.dtype == np.uint8
    assert extents((ones > 0).any(axis=1)).mean() < extents((eights > 0).any(axis=1)).mean()
    assert generators[0].uniform() == generators[1].uniform()


def test_draw_digits_of_nothing_is_empty():
    assert standin_digits.draw_digits([], np.random.RandomState(0)).shape == (0, 28, 28)


def test_draw_digits_refuses_what_is_not_a_digit():
    with pytest.raises(ValueError, match="0..9"):
        standin_digits.draw_digits([3, 10], np.random.RandomState(0))


def test_curves_start_and_end_on_their_joints():
    for template in standin_digits.TEMPLATES:
        assert template.spline.shape == (standin_digits.PATH_POINTS, len(template.joints))
        assert np.allclose(template.spline.sum(axis=1), 1)
        path = template.spline.dot(template.joints)
        assert np.allclose(path[0], template.joints[0])


def test_edge_distance_of_one_round_dot():
    paths = np.zeros((1, standin_digits.PATH_POINTS, 2), np.float32)
    radii = np.full((1, standin_digits.PATH_POINTS), 2.0, np.float32)
    pixels = np.arange(20) - 9.5
    expected = np.hypot(pixels[:, None], pixels) - 2
    assert np.allclose(standin_digits.edge_distances(paths, radii)[..., 0], expected, atol=1e-6)


def test_rows_run_down_and_columns_to_the_right():
    paths = np.zeros((1, standin_digits.PATH_POINTS, 2), np.float32)
    paths[..., 0], paths[..., 1] = 6.5, -3.5  # x, y from the middle of the canvas
    radii = np.ones((1, standin_digits.PATH_POINTS), np.float32)
    canvas = standin_digits.render(paths, radii)[0]
    assert np.unravel_index(canvas.argmax(), canvas.shape) == (6, 16)


def test_format_is_mnists(small_folder):
    for split, count in (("train", 2300), ("t10k", 450)):
        image_path, label_path = standin.split_paths(small_folder, split)
        magic, dimensions, _ = read_idx(image_path)
        assert (magic, dimensions) == (2051, (count, 28, 28))
        magic, dimensions, labels = read_idx(label_path)
        assert (magic, dimensions) == (2049, (count,))
        assert set(labels) == set(range(10))


def test_folder_holds_the_four_files_and_the_marker_only(small_folder):
    assert sorted(os.listdir(small_folder)) == sorted(FILES + ("STANDIN.txt",))


def test_marker_says_standin_seed_and_counts(small_folder):
    with open(os.path.join(small_folder, "STANDIN.txt")) as stream:
        text = stream.read()
    assert "stand-in" in text and "NOT MNIST" in text
    for line in ("seed = 7", "train images = 2300", "test images = 450"):
        assert line in text.splitlines()


def test_files_hold_the_blocks_in_order(small_folder):
    paths = standin.split_paths(small_folder, "train")
    images, labels = [read_idx(path)[2] for path in paths]
    expected_images, expected_labels = standin_digits.draw_block(7, 0, 1)
    assert np.array_equal(images[1000:2000], expected_images)
    assert np.array_equal(labels[1000:2000], expected_labels)


def test_train_and_test_images_differ(small_folder):
    train, test = [read_idx(standin.split_paths(small_folder, s)[0])[2] for s in standin.SPLITS]
    assert not np.array_equal(train[:450], test)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(workers, small_folder, tmp_path):
    standin.make_standin_data(str(tmp_path), 2300, 450, seed=7, workers=workers)
    assert read_bytes(str(tmp_path)) == read_bytes(small_folder)


def test_another_seed_gives_other_bytes(small_folder, tmp_path):
    standin.make_standin_data(str(tmp_path), 2300, 450, seed=8, workers=2)
    found, other = read_bytes(str(tmp_path)), read_bytes(small_folder)
    assert all(found[name] != other[name] for name in FILES)


def test_a_small_set_is_the_beginning_of_a_larger_one(small_folder, tmp_path):
    standin.make_standin_data(str(tmp_path), 300, 20, seed=7, workers=2)
    for split, count in (("train", 300), ("t10k", 20)):
        small = [read_idx(path)[2] for path in standin.split_paths(str(tmp_path), split)]
        large = [read_idx(path)[2] for path in standin.split_paths(small_folder, split)]
        assert all(np.array_equal(a, b[:count]) for a, b in zip(small, large))


def test_bytes_are_the_same_in_every_python_and_numpy():
    images, labels = standin_digits.draw_block(0, 0, 0)
    # Stored under Python 3.7 / numpy 1.21 and found again under Python 3.11 / numpy 2.
    assert zlib.crc32(images.tobytes()) == 3968858347
    assert zlib.crc32(labels.tobytes()) == 3265046114


@pytest.mark.parametrize("present", FILES)
def test_an_existing_file_is_refused_by_name_and_nothing_is_written(present, tmp_path):
    (tmp_path / present).write_bytes(b"mine")
    with pytest.raises(InputError, match=present + ".*--force"):
        standin.make_standin_data(str(tmp_path), 20, 10, workers=1)
    assert read_bytes(str(tmp_path)) == {present: b"mine"}


def test_force_replaces_the_files(tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(b"mine")
    standin.make_standin_data(str(tmp_path), 20, 10, workers=1, force=True)
    assert b"mine" not in read_bytes(str(tmp_path)).values()


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_count": 0},
        {"test_count": -1},
        {"train_count": 2**31},
        {"train_count": 10.5},
        {"seed": -1},
        {"seed": 2**32},
        {"workers": 0},
    ],
)
def test_a_bad_number_is_named_before_anything_is_written(wrong, tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(InputError, match=list(wrong)[0]):
        standin.make_standin_data(str(folder), **wrong)
    assert not folder.exists()


def test_a_failure_leaves_the_old_files_and_no_temporary_ones(tmp_path, monkeypatch):
    (tmp_path / FILES[0]).write_bytes(b"mine")

    def draw_then_fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(standin, "draw_block", draw_then_fail)
    with pytest.raises(OSError, match="no space left"):
        standin.make_standin_data(str(tmp_path), 20, 10, workers=1, force=True)
    assert read_bytes(str(tmp_path)) == {FILES[0]: b"mine"}


def test_a_dead_worker_ends_the_run_instead_of_hanging_it(tmp_path, monkeypatch):
    monkeypatch.setattr(standin, "send_blocks", lambda *_: os._exit(9))
    with pytest.raises(ChildProcessError, match="--workers=1"):
        standin.make_standin_data(str(tmp_path), 2300, 10, workers=2)
    assert os.listdir(str(tmp_path)) == []


def run_command(*flags, **options):
    """Runs make_standin_data.py in a process of its own."""
    return subprocess.run(
        [sys.executable, os.path.join(SOURCE, "make_standin_data.py")] + list(flags),
        capture_output=True,
        text=True,
        **options
    )


def test_killing_the_program_ends_its_workers(tmp_path):
    # A session of its own, so that its processes can be found and are ended with it in any case.
    program = subprocess.Popen(
        [sys.executable, os.path.join(SOURCE, "make_standin_data.py")]
        + ["--data_dir=data", "--train_count=3000000", "--workers=2"],
        cwd=str(tmp_path),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        images = f"train-images-idx3-ubyte.gz.{program.pid}.tmp"
        wait_until(lambda: size_of(tmp_path / "data" / images) > 0)
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


def size_of(path):
    """Size of a file in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def group_exists(group):
    """True while a process of the process group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_command_line_writes_says_standin_and_refuses_a_second_time(tmp_path):
    flags = ["--data_dir=data", "--train_count=1500", "--test_count=10", "--workers=2"]
    done = run_command(*flags, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "stand-in data (not MNIST): 1500 training and 10 test images, seed 0" in done.stdout
    assert "block" not in done.stderr  # no progress bar outside a terminal
    before = read_bytes(str(tmp_path / "data"))
    again = run_command(*flags, cwd=str(tmp_path))
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: data")
    assert "Traceback" not in again.stderr
    assert read_bytes(str(tmp_path / "data")) == before


def test_full_disk_gives_one_sentence_and_leaves_nothing(tmp_path):
    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))

    done = run_command(
        "--data_dir=data", "--train_count=1500", cwd=str(tmp_path), preexec_fn=limit_file_size
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert os.listdir(str(tmp_path / "data")) == []


@pytest.mark.parametrize("flag", ["--unknown=1", "--train=5", "--seed=x", "--force=perhaps"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        standin.parse_args([flag])
    assert stop.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


def test_defaults_and_both_spellings_of_force():
    args = standin.parse_args([])
    assert (args.train_count, args.test_count, args.seed, args.workers) == (60000, 10000, 0, None)
    assert args.force is False
    assert standin.parse_args(["--force"]).force is True
    assert standin.parse_args(["--force=False"]).force is False


def test_drawing_module_needs_numpy_only():
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); import standin_digits; "
    code += "print([m for m in ('tensorflow', 'tqdm', 'scipy') if m in sys.modules])"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"
