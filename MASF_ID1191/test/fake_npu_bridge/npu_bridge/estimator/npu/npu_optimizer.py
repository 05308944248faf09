"""Optimizers that average gradients over the ranks."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import tensorflow.compat.v1 as tf

from npu_bridge._strict import note, rank_size
from npu_bridge.estimator.npu.npu_loss_scale_optimizer import NPULossScaleOptimizer
from npu_bridge.hccl import hccl_ops


def npu_allreduce(values, reduction="mean", fusion=1, fusion_id=-1, group=hccl_ops.WORLD):
    """Tensor or list of tensors reduced over the ranks; every mean is the identity here."""
    if isinstance(values, (list, tuple)):
        return [npu_allreduce(value, reduction, fusion, fusion_id, group) for value in values]
    name = "sum" if reduction == "mean" else reduction  # the adapter divides HCCL's sum
    return hccl_ops.allreduce(tf.convert_to_tensor(values), name, fusion, fusion_id, group)


def _averaged(grads_and_vars):
    """Gradients averaged over the ranks; None stays, and one rank alone calls no collective."""
    if rank_size() <= 1:
        return grads_and_vars
    return [(g if g is None else npu_allreduce(g), variable) for g, variable in grads_and_vars]


class NPUDistributedOptimizer(tf.train.Optimizer):
    """Wraps `opt`; compute_gradients returns averages over the ranks."""

    def __init__(self, opt, is_weight_update_sharding=False, name=None):
        super().__init__(use_locking=False, name=name or "NPUDistributedOptimizer")
        self._opt = opt
        note("optimizers", wrapper="NPUDistributedOptimizer", optimizer=type(opt).__name__,
             is_weight_update_sharding=is_weight_update_sharding)

    def compute_gradients(self, *args, **kwargs):
        """As tf.train.Optimizer, averaged."""
        return _averaged(self._opt.compute_gradients(*args, **kwargs))

    def apply_gradients(self, *args, **kwargs):
        """As the wrapped optimizer's."""
        return self._opt.apply_gradients(*args, **kwargs)


npu_tf_optimizer = NPUDistributedOptimizer


def npu_distributed_optimizer_wrapper(opt):
    """Changes opt.compute_gradients in place to return averages; returns `opt`."""
    plain = opt.compute_gradients
    opt.compute_gradients = lambda *args, **kwargs: _averaged(plain(*args, **kwargs))
    note("optimizers", wrapper="npu_distributed_optimizer_wrapper", optimizer=type(opt).__name__)
    return opt


def NPUOptimizer(opt, loss_scale_manager=None, is_distributed=False, is_loss_scale=False,
                 is_tailing_optimization=False, name=None):
    """Both wrappers in one; averages are taken of scaled gradients."""
    del is_tailing_optimization
    averaged = NPUDistributedOptimizer(opt, name=name) if is_distributed else opt
    if not is_loss_scale:
        return averaged
    return NPULossScaleOptimizer(averaged, loss_scale_manager, is_distributed)
