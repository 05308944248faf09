"""CelebA's and MAFL's lists: formats, round trips, a clear sentence for every way to be wrong."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import os

import numpy as np
import pytest

import landmark_lists as lists
from npu_session import InputError

HEADER = ("lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y "
          "rightmouth_x rightmouth_y")
ROW = "000001.jpg  69  109  106  113   77  142   73  152  108  154"
ROW_2 = "000002.jpg 69 110 107 112 81 135 70 151 108 153"


def write(path, *lines):
    """A text file of these lines; returns its path."""
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A data folder with two images, their points, CelebA's partition and MAFL's lists."""
    write(tmp_path / lists.LANDMARK_FILE, "2", HEADER, ROW, ROW_2)
    write(tmp_path / lists.PARTITION_FILE, "000001.jpg 0", "000002.jpg 2")
    write(tmp_path / lists.TRAINING_FILE, "000001.jpg")
    write(tmp_path / lists.TESTING_FILE, "000002.jpg")
    (tmp_path / "data10w").mkdir()
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "data10w" / "000001.jpg").write_bytes(b"")
    (tmp_path / "img_align_celeba" / "000002.jpg").write_bytes(b"")
    return tmp_path


# ---------------------------------------------------------------- formats


def test_points_are_read_as_celeba_writes_them(tmp_path):
    """With the space that ends CelebA's own header, and Windows line ends."""
    path = tmp_path / "list.txt"
    path.write_bytes(f"2\r\n{HEADER} \r\n{ROW}\r\n{ROW_2}\r\n".encode())
    found = lists.read_landmarks(str(path))
    assert found.names == ["000001.jpg", "000002.jpg"]
    assert found.points.shape == (2, 5, 2) and found.points.dtype == np.float64
    np.testing.assert_array_equal(found.points[0],
                                  [[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]])


def test_points_are_written_as_they_are_read(tmp_path):
    path, names = str(tmp_path / "list.txt"), ["a.jpg", "b.png"]
    points = np.random.RandomState(0).randint(0, 200, size=(2, 5, 2))
    lists.write_landmarks(path, names, points + 0.2)
    found = lists.read_landmarks(path)
    assert found.names == names
    np.testing.assert_array_equal(found.points, points)
    with open(path) as file:
        assert file.read().splitlines()[:2] == ["2", HEADER]


def test_partition_is_written_as_it_is_read(tmp_path):
    path, parts = str(tmp_path / "list.txt"), {"a.jpg": 0, "b.jpg": 1, "c.jpg": 2}
    lists.write_partition(path, parts)
    assert lists.read_partition(path) == parts


def test_names_are_one_per_line(tmp_path):
    assert lists.read_names(write(tmp_path / "a", "1.jpg", "", "2.jpg")) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("lines, message", [
    ([], "does not begin like"),
    (["two", HEADER, ROW], "does not begin like"),
    (["1", HEADER.replace("nose", "chin"), ROW], "does not begin like"),
    ([ROW], "does not begin like"),
    (["1", HEADER, ROW[:-4]], "image 1 in .*expected a file name and 10 numbers"),
    (["2", HEADER, ROW, ROW_2 + " 7"], "image 2 in .*expected a file name and 10 numbers"),
    (["1", HEADER, ROW.replace("142", "x142")], "image 1 in .*x142.*10 numbers"),
    (["1", HEADER, ROW.replace("142", "nan")], "image 1 in .*10 numbers"),
    (["3", HEADER, ROW, ROW_2], "announces 3 images but lists 2"),
    (["1", HEADER, ROW, ROW_2], "announces 1 images but lists 2"),
    (["2", HEADER, ROW, ROW], "000001.jpg more than once"),
    (["1", HEADER, "a.jpg 5 6 5 6 7 8 9 10 11 12"], "both eyes of a.jpg in one place"),
])
def test_a_wrong_list_of_points_is_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        lists.read_landmarks(write(tmp_path / "list.txt", *lines))


@pytest.mark.parametrize("lines, message", [
    (["a.jpg 0", "b.jpg 3"], "line 2 .*0, 1 or 2"),
    (["a.jpg"], "line 1 "),
    (["a.jpg 0", "a.jpg 2"], "a.jpg more than once"),
])
def test_a_wrong_partition_is_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        lists.read_partition(write(tmp_path / "list.txt", *lines))


@pytest.mark.parametrize("lines, message", [
    ([], "lists no images"),
    (["a.jpg", "b.jpg 1"], "line 2 .*one file name"),
    (["a.jpg", "a.jpg"], "a.jpg more than once"),
])
def test_a_wrong_list_of_names_is_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        lists.read_names(write(tmp_path / "list.txt", *lines))


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff\xe0")
    for path in (tmp_path / "image", tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read as a list"):
            lists.read_landmarks(str(path))


# ---------------------------------------------------------------- which images


def test_mafls_lists_come_before_celebas_partition(folder):
    split = lists.split_names(str(folder))
    assert split[:2] == (["000001.jpg"], ["000002.jpg"])
    assert lists.TESTING_FILE in split.source


def test_celebas_partition_without_its_validation_images(folder):
    (folder / lists.TESTING_FILE).unlink()
    write(folder / lists.PARTITION_FILE, "1.jpg 0", "2.jpg 1", "3.jpg 2", "4.jpg 0")
    split = lists.split_names(str(folder))
    assert split[:2] == (["1.jpg", "4.jpg"], ["3.jpg"])
    assert split.source.endswith(lists.PARTITION_FILE)


def test_lists_lie_in_celebas_folders_too(folder):
    (folder / "Eval").mkdir()
    for name in (lists.TRAINING_FILE, lists.TESTING_FILE):
        (folder / name).unlink()
    os.rename(str(folder / lists.PARTITION_FILE), str(folder / "Eval" / lists.PARTITION_FILE))
    assert lists.split_names(str(folder)).training == ["000001.jpg"]


def test_given_lists_come_first(folder, tmp_path):
    train = write(tmp_path / "mine.txt", "7.jpg")
    test = write(tmp_path / "yours.txt", "8.jpg")
    assert lists.split_names(str(folder), train, test)[:2] == (["7.jpg"], ["8.jpg"])
    with pytest.raises(InputError, match="belong together"):
        lists.split_names(str(folder), train)


def test_no_list_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither training.txt and testing.txt .* nor list_eval"):
        lists.split_names(str(tmp_path))


def test_sets_that_overlap_or_are_empty_are_refused(folder):
    write(folder / lists.TESTING_FILE, "000001.jpg", "000002.jpg")
    with pytest.raises(InputError, match="1 images, 000001.jpg for one, are in both sets"):
        lists.split_names(str(folder))
    (folder / lists.TESTING_FILE).unlink()
    write(folder / lists.PARTITION_FILE, "000001.jpg 0")
    with pytest.raises(InputError, match="names no testing images"):
        lists.split_names(str(folder))


def test_points_come_in_the_order_asked_for(folder):
    found = lists.read_landmarks(str(folder / lists.LANDMARK_FILE))
    points = lists.select(found, ["000002.jpg", "000001.jpg"], "list")
    np.testing.assert_array_equal(points, found.points[::-1])


def test_a_list_that_misses_images_is_refused(folder):
    found = lists.read_landmarks(str(folder / lists.LANDMARK_FILE))
    with pytest.raises(InputError, match="misses 2 of the 3 images asked for, 7.jpg for one"):
        lists.select(found, ["000002.jpg", "7.jpg", "8.jpg"], "list")


def test_images_are_looked_for_in_every_folder(folder):
    assert lists.find_images(str(folder), ["000001.jpg", "000002.jpg"]) == [
        str(folder / "data10w" / "000001.jpg"), str(folder / "img_align_celeba" / "000002.jpg")]


def test_listed_images_that_are_not_there_are_refused(folder):
    with pytest.raises(InputError, match="1 of 2 listed images, 000003.jpg for one, are in none"):
        lists.find_images(str(folder), ["000001.jpg", "000003.jpg"])
    with pytest.raises(InputError, match="000002.jpg for one.*data10w"):
        lists.find_images(str(folder), ["000002.jpg"], str(folder / "data10w"))


def test_standin_data_is_called_so(folder):
    assert lists.data_name(str(folder)) == f"images of {folder.name}"
    (folder / lists.STANDIN_NOTE).write_text("")
    for place in (folder, folder / "data10w"):
        assert lists.data_name(str(place)) == "stand-in faces"


# ---------------------------------------------------------------- our own


def test_coordinates_are_written_as_table_and_arrays(tmp_path):
    random = np.random.RandomState(0)
    cells, pixels = random.uniform(size=(3, 4, 2)), 100 * random.uniform(size=(3, 4, 2))
    names = ["a.jpg", "b,c.jpg", "d.jpg"]
    paths = lists.write_coordinates(str(tmp_path), names, cells, pixels)
    with open(paths[0], newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"]
    assert [row[0] for row in rows] == names
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float).reshape(3, 4, 2), pixels,
                               atol=6e-4)
    with np.load(paths[1]) as arrays:
        assert arrays["names"].tolist() == names
        np.testing.assert_allclose(arrays["cells"], cells, rtol=1e-6)
        np.testing.assert_allclose(arrays["pixels"], pixels, rtol=1e-6)
    assert sorted(os.listdir(str(tmp_path))) == ["coordinates.csv", "coordinates.npz"]
