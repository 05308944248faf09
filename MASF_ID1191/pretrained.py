"""bvlc_alexnet.npy: the ImageNet weights of Caffe's AlexNet that the paper starts from.

The file is a pickled dict; it is read without running what a hostile pickle might contain.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import codecs
import collections
import pickle
import struct

import numpy as np

import masf_func
from npu_session import InputError

HELP = "expected a file made by np.save of {'conv1': [weights, biases], .., 'fc7': ..}"
# All that a pickle of a dict of float arrays refers to, under the module names of any NumPy.
ALLOWED = {
    "_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float32(0).__reduce__()[0],
    "ndarray": np.ndarray, "dtype": np.dtype, "encode": codecs.encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if module.split(".")[0] in ("numpy", "_codecs") and name in ALLOWED:
            return ALLOWED[name]
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def read_dict(path):
    """The dict in an .npy file of a 0-d object array; keys str, values as they are.

    Raises:
      InputError: not readable, not such a file, or its pickle holds other things than arrays.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            reader = {(1, 0): np.lib.format.read_array_header_1_0,
                      (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = reader(file)
            if shape != () or not dtype.hasobject:
                raise InputError(f"{path} holds an array {list(shape)} of {dtype}: {HELP}")
            content = _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise InputError(f"the weights file {path} cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, MemoryError,
            ImportError, pickle.UnpicklingError, struct.error) as error:
        raise InputError(f"the weights file {path} is damaged or of another kind ({error}): "
                         f"{HELP}") from None
    content = content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict: {HELP}")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value
            for key, value in content.items()}


def read(path):
    """Weights of conv1 .. fc7 by variable name (conv1/weights, ..), float32, finite.

    fc8 (1000 classes of ImageNet) and what else the file holds are left out.

    Raises:
      InputError: see read_dict; layers missing; an array of another shape, or not finite.
    """
    content, shapes = read_dict(path), masf_func.variable_shapes()
    missing = [name for name in masf_func.PRETRAINED if name not in content]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}; it has "
                         f"{', '.join(sorted(map(str, content)))}: {HELP}")
    weights = collections.OrderedDict()
    for layer in masf_func.PRETRAINED:
        try:
            arrays = [np.asarray(array, np.float32) for array in content[layer]]
        except (ValueError, TypeError) as error:
            raise InputError(f"{layer} in {path} is not two arrays of numbers: {error}") from None
        for array in arrays:  # as in the reference, the rank says which of the two it is
            weights[layer + ("/biases" if array.ndim == 1 else "/weights")] = array
        for name in (layer + "/weights", layer + "/biases"):
            _check(path, name, weights.get(name), shapes[name])
    return weights


def _check(path, name, array, shape):
    if array is None or array.shape != shape:
        found = "missing" if array is None else "of shape " + str(list(array.shape))
        raise InputError(f"{name} in {path} is {found}, expected {list(shape)}")
    if not np.isfinite(array).all():
        raise InputError(f"{name} in {path} holds values that are not finite")


def load(weights, variables, session):
    """Gives variables (by name) the weights, by feeding: nothing is added to the graph."""
    for name, array in weights.items():
        variables[name].load(array, session)
