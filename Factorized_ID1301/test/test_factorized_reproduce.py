"""The whole job in one command: what it makes, that it goes on, which images it holds out."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import gc
import io
import os
import shutil
import signal

import pytest

import landmark_lists
import npu_session
import reproduce
import VDSR
from training_runs import narrow_network, read, records, signal_at

TINY = ["--count=6", "--regressor_count=6", "--test_count=4", "--max_steps=4", "--batch_size=2",
        "--log_every=2", "--save_every=2", "--K=2", "--threads=1"]


def run(output, *flags):
    """(exit code, standard output, standard error) of reproduce.py with a narrow network."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), narrow_network():
        code = npu_session.run_main(reproduce.main, TINY + [f"--output_dir={output}"] + list(flags))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory):
    """(output folder, printed text of the second run) of a job that SIGTERM stopped once."""
    output = str(tmp_path_factory.mktemp("reproduced") / "out")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 2, signal.SIGTERM)
        code, _, err = run(output)
    assert code == 143, err
    assert not os.path.exists(os.path.join(output, "result.json"))
    code, out, err = run(output)
    assert code == 0 and "at counter = 2" in out, err
    return output, out


def test_it_makes_faces_landmarks_errors_and_a_result(stopped_and_resumed):
    output, printed = stopped_and_resumed
    result = read(output, "result.json")
    assert result["data"] == "stand-in faces" and result["preset"] == "quick"
    assert (result["step"], result["K"], result["test_images"]) == (4, 2, 4)
    assert set(result["error_percent"]) == {"no_bias", "bias", "mean_shape"}
    assert "on 4 held-out images of stand-in faces" in printed
    assert f"{result['error_percent']['bias']:.2f} % with" in printed
    assert [record["step"] for record in records(os.path.join(output, "training"))] == [2, 4]
    for made in ("standin_faces_6_6_4/STANDIN.txt", "training/images/loss_curves.png",
                 "test/contact_sheet.jpg", "test/images/000013-outputs.jpg",
                 "evaluation/errors.png"):
        assert os.path.getsize(os.path.join(output, made))
    assert all(os.path.getmtime(os.path.join(folder, name))
               <= os.path.getmtime(os.path.join(output, "result.json"))
               for folder, _, names in os.walk(output) for name in names)


def test_training_follows_the_recipe_and_the_preset(stopped_and_resumed):
    flags = read(os.path.join(stopped_and_resumed[0], "training"), "config.json")["flags"]
    assert flags["exact_coordinates"] and flags["learning_rate"] == reproduce.RATE
    assert (flags["lower_rate_after"], flags["max_steps"], flags["images"]) == (3, 4, 12)
    full = reproduce.parse_args(["--preset=full", "--test_count=7"])
    assert full.test_count == 7 and full.count == 4000
    args = VDSR.parse_args(reproduce.recipe(full))
    assert (args.batch_size, args.learning_rate, args.max_steps, args.lower_rate_after,
            args.exact_coordinates) == (8, 0.001, 16000, 14400, True)


def test_no_held_out_image_is_trained_on(faces, tmp_path):
    """Where all images lie in one folder and MAFL's test images are in CelebA's training part."""
    folder = shutil.copytree(faces, str(tmp_path / "data"))
    images = os.path.join(folder, "data10w")
    parts = landmark_lists.read_partition(os.path.join(folder, landmark_lists.PARTITION_FILE))
    names = sorted(name for name in parts if parts[name] == landmark_lists.TRAINING)
    landmark_lists.write_lines(os.path.join(folder, landmark_lists.TESTING_FILE), names[:5])
    (train_list, place), (test_list, test_place) = reproduce.choose_images(folder, str(tmp_path))
    assert place == test_place == images
    assert landmark_lists.read_names(test_list) == names[:5]
    assert landmark_lists.read_names(train_list) == names[5:]
    landmark_lists.write_lines(os.path.join(folder, landmark_lists.TESTING_FILE), names)
    landmark_lists.write_lines(os.path.join(folder, landmark_lists.TRAINING_FILE), ["other.jpg"])
    with pytest.raises(npu_session.InputError, match="holds no images to train on"):
        reproduce.choose_images(folder, str(tmp_path))


def test_folders_that_are_wrong_are_refused(tmp_path):
    code, _, err = run(tmp_path / "out", f"--data_path={tmp_path}/none")
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err
    (tmp_path / "file").write_text("")
    code, _, err = run(f"{tmp_path}/file/out")
    assert code == 2 and "cannot write to the folder" in err


@pytest.mark.parametrize("flags, expected", [
    ([], (None, reproduce.DEFAULT_OUTPUT)),
    (["--data_url=faces", "--train_url=job"], ("faces", "job")),
    (["--data_url=faces", "--data_path=mine", "--train_url=job", "--output_dir=out"],
     ("mine", "out"))])
def test_folders_as_modelarts_gives_them(flags, expected, monkeypatch):
    found = []
    monkeypatch.setattr(reproduce, "run",
                        lambda args: found.append((args.data_path, args.output_dir)) or 0)
    assert reproduce.main(flags) == 0 and found == [expected]
