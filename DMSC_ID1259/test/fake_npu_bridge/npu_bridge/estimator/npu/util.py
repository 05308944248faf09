"""Iterations per loop: one Session.run, n steps on the device."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import tensorflow.compat.v1 as tf

from npu_bridge._strict import graph_facts, note, require


class IterationPerLoop:
    """Device loop in two phases: create before the graph is finalised, load in a session."""

    def __init__(self):
        self.train_op = None
        self.count = None  # runs of train_op per Session.run; None until loaded
        self._operation = None
        self._variables = []

    def create_iteration_per_loop_var(self, train_op):
        """Returns the operation IterationOp; it must be fetched itself, not through a group."""
        facts = _claim(train_op)
        self.train_op = train_op
        with tf.variable_scope("npu_runconfig", reuse=tf.AUTO_REUSE):
            names = ("iterations_per_loop", "loop_cond", "zero", "one")
            self._variables = [_local_variable(name) for name in names]
        self._operation = tf.group(train_op, name="IterationOp")
        facts.loops[self._operation.name] = self
        return self._operation

    def load_iteration_per_loop_var(self, sess, iterations_per_loop=1):
        """Sets the number of iterations; TypeError if no int, ValueError if not positive."""
        _check_count(iterations_per_loop)
        self.count = iterations_per_loop
        for variable, value in zip(self._variables, (self.count - 1, 0, 0, 1)):
            variable.load(value, session=sess)
        note("loops", op=self._operation.name, train_op=self.train_op.name, n=self.count)


def set_iteration_per_loop(sess, train_op, iterations_per_loop=1):
    """Returns an operation that runs train_op that often; train_op itself for once."""
    _check_count(iterations_per_loop)
    sess.fake_npu.check_loop(iterations_per_loop)
    if iterations_per_loop == 1:
        _claim(train_op)
        note("loops", op=train_op.name, train_op=train_op.name, n=1)
        return train_op
    loop = IterationPerLoop()
    operation = loop.create_iteration_per_loop_var(train_op)
    loop.load_iteration_per_loop_var(sess, iterations_per_loop)
    return operation


def _claim(train_op):
    """Checks that train_op is an operation without a loop so far; returns its graph's facts."""
    if not isinstance(train_op, tf.Operation):
        raise ValueError(f"train_op must be a tf.Operation, found {train_op!r}.")
    facts = graph_facts(train_op.graph)
    is_new = train_op not in facts.looped_train_ops
    require(is_new, f"{train_op.name} was given its loop count before.")
    facts.looped_train_ops.append(train_op)
    return facts


def _check_count(count):
    if not isinstance(count, int):
        raise TypeError(f"iterations_per_loop must be an int, found {count!r}.")
    if count <= 0:
        raise ValueError(f"iterations_per_loop must be positive, found {count}.")


def _local_variable(name):
    collections = [tf.GraphKeys.LOCAL_VARIABLES]
    return tf.get_variable(name, [], tf.int64, collections=collections, use_resource=True)
