"""Collective operations: checked, recorded, and the identity on the CPU."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import tensorflow.compat.v1 as tf

from npu_bridge._strict import note, rank_size, require

WORLD = "hccl_world_group"
TYPES = (tf.int8, tf.int32, tf.float16, tf.float32)


def allreduce(tensor, reduction, fusion=1, fusion_id=-1, group=WORLD):
    """Tensor reduced over the ranks by max, min, prod or sum."""
    is_known = reduction in ("max", "min", "prod", "sum")
    require(is_known, f"Reduction {reduction!r} is not max, min, prod or sum.")
    arguments = {"reduction": reduction, "fusion": fusion, "fusion_id": fusion_id, "group": group}
    return _collective("allreduce", [tensor], arguments)[0]


def broadcast(tensor, root_rank, fusion=2, fusion_id=0, group=WORLD):
    """List of tensors in, list of the root rank's tensors out."""
    require(isinstance(tensor, (list, tuple)), f"broadcast takes a list, found {tensor!r}.")
    arguments = {"root_rank": root_rank, "fusion": fusion, "fusion_id": fusion_id, "group": group}
    return _collective("broadcast", tensor, arguments)


def _collective(operation, tensors, arguments):
    require(rank_size() > 1, f"{operation} needs RANK_SIZE>1, found {rank_size()}.")
    require(os.environ.get("JOB_ID"), f"{operation} needs the environment variable JOB_ID.")
    for tensor in tensors:
        require(tensor.dtype.base_dtype in TYPES, f"{operation} knows no {tensor.dtype.name}.")
    note("collectives", op=operation, tensors=[tensor.name for tensor in tensors], **arguments)
    return [tf.identity(tensor) for tensor in tensors]
