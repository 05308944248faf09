"""NPU operations, done by TensorFlow's own on the CPU."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import tensorflow.compat.v1 as tf

from npu_bridge._strict import note


def dropout(x, keep_prob, noise_shape=None, seed=None, name=None):
    """tf.nn.dropout with the argument list of the fused NPU operation."""
    note("dropouts", tensor=x.name, keep_prob=keep_prob, seed=seed)
    return tf.nn.dropout(x, rate=1 - keep_prob, noise_shape=noise_shape, seed=seed, name=name)


def initialize_system():
    """Operation to run in a session before hccl.manage.api is asked for ranks."""
    return _system_operation("initialize_system")


def shutdown_system():
    """Operation that ends what initialize_system began."""
    return _system_operation("shutdown_system")


def _system_operation(name):
    def run():  # recorded when it runs, not when it is built
        note("system", operation=name)
        return []

    return tf.py_func(run, [], [], name=name)
