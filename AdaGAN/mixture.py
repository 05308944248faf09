"""The mixture of components as it is stored: samples of every generator, and weights.

Generators are not kept in memory: a sample of the mixture is a stored sample of a component that
is chosen by weight (as in the reference).
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io
import json
import os

import numpy as np

import npu_session
import reweighting
from npu_session import InputError

FILE = "mixture.json"  # {"betas": [..], "weights": [..]}: weights follow from betas
SAMPLES = "samples{:02d}.npy"


class Mixture:
    """Weighted components, in the order they were trained."""

    def __init__(self):
        self.components, self.betas, self.weights = [], [], np.empty(0)

    def add(self, samples, beta):
        """Joins a component: samples float32 [n, dim, 1, 1] and its weight beta in the mixture."""
        self.components.append(samples)
        self.betas.append(float(beta))
        self.weights = reweighting.component_weights(self.weights, beta)

    def sample(self, count, random):
        """Points drawn with replacement.

        Args:
          random: np.random.RandomState; consumed as the reference consumes NumPy's stream.
        Returns:
          float32 [count, dim, 1, 1] in random order.
        """
        chosen = random.choice(len(self.components), count, p=self.weights)
        numbers = np.bincount(chosen, minlength=len(self.components))
        points = np.concatenate([samples[random.randint(len(samples), size=number)]
                                 for samples, number in zip(self.components, numbers)])
        order = np.arange(count)
        random.shuffle(order)
        return points[order]

    def save_component(self, folder):
        """Writes samplesNN.npy of the last component."""
        path = os.path.join(folder, SAMPLES.format(len(self.components) - 1))
        write_array(path, self.components[-1])

    def save_weights(self, folder):
        """Writes mixture.json, by which `load` knows the components."""
        npu_session.write_json(os.path.join(folder, FILE), {
            "betas": self.betas, "weights": self.weights.tolist()})


def write_array(path, array):
    """Writes an array as .npy, whole or not at all. Raises OSError when it cannot."""
    content = io.BytesIO()  # np.save into a file says nothing when the disk is full
    np.save(content, array)
    with npu_session.replacing(path, "wb") as file:
        file.write(content.getvalue())


def load(folder, count=None):
    """The Mixture in a run folder, of its first `count` components or of all.

    Raises:
      InputError: a file is missing or damaged, or there are fewer components.
    """
    path = os.path.join(folder, FILE)
    betas = npu_session.read_json(path, _betas)
    if betas is None:
        raise InputError(f"{folder} holds no {FILE}: give the folder of a run with at least one "
                         "complete component")
    if count is not None and len(betas) < count:
        raise InputError(f"{path} has {len(betas)} components, not {count}: the run's files do "
                         "not belong together, start anew in another folder")
    mixture = Mixture()
    for number, beta in enumerate(betas[:count]):
        mixture.add(load_samples(os.path.join(folder, SAMPLES.format(number))), beta)
    return mixture


def _betas(file):
    """The list in a mixture.json, float; ValueError if the mixture's weights cannot follow."""
    betas = [float(beta) for beta in json.load(file)["betas"]]
    if betas[0] != 1 or not all(0 < beta <= 1 for beta in betas):
        raise ValueError(f"betas {betas}")
    return betas


def load_samples(path):
    """float32 [n, dim, 1, 1] of a file; InputError if it is missing, damaged or not of samples."""
    try:
        samples = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it, or start anew in another "
                         "folder") from None
    if (samples.dtype != np.float32 or samples.ndim != 4 or not len(samples)
            or samples.shape[2:] != (1, 1) or not np.isfinite(samples).all()):
        raise InputError(f"{path} holds {samples.dtype} {list(samples.shape)}, not finite float32 "
                         "samples [n, dim, 1, 1]: restore it, or start anew in another folder")
    return samples
