"""The stand-in for PACS: pictures, folder layout, lists, weights; nothing of the user's is lost."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import data_generator
import make_standin_data as standin
import standin_pacs
from data_generator import CLASSES, DOMAINS, SIDE
from npu_session import InputError
from training_runs import small_files

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(path):
    """Content of a file."""
    with open(str(path), "rb") as file:
        return file.read()


def contents(folder):
    """{relative path: bytes} of everything below a folder."""
    return {os.path.relpath(os.path.join(place, name), str(folder)): read(os.path.join(place, name))
            for place, _, names in os.walk(str(folder)) for name in names}


def make(folder, images=1, **options):
    """make_standin_data into folder/kfold and folder/filelist; returns the two."""
    dataroot, lists = os.path.join(str(folder), "kfold"), os.path.join(str(folder), "filelist")
    standin.make_standin_data(dataroot, lists, images, **dict({"workers": 1}, **options))
    return dataroot, lists


# ---------------------------------------------------------------- pictures


@pytest.fixture(scope="module")
def pictures():
    """uint8 [4, 7, 6, 227, 227, 3]: six pictures of each class in each domain."""
    return np.array([[[standin_pacs.draw(1, domain, label, number) for number in range(6)]
                      for label in range(7)] for domain in range(4)])


def test_names_are_pacs_s():
    assert standin_pacs.DOMAINS == DOMAINS and standin_pacs.CLASSES == CLASSES
    assert standin_pacs.SIDE == SIDE


def test_a_picture_depends_on_its_four_numbers_only():
    first = standin_pacs.draw(1, 2, 3, 4)
    assert first.dtype == np.uint8 and first.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(first, standin_pacs.draw(1, 2, 3, 4))
    for other in ((2, 2, 3, 4), (1, 1, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)):
        assert (first != standin_pacs.draw(*other)).any()


def test_styles_differ_as_their_names_say(pictures):
    art, cartoon, photo, sketch = pictures[:, :, :2].reshape(4, 14, SIDE, SIDE, 3).astype(int)
    assert (sketch == sketch[..., :1]).all()  # grey values
    assert 0.9 < (sketch == 255).mean() < 0.99 and (sketch < 100).mean() > 0.005
    for picture in cartoon:  # two colours and black make up nearly all of it
        _, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        assert np.sort(counts)[-3:].sum() > 0.93 * SIDE ** 2
    assert (cartoon.max(axis=-1) < 20).mean() > 0.03
    flat = [(np.diff(images, axis=2) == 0).mean() for images in (art, cartoon, photo)]
    assert flat[1] > 0.9 and max(flat[0], flat[2]) < 0.4


def test_colours_tell_nothing_about_the_class(pictures):
    """Mean colours of the classes differ no more than those of six random pictures do."""
    means = pictures[:3].astype(float).mean(axis=(3, 4))  # [domain, class, picture, RGB]
    between, within = means.mean(axis=2).std(axis=1), means.std(axis=2).mean(axis=1)
    assert (between < 1.1 * within).all()


def silhouettes(label, count=12):
    """Shapes of a class without pose, as masks [count, 128 * 128] of the square [-1, 1]^2."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j].astype(np.float32)
    masks = []
    for number in range(count):
        outline = standin_pacs.Outline(x, y, np.random.RandomState(number))
        standin_pacs.SHAPES[label](outline)
        masks.append(outline.distance.ravel() < 0)
    return np.array(masks)


def test_shapes_vary_but_keep_their_class():
    """Overlap (intersection over union) within a class is higher than with any other class."""
    masks = [silhouettes(label) for label in range(7)]

    def overlap(first, second):
        pairs = [(a, b) for row, a in enumerate(first) for b in second[row + 1:]]
        return np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])

    table = np.array([[overlap(first, second) for second in masks] for first in masks])
    within = np.diag(table)
    assert (within > 0.6).all() and (within < 0.98).all()
    assert (table - np.diag(within) < within[:, None] - 0.08).all()


def test_shapes_lie_inside_the_picture(pictures):
    """Of a sketch's border at most a little is ink (a pose may cut off a foot)."""
    sketch = pictures[3].reshape(42, SIDE, SIDE, 3)[..., 0] < 128
    border = np.ones((SIDE, SIDE), bool)
    border[2:-2, 2:-2] = False
    assert sketch[:, border].mean() < 0.01
    assert (sketch.sum(axis=(1, 2)) > 300).all()


def test_distances_of_parts_by_hand():
    """Without jitter: distances to a disc, a box, a capsule and a triangle at chosen points."""
    class Exact(np.random.RandomState):
        def uniform(self, low, high):
            return (low + high) / 2

    def distance(add, *points):
        x, y = np.array(points, np.float32).T[:, None]
        outline = standin_pacs.Outline(x, y, Exact())
        add(outline)
        return outline.distance[0]

    np.testing.assert_allclose(
        distance(lambda o: o.ellipse(0.5, 0, 0.25, 0.25), (0.5, 0.5), (0.5, 0.25), (0.6, 0)),
        [0.25, 0, -0.15], atol=1e-5)
    np.testing.assert_allclose(
        distance(lambda o: o.box(0, 0, 0.5, 0.2), (0, 0), (0.9, 0), (0.8, 0.6)),
        [-0.2, 0.4, 0.5], atol=1e-6)
    np.testing.assert_allclose(
        distance(lambda o: o.capsule((0, 0), (1, 0), 0.1, 0.3), (0.5, 0.5), (-0.4, 0.3), (2, 0)),
        [0.3, 0.4, 0.7], atol=1e-6)
    np.testing.assert_allclose(
        distance(lambda o: o.triangle((0, 0), (0, 1), (1, 0)), (-0.2, 0.5), (0.5, 0.5), (0.1, 0.3)),
        [0.2, 0, -0.1], atol=1e-6)
    cut = distance(lambda o: (o.box(0, 0, 0.5, 0.5), o.ellipse(0, 0, 0.2, 0.2, cut=True)),
                   (0, 0.01), (0.4, 0))
    assert cut[0] > 0 > cut[1]


def test_colours_by_hand():
    np.testing.assert_allclose(standin_pacs.colour(0, 1, 1), [255, 0, 0], atol=1e-4)
    np.testing.assert_allclose(standin_pacs.colour(1 / 3, 1, 0.5), [0, 127.5, 0], atol=1e-4)
    np.testing.assert_allclose(standin_pacs.colour(2 / 3, 0.5, 1), [127.5, 127.5, 255], atol=1e-4)
    np.testing.assert_allclose(standin_pacs.colour(0.3, 0, 0.2), [51, 51, 51], atol=1e-4)


def test_drawing_module_needs_numpy_only():
    code = f"import sys; sys.path.insert(0, {SOURCE!r}); import standin_pacs; "
    code += "print([m for m in ('tensorflow', 'tqdm', 'scipy') if m in sys.modules])"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"


# ---------------------------------------------------------------- files


def test_files_have_pacs_s_layout_and_are_read_back(small_data):
    dataroot = os.path.join(small_data, "kfold")
    assert sorted(os.listdir(dataroot)) == sorted(DOMAINS + (data_generator.STANDIN_NOTE,))
    for domain in DOMAINS:
        assert sorted(os.listdir(os.path.join(dataroot, domain))) == sorted(CLASSES)
    assert "NOT PACS" in read(os.path.join(dataroot, "STANDIN.txt")).decode()
    for suffix in data_generator.SUFFIXES:
        lists = data_generator.read_lists(os.path.join(small_data, "filelist"), DOMAINS, suffix,
                                          dataroot)
        for domain, images in lists.items():
            assert not images.resize
            assert images.paths[0].endswith(".png" if domain == "sketch" else ".jpg")


def test_every_picture_is_in_exactly_one_list(small_data):
    listed = [entry for domain in DOMAINS for suffix in data_generator.SUFFIXES
              for entry in data_generator.read_list(data_generator.list_path(
                  os.path.join(small_data, "filelist"), domain, suffix))[0]]
    found = set(contents(os.path.join(small_data, "kfold"))) - {data_generator.STANDIN_NOTE}
    assert len(listed) == len(set(listed)) and set(listed) == found


def test_sketches_are_stored_exactly_and_the_others_nearly(small_data):
    for domain in range(4):
        path = os.path.join(small_data, "kfold", standin.entry(DOMAINS[domain], 2, 0))
        stored, = data_generator.decoded([path], resize=False)
        drawn = standin_pacs.draw(7, domain, 2, 0)
        difference = np.abs(stored.astype(int) - drawn).mean()
        assert difference == 0 if domain == 3 else 0 < difference < 8


def test_counts_keep_the_shares_of_pacs():
    counts = standin.counts(50)
    totals = {domain: sum(count for count, _ in classes) for domain, classes in counts.items()}
    assert abs(sum(totals.values()) - 1400) < 10
    for domain, classes in counts.items():
        original = np.array(standin.PACS_COUNTS[domain])
        shares = np.array([count for count, _ in classes]) / totals[domain]
        np.testing.assert_allclose(shares, original / original.sum(), atol=0.005)
        assert all(held == max(1, round(count / 9)) for count, held in classes)
    assert min(count for classes in standin.counts(1).values() for count, _ in classes) == 1


def test_shipped_lists_are_those_of_the_default():
    folder = os.path.join(SOURCE, "filelist")
    texts = standin.make_filelist.list_texts(folder, standin.folds(standin.DEFAULT_IMAGES))
    assert {path: text.encode() for path, text in texts.items()} == {
        os.path.join(folder, name): content for name, content in contents(folder).items()}


def test_same_seed_same_files_for_any_number_of_workers(tmp_path):
    folders = [make(tmp_path / name, seed=seed, workers=workers)
               for name, seed, workers in (("a", 3, 1), ("b", 3, 2), ("c", 4, 1))]
    first, second, other = (contents(dataroot) for dataroot, _ in folders)
    assert first == second
    assert sorted(first) == sorted(other) and first != other
    assert contents(folders[0][1]) == contents(folders[2][1])


def test_existing_pictures_are_replaced_by_force_only(tmp_path):
    dataroot, lists = make(tmp_path, seed=1)
    before = contents(dataroot)
    with pytest.raises(InputError, match="holds stand-in pictures already.*--force"):
        make(tmp_path, seed=2)
    assert contents(dataroot) == before
    make(tmp_path, seed=2, force=True, images=2)
    assert len(contents(dataroot)) > len(before)
    assert data_generator.read_lists(lists, DOMAINS, dataroot=dataroot)


@pytest.mark.parametrize("force", [False, True])
def test_the_user_s_data_and_lists_are_never_replaced(tmp_path, force):
    mine = tmp_path / "kfold" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match="is no folder of stand-in pictures"):
        make(tmp_path, force=force)
    mine.unlink()
    (tmp_path / "filelist").mkdir()
    (tmp_path / "filelist" / "photo.txt").write_text("photo/dog/056_0022.jpg 1\n")
    with pytest.raises(InputError, match="photo.txt exists and lists other data"):
        make(tmp_path, force=force)
    assert contents(tmp_path) == {"filelist/photo.txt": b"photo/dog/056_0022.jpg 1\n"}


def test_failure_while_drawing_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def draw_then_fail(*task):
        drawn.append(task)
        if len(drawn) > 5:
            raise OSError("no space left")
        return standin_pacs.draw(*task)

    monkeypatch.setattr(standin, "draw", draw_then_fail)
    with pytest.raises(OSError, match="no space left"):
        make(tmp_path)
    assert os.listdir(str(tmp_path)) == []


def test_a_dead_worker_ends_the_run_instead_of_hanging_it(tmp_path, monkeypatch):
    monkeypatch.setattr(standin, "send_pictures", lambda *_: os._exit(9))
    with pytest.raises(ChildProcessError, match="--workers=1"):
        make(tmp_path, workers=2)
    assert os.listdir(str(tmp_path)) == []


def test_the_default_folder_is_filled_and_a_named_one_never(tmp_path, capsys):
    default, lists = str(tmp_path / "kfold"), str(tmp_path / "filelist")
    named = str(tmp_path / "named")
    assert standin.data_root(named, default, lists) == named
    assert os.listdir(str(tmp_path)) == []
    assert standin.data_root(None, default, lists, images=1) == default
    assert "stand-in pictures (not PACS)" in capsys.readouterr().out
    before = contents(tmp_path)
    assert standin.data_root(None, default, lists, images=2) == default
    assert contents(tmp_path) == before and data_generator.data_name(default) != "PACS"


# ---------------------------------------------------------------- weights


SMALL = {"fc6": (50, 40), "conv1": (3, 3, 2, 40), "fc8": (40, 9)}


@pytest.mark.parametrize("encoding", ["latin1", "bytes"])
def test_weights_have_the_format_of_bvlc_alexnet(tmp_path, encoding):
    path = str(tmp_path / "weights.npy")
    standin.write_weights(path, 3, SMALL)
    array = np.load(path, allow_pickle=True, encoding=encoding)
    assert array.shape == () and array.dtype == object
    layers = array.item()
    assert list(layers) == ["fc6", "conv1", "fc8"] and all(isinstance(n, str) for n in layers)
    for name, shape in SMALL.items():
        weights, biases = layers[name]
        assert isinstance(layers[name], list)
        assert weights.shape == shape and biases.shape == shape[-1:] and not biases.any()
        assert weights.dtype == biases.dtype == np.float32 and weights.flags.c_contiguous
        assert weights.std() == pytest.approx(np.sqrt(2 / np.prod(shape[:-1])), rel=0.12)
    assert b"numpy.core.multiarray\n_reconstruct" in read(path)  # as every NumPy knows it
    assert b"\x80\x02" in read(path)[:140]  # pickle protocol 2


def test_weights_depend_on_the_seed_and_not_on_the_blocks_drawn(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in "abc"]
    for path, seed in zip(paths, (3, 3, 4)):
        standin.write_weights(path, seed, SMALL)
        monkeypatch.setattr(standin, "DRAWN_ROWS", 100)
    assert read(paths[0]) == read(paths[1]) != read(paths[2])


def test_default_weights_have_as_many_numbers_as_bvlc_alexnet():
    numbers = sum(np.prod(shape) + shape[-1] for shape in standin.WEIGHT_SHAPES.values())
    assert 4 * numbers == 243860896


def test_numpy_reads_its_own_and_our_arrays_alike(tmp_path):
    """The same dict saved by numpy.save."""
    ours, theirs = str(tmp_path / "ours.npy"), str(tmp_path / "theirs.npy")
    standin.write_weights(ours, 3, SMALL)
    layers = np.load(ours, allow_pickle=True, encoding="latin1").item()
    np.save(theirs, layers)
    for name, arrays in np.load(theirs, allow_pickle=True).item().items():
        for first, second in zip(arrays, layers[name]):
            np.testing.assert_array_equal(first, second)


# ---------------------------------------------------------------- program


def test_command_line_writes_says_standin_and_refuses_a_second_time(run_program, tmp_path):
    program = ("make_standin_data.py", "--images=1", "--workers=2", "--dataroot=data/kfold",
               "--filelist_root=data/lists")
    code, out, err = run_program(*program, cwd=str(tmp_path))
    assert code == 0, err
    assert "stand-in data (not PACS), seed 0, in data/kfold, lists in data/lists" in out
    assert "photo: " in out and "picture/s" not in err
    before = contents(tmp_path)
    code, _, err = run_program(*program, cwd=str(tmp_path))
    assert code == 2 and "Traceback" not in err
    error = err.splitlines()[-1]
    assert error.startswith("error: ") and "data/kfold holds stand-in pictures already" in error
    assert contents(tmp_path) == before


def test_weights_never_replace_a_file(tmp_path):
    path = tmp_path / "bvlc_alexnet.npy"
    path.write_bytes(b"trained")
    with pytest.raises(InputError, match="bvlc_alexnet.npy exists"):
        standin.main([f"--weights_path={path}", f"--dataroot={tmp_path}/kfold",
                      f"--filelist_root={tmp_path}/lists"])
    assert contents(tmp_path) == {"bvlc_alexnet.npy": b"trained"}


def test_full_disk_gives_one_sentence_and_leaves_nothing(run_program, tmp_path):
    with small_files(6000):
        code, _, err = run_program("make_standin_data.py", "--images=1", "--workers=1",
                                   cwd=str(tmp_path))
    assert code == 1 and err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err and os.listdir(str(tmp_path)) == []


def test_killing_the_program_ends_its_workers(tmp_path):
    # A session of its own, so that its processes can be found and are ended with it in any case.
    program = subprocess.Popen(
        [sys.executable, os.path.join(SOURCE, "make_standin_data.py"), "--images=3000",
         "--workers=2"], cwd=str(tmp_path), stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        first = os.path.join(f"kfold.{program.pid}.tmp", standin.entry("art_painting", 0, 0))
        wait_until(lambda: (tmp_path / first).exists())
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


@pytest.mark.parametrize("flag", ["--unknown=1", "--images=0", "--seed=x", "--force=perhaps",
                                  "--workers=0"])
def test_wrong_flags_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        standin.parse_args([flag])
    assert stop.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err
