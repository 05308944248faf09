"""Rank functions; they work only between initialize_system and shutdown_system."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

from npu_bridge._strict import RECORD, rank_size, require

RANKS_PER_SERVER = 8


def get_rank_id(group="hccl_world_group"):
    """This process's rank."""
    _require_system("get_rank_id", group)
    return int(os.environ.get("RANK_ID", 0))


def get_rank_size(group="hccl_world_group"):
    """Number of ranks."""
    _require_system("get_rank_size", group)
    return rank_size()


def get_local_rank_id(group="hccl_world_group"):
    """This process's rank inside its server."""
    return get_rank_id(group) % RANKS_PER_SERVER


def get_local_rank_size(group="hccl_world_group"):
    """Number of ranks in this process's server."""
    return min(get_rank_size(group), RANKS_PER_SERVER)


def _require_system(function, group):
    require(group == "hccl_world_group", f"{function}: the fake knows no group {group!r}.")
    events = RECORD["system"]
    is_running = bool(events) and events[-1]["operation"] == "initialize_system"
    require(is_running, f"{function} needs npu_ops.initialize_system() to have run in a session.")
