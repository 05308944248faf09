"""Loss-scale managers: hold the scale, and change it by what became of each step."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import tensorflow.compat.v1 as tf

from npu_bridge._strict import graph_facts, note, require

LARGEST_SCALE = 3.4e38


class LossScaleManager:
    """What the two managers share: they are recorded with their arguments."""

    enable_overflow_check = True

    def __init__(self, **arguments):
        graph = tf.get_default_graph()
        is_free = not graph._current_control_dependencies()
        require(is_free, "A loss-scale manager was built inside tf.control_dependencies.")
        graph_facts(graph).manager_count += 1
        note("managers", **{"class": type(self).__name__, "kwargs": arguments})

    def get_loss_scale(self):
        """float32 scalar, a tensor or variable named `loss_scale`."""
        return self._loss_scale


class FixedLossScaleManager(LossScaleManager):
    """Constant scale; with enable_overflow_check=False every update is applied."""

    def __init__(self, loss_scale, enable_overflow_check=True):
        if loss_scale < 1:
            raise ValueError(f"loss_scale must be at least 1, found {loss_scale}.")
        super().__init__(loss_scale=loss_scale, enable_overflow_check=enable_overflow_check)
        self.enable_overflow_check = enable_overflow_check
        self._loss_scale = tf.constant(loss_scale, tf.float32, name="loss_scale")

    def update_loss_scale(self, finite_grads):
        """Operation that changes nothing."""
        del finite_grads
        return tf.no_op()


class ExponentialUpdateLossScaleManager(LossScaleManager):
    """Scale that grows after good steps in a row and shrinks after overflows (floor 1)."""

    def __init__(self, init_loss_scale, incr_every_n_steps, decr_every_n_nan_or_inf=2,
                 incr_ratio=2, decr_ratio=0.8):
        super().__init__(init_loss_scale=init_loss_scale, incr_every_n_steps=incr_every_n_steps,
                         decr_every_n_nan_or_inf=decr_every_n_nan_or_inf,
                         incr_ratio=incr_ratio, decr_ratio=decr_ratio)
        self._incr_every, self._incr_ratio = incr_every_n_steps, incr_ratio
        self._decr_every, self._decr_ratio = decr_every_n_nan_or_inf, decr_ratio
        self._loss_scale = tf.Variable(float(init_loss_scale), name="loss_scale", trainable=False)
        self._good_steps = tf.Variable(0, name="good_steps", trainable=False)
        self._bad_steps = tf.Variable(0, name="bad_steps", trainable=False)

    def update_loss_scale(self, finite_grads):
        """Operation that counts one step; finite_grads is a bool scalar tensor."""
        scale, good, bad = self._loss_scale + 0.0, self._good_steps + 1, self._bad_steps + 1
        grows = tf.logical_and(finite_grads, good >= self._incr_every)
        shrinks = tf.logical_and(tf.logical_not(finite_grads), bad >= self._decr_every)
        is_growable = tf.logical_and(grows, scale < LARGEST_SCALE / self._incr_ratio)
        grown = tf.where(is_growable, scale * self._incr_ratio, scale)
        counts_good = tf.logical_and(finite_grads, tf.logical_not(grows))
        grown_or_shrunk = tf.where(shrinks, tf.maximum(1.0, scale * self._decr_ratio), grown)
        new_good = tf.where(counts_good, good, 0)
        new_bad = tf.where(tf.logical_or(grows, shrinks), 0, tf.where(finite_grads, bad - 1, bad))
        values = (grown_or_shrunk, new_good, new_bad)
        variables = (self._loss_scale, self._good_steps, self._bad_steps)
        with tf.control_dependencies(values):  # a ref variable's reads are not copies
            return tf.group(*[v.assign(value) for v, value in zip(variables, values)])
