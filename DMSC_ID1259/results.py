"""What a clustering leaves behind: labels of every evaluation, the chosen step, .npz and .mat."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io
import os
import zipfile

import numpy as np
import scipy.io

import metrics
import npu_session
from npu_session import InputError

HISTORY = "labels.npz"
SCORES = ("accuracy", "nmi", "ari")


class LabelHistory:
    """The labels of all evaluations so far, in <folder>/labels.npz.

    Args:
      folder: run folder.
      steps: of the evaluations to keep; a resumed run makes later ones again.
    Raises:
      InputError: the file is missing or damaged, or lacks one of these steps.
    """

    def __init__(self, folder, steps):
        self.path = os.path.join(folder, HISTORY)
        try:
            found = read_history(self.path) if steps else {}
            self.labels = {step: found[step] for step in steps}  # int [N], 1..K
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path} is damaged, or is not of this run's metrics.jsonl "
                             f"({error}): start anew in another folder") from None

    def add(self, step, labels):
        """Appends an evaluation; returns 1 - ARI between its labels and those before it."""
        before = self.labels[max(self.labels)] if self.labels else None
        self.labels[step] = np.asarray(labels, np.int32)
        write_npz(self.path, {"steps": sorted(self.labels), "labels": [
            self.labels[number] for number in sorted(self.labels)]})
        return 1.0 if before is None else 1.0 - metrics.adjusted_rand_index(before, labels)

    def most_typical(self):
        """The step whose clustering agrees best with all others: needs no true labels."""
        steps = sorted(self.labels)
        agreement = np.ones((len(steps), len(steps)))
        for row in range(len(steps)):
            for column in range(row):
                agreement[row, column] = agreement[column, row] = metrics.adjusted_rand_index(
                    self.labels[steps[row]], self.labels[steps[column]])
        return steps[int(np.argmax(agreement.sum(axis=0)))]


def read_history(path):
    """{step: labels int [N]} of a file of LabelHistory."""
    with np.load(path) as arrays:
        return dict(zip(arrays["steps"].tolist(), arrays["labels"]))


def write_npz(path, content):
    """Writes a dict of arrays as a compressed .npz, whole or not at all."""
    packed = io.BytesIO()  # a zip file on a full disk complains once more when it is collected
    np.savez_compressed(packed, **content)
    with npu_session.replacing(path, "wb") as file:
        file.write(packed.getvalue())


def write(folder, theta, labels, chosen, data, records):
    """Writes results.npz and results.mat.

    Args:
      folder: run folder. theta: float32 [N, N] of the last step. labels, chosen: int [N], of the
        last and of the label-free step. data: data_input.Data. records: of the evaluations.
    """
    content = {"C": theta, "labels": labels, "label_free_labels": chosen, "K": data.clusters,
               "data": data.name, "steps": [record["step"] for record in records]}
    if data.labels is not None:
        content["Label"] = data.labels
        content.update({name: [record[key] for record in records] for name, key in
                        zip(("ACC", "NMI", "ARI"), SCORES)})
    write_npz(os.path.join(folder, "results.npz"), content)
    with npu_session.replacing(os.path.join(folder, "results.mat"), "wb") as file:
        scipy.io.savemat(file, content, do_compression=True)


def sentence(name, scores):
    """A line of the report, for example `last step: ACC 98.12% NMI 97.50% ARI 96.80%`."""
    if scores.accuracy is None:
        return f"{name}: no true labels, no scores"
    return "{}: ACC {:.2f}% NMI {:.2f}% ARI {:.2f}%".format(
        name, *(100 * value for value in scores))
