"""Lists written from a PACS folder and from PACS's own kfold lists."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import shutil

import numpy as np
import pytest

import data_generator
import make_filelist
from data_generator import CLASSES, DOMAINS
from npu_session import InputError
from test_masf_data import png_file, write


def read(path):
    """Text of a file."""
    with open(str(path)) as file:
        return file.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with ten images of each class in each domain, and a file that is no image."""
    root = tmp_path_factory.mktemp("pacs")
    for domain in DOMAINS:
        for name in CLASSES:
            write(root / domain / name / "Thumbs.db", b"")
            for number in range(10):
                write(root / domain / name / f"{number}.{('png', 'JPG')[number % 2]}", png_file())
    return str(root)


def written(dataroot, lists, *flags):
    """Runs the program; {(domain, suffix): (entries, labels 0..6)}."""
    assert make_filelist.main([f"--dataroot={dataroot}", f"--filelist_root={lists}"]
                              + list(flags)) == 0
    result = {}
    for domain in DOMAINS:
        for suffix in data_generator.SUFFIXES:
            entries, labels = data_generator.read_list(
                data_generator.list_path(str(lists), domain, suffix))
            result[domain, suffix] = entries, labels - 1
    return result


def test_folds_hold_every_image_once_and_a_tenth_of_each_class_is_held_out(folder, tmp_path,
                                                                           capsys):
    lists = written(folder, tmp_path / "lists")
    for domain in DOMAINS:
        (training, labels), (held, held_labels) = (lists[domain, suffix] for suffix in
                                                   data_generator.SUFFIXES)
        assert len(set(training) | set(held)) == len(training) + len(held) == 70
        np.testing.assert_array_equal(labels, np.repeat(np.arange(7), 9))  # grouped by class
        np.testing.assert_array_equal(held_labels, np.arange(7))
        assert all(entry.split("/")[1] == CLASSES[label] for entry, label in zip(training, labels))
    assert "photo_crossval.txt: 7 images, dog 1 elephant 1" in capsys.readouterr().out
    assert read(tmp_path / "lists" / "photo.txt").startswith("photo/dog/")
    checked = data_generator.read_lists(str(tmp_path / "lists"), DOMAINS, "_crossval", folder)
    assert checked["art_painting"].labels.tolist() == list(range(7))


def test_folds_depend_on_the_seed_only(folder, tmp_path):
    runs = [written(folder, tmp_path / name, f"--seed={seed}", "--held_out=0.3")
            for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for key, (entries, _) in runs[0].items():
        assert entries == runs[1][key][0]
        assert len(entries) == (49 if key[1] == "" else 21)
    assert runs[0]["photo", "_crossval"][0] != runs[2]["photo", "_crossval"][0]


@pytest.mark.parametrize("first", [0, 1])
def test_pacs_s_own_folds_are_taken_over(folder, tmp_path, first):
    lists = {"train": range(9), "crossval": [9]}
    for domain in DOMAINS:
        for fold, numbers in lists.items():
            lines = [f"{domain}/{name}/{number}.{('png', 'JPG')[number % 2]} {label + first}"
                     for number in numbers for label, name in enumerate(CLASSES)]
            write(tmp_path / "kfold" / f"{domain}_{fold}_kfold.txt",
                  "\r\n".join(lines).encode() + b"\r\n")
    found = written(folder, tmp_path / "out", f"--kfold_lists={tmp_path}/kfold")
    entries, labels = found["sketch", ""]
    assert entries[:2] == ["sketch/dog/0.png", "sketch/dog/1.JPG"]
    np.testing.assert_array_equal(labels, np.repeat(np.arange(7), 9))
    assert found["sketch", "_crossval"][0] == [f"sketch/{name}/9.JPG" for name in CLASSES]
    os.remove(str(tmp_path / "kfold" / "photo_train_kfold.txt"))
    with pytest.raises(InputError, match="photo_train_kfold.txt cannot be read"):
        make_filelist.kfold_folds(str(tmp_path / "kfold"))


def test_lists_of_other_data_are_replaced_by_force_only(folder, tmp_path):
    lists = tmp_path / "lists"
    written(folder, lists)
    before = read(lists / "photo.txt")
    written(folder, lists)  # the same again
    with pytest.raises(InputError, match="exists and lists other data.*--force"):
        written(folder, lists, "--seed=2")
    assert read(lists / "photo.txt") == before
    written(folder, lists, "--seed=2", "--force")
    assert read(lists / "photo.txt") != before


def test_lists_of_the_stand_in_give_way(folder, small_data, tmp_path):
    lists = str(tmp_path / "lists")
    shutil.copytree(os.path.join(small_data, "filelist"), lists)
    assert "standin_" not in "".join(written(folder, lists)["photo", ""][0])


def test_a_stand_in_folder_can_be_listed_anew(small_data, tmp_path):
    assert written(os.path.join(small_data, "kfold"), tmp_path / "lists")
    assert data_generator.read_lists(str(tmp_path / "lists"), DOMAINS,
                                     dataroot=os.path.join(small_data, "kfold"))


def test_folder_without_a_domain_a_class_or_images(folder, tmp_path):
    with pytest.raises(InputError, match="there is no folder .*none/art_painting/dog: expected"):
        make_filelist.main([f"--dataroot={tmp_path}/none", f"--filelist_root={tmp_path}/lists"])
    copy = str(tmp_path / "copy")
    shutil.copytree(folder, copy)
    for number in range(9):
        os.remove(os.path.join(copy, "photo", "horse", f"{number}.{('png', 'JPG')[number % 2]}"))
    with pytest.raises(InputError, match="photo/horse has 1 images .*expected two or more"):
        make_filelist.main([f"--dataroot={copy}", f"--filelist_root={tmp_path}/lists"])
    assert not os.path.exists(str(tmp_path / "lists"))


def test_damaged_image_is_named_before_a_list_is_written(folder, tmp_path):
    copy = str(tmp_path / "copy")
    shutil.copytree(folder, copy)
    write(os.path.join(copy, "photo", "horse", "3.JPG"), png_file(colour_type=6))
    with pytest.raises(InputError, match="photo/horse/3.JPG is an RGBA or CMYK image"):
        make_filelist.main([f"--dataroot={copy}", f"--filelist_root={tmp_path}/lists"])
    assert not os.path.exists(str(tmp_path / "lists"))


@pytest.mark.parametrize("flag", ["--held_out=0", "--held_out=1", "--seed=-1", "--unknown"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        make_filelist.parse_args([flag])
    assert leaving.value.code == 2
