"""Loss scaling: scaled loss, unscaled gradients, no update when a gradient is not finite."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import tensorflow.compat.v1 as tf

from npu_bridge._strict import graph_facts, note, rank_size, require
from npu_bridge.estimator.npu.npu_loss_scale_manager import LossScaleManager
from npu_bridge.hccl import hccl_ops

_plain_apply = tf.train.Optimizer.apply_gradients
_active = []  # NPULossScaleOptimizers whose update is being built


class NPULossScaleOptimizer(tf.train.Optimizer):
    """Wraps `opt`; is_finite of all gradients stands for the NPU's float status register."""

    def __init__(self, opt, loss_scale_manager, is_distributed=False):
        is_manager = isinstance(loss_scale_manager, LossScaleManager)
        require(is_manager, f"Expected a loss-scale manager, found {loss_scale_manager!r}.")
        is_right = is_distributed == (rank_size() > 1)
        require(is_right, f"is_distributed={is_distributed} with {rank_size()} rank(s).")
        super().__init__(use_locking=False, name="NPULossScaleOptimizer")
        self._opt, self._manager = opt, loss_scale_manager
        self._is_distributed = is_distributed
        note("optimizers", wrapper="NPULossScaleOptimizer", optimizer=type(opt).__name__,
             manager=type(loss_scale_manager).__name__, is_distributed=is_distributed)

    def compute_gradients(self, loss, *args, **kwargs):
        """As tf.train.Optimizer; `opt` sees the scaled loss, the caller unscaled gradients."""
        scale = self._manager.get_loss_scale()
        scaled = self._opt.compute_gradients(loss * tf.cast(scale, loss.dtype), *args, **kwargs)
        return [(_unscale(gradient, scale), variable) for gradient, variable in scaled]

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        """As tf.train.Optimizer; global_step stands still when the update is skipped."""
        grads_and_vars = list(grads_and_vars)

        def update():
            _active.append(self)
            try:
                return self._opt.apply_gradients(grads_and_vars, global_step)
            finally:
                _active.pop()

        if not self._manager.enable_overflow_check:
            return update()
        finite = self._all_finite([gradient for gradient, _ in grads_and_vars])
        applied = tf.cond(finite, update, tf.no_op)
        return tf.group(applied, self._manager.update_loss_scale(finite), name=name)

    def _all_finite(self, gradients):
        """bool scalar overflow_status_reduce_all; True when no gradient overflowed anywhere."""
        values = [getattr(gradient, "values", gradient) for gradient in gradients]
        checks = [tf.reduce_all(tf.math.is_finite(value)) for value in values if value is not None]
        finite = tf.reduce_all(tf.stack(checks))
        if self._is_distributed:
            overflows = tf.cast(tf.logical_not(finite), tf.float32)
            finite = hccl_ops.allreduce(overflows, "sum") < 0.5
        return tf.identity(finite, name="overflow_status_reduce_all")


def _unscale(gradient, scale):
    if gradient is None:
        return None
    factor = tf.cast(1.0 / scale, gradient.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor


def _watched_apply(self, *args, **kwargs):
    """Keeps the name of every optimizer applied past loss scaling."""
    if not _active:
        graph_facts(tf.get_default_graph()).plain_applies.append(type(self).__name__)
    return _plain_apply(self, *args, **kwargs)


tf.train.Optimizer.apply_gradients = _watched_apply
