"""Weights of encoders and decoders on disk: ours, the Ascend port's and upstream's public file.

A file without Coef is 0.3 MB and fits any number of samples.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re

import tensorflow.compat.v1 as tf

import npu_session
from npu_session import InputError

# In upstream's EYBfc_af.ckpt the biases have no names; Variable and enc_w3 there are unused.
UPSTREAM_BIASES = {"enc_b0": "Variable_1", "enc_b1": "Variable_2", "enc_b2": "Variable_3",
                   "dec_b0": "Variable_4", "dec_b1": "Variable_5", "dec_b2": "Variable_6"}
FIRST_KERNEL = re.compile(r"(\d+)/\1_(?:enc_w0|dec1_w0)")


def exists(path):
    """Whether there is a checkpoint with this prefix."""
    return os.path.isfile(path + ".index")


def names_in(shapes, name):
    """`name`, or upstream's name for it where only that is among the checkpoint's."""
    match = re.fullmatch(r"(\d+)/\1_(\w+)", name)
    if name in shapes or not match or match.group(2) not in UPSTREAM_BIASES:
        return name
    return f"{match.group(1)}/{UPSTREAM_BIASES[match.group(2)]}"


def read(path, variables, optional=()):
    """Arrays for the variables from the checkpoint with prefix `path`.

    Args:
      variables: must be there. optional: are left out where missing or of another shape.
    Returns:
      List of (variable, array).
    Raises:
      InputError: no such checkpoint, damaged, another number of modalities, a variable missing or
        of another shape.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        shapes = reader.get_variable_to_shape_map()
        check_modalities(path, shapes, variables)
        found = []
        for variable in list(variables) + list(optional):
            name, shape = names_in(shapes, variable.op.name), variable.shape.as_list()
            if shapes.get(name) == shape:
                found.append((variable, reader.get_tensor(name)))
            elif variable not in optional:
                raise InputError(f"checkpoint {path} has {name} {shapes.get(name, 'missing')}, "
                                 f"this model {shape}: it was made with other settings")
        return found
    except InputError:
        raise
    except (tf.errors.OpError, ValueError, LookupError, RuntimeError) as error:  # the reader's
        raise InputError(f"checkpoint {path} cannot be read ({type(error).__name__}): copy or "
                         "train it again") from None


def check_modalities(path, shapes, variables):
    """InputError if the checkpoint has another number of modalities than the variables."""
    theirs, ours = (len({match.group(1) for match in map(FIRST_KERNEL.fullmatch, names) if match})
                    for names in (shapes, [variable.op.name for variable in variables]))
    if theirs != ours:
        raise InputError(f"checkpoint {path} is of {theirs} modalities, the data have {ours}: "
                         "choose the model that was trained on these data with --model")


def load(session, pairs):
    """Gives the variables the arrays of a list of (variable, array), as `read` returns it."""
    session.run([variable.initializer for variable, _ in pairs],
                {variable.initializer.inputs[1]: array for variable, array in pairs})


class Writer:
    """Writes the given variables to one checkpoint, again and again. Make it before finalising."""

    def __init__(self, path, variables):
        self.path = path
        self._files = npu_session.Checkpoints(os.path.dirname(path), variables)

    def write(self, session):
        """Raises OSError when it cannot."""
        os.makedirs(self._files.folder, exist_ok=True)
        self._files.save(session, os.path.basename(self.path))
