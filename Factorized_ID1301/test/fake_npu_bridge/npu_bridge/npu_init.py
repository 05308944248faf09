"""What `from npu_bridge.npu_init import *` brings, names that shadow a user's own included.

Left out: estimators, Keras, hooks, scopes, init_resource. The ports do not use them.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
# ruff: noqa: F401, I001  every import is an export
import os

import tensorflow as tf
from hccl.manage.api import get_local_rank_id, get_local_rank_size, get_rank_id, get_rank_size
from npu_bridge.estimator import npu_ops
from npu_bridge.estimator.npu import util
from npu_bridge.estimator.npu.npu_loss_scale_manager import ExponentialUpdateLossScaleManager
from npu_bridge.estimator.npu.npu_loss_scale_manager import FixedLossScaleManager
from npu_bridge.estimator.npu.npu_loss_scale_optimizer import NPULossScaleOptimizer
from npu_bridge.estimator.npu.npu_optimizer import NPUDistributedOptimizer, NPUOptimizer
from npu_bridge.estimator.npu.npu_optimizer import npu_allreduce, npu_tf_optimizer
from npu_bridge.estimator.npu.npu_optimizer import npu_distributed_optimizer_wrapper
from npu_bridge.hccl import hccl_ops
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.client import session
from tensorflow.python.keras import backend


def npu_config_proto(config_proto=None):
    """The given ConfigProto (or a new one), changed in place into one for NPU sessions."""
    config = config_proto or config_pb2.ConfigProto()
    config.allow_soft_placement = True
    config.graph_options.optimizer_options.global_jit_level = config_pb2.OptimizerOptions.OFF
    rewrites = config.graph_options.rewrite_options
    rewrites.remapping = RewriterConfig.OFF
    if not any(custom.name == "NpuOptimizer" for custom in rewrites.custom_optimizers):
        rewrites.custom_optimizers.add().name = "NpuOptimizer"
        rewrites.memory_optimization = RewriterConfig.OFF
    return config
