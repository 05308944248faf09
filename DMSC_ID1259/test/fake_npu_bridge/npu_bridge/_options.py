"""The adapter's session options: names, types, values and the rules between them."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import re

from npu_bridge._strict import require

NAMES_BY_TYPE = {
    "b": """use_off_line enable_data_pre_proc mix_compile_mode hcom_parallel hcom_multi_mode
        is_tailing_optimization dynamic_input enable_dump enable_dump_debug profiling_mode
        variable_format_optimize frozen_variable external_weight lower_functional_ops
        in_out_pair_flag enable_graph_parallel enable_compress_weight""",
    "i": """graph_run_mode iterations_per_loop hccl_timeout dynamic_node_type
        atomic_clean_policy static_memory_policy op_debug_level enable_small_channel
        enable_exception_dump session_device_id local_rank_id task_index stream_sync_timeout
        event_sync_timeout op_wait_timeout op_execute_timeout graph_exec_timeout deterministic
        topo_sorting_mode""",
    "s": """precision_mode precision_mode_v2 modify_mixlist op_precision_mode customize_dtypes
        op_select_implmode optypelist_for_implmode HCCL_algorithm dynamic_graph_execute_mode
        dynamic_inputs_shape_range input_shape dynamic_dims graph_memory_max_size
        variable_memory_max_size memory_optimization_policy dump_path dump_step dump_mode dump_data
        dump_layer dump_debug_mode profiling_options aoe_mode work_path aoe_config_file
        distribute_config auto_tune_mode op_debug_config op_compiler_cache_mode
        op_compiler_cache_dir debug_dir fusion_switch_file enable_scope_fusion_passes
        buffer_optimize local_device_list job stream_max_parallel_num ac_parallel_enable
        jit_compile variable_placement in_out_pair const_input device_type soc_config
        insert_op_file es_cluster_config graph_slice graph_compiler_cache_dir
        experimental_logical_device_cluster_deploy_mode experimental_logical_device_id
        experimental_model_deploy_mode experimental_model_deploy_devicelist
        resource_config_path graph_parallel_option_path compress_weight_conf""",
}
TYPE_OF = {name: kind for kind, names in NAMES_BY_TYPE.items() for name in names.split()}
NAMES_SINCE = {
    "2022": """customize_dtypes HCCL_algorithm hccl_timeout atomic_clean_policy
        static_memory_policy memory_optimization_policy""",
    "2023": "precision_mode_v2 deterministic jit_compile",
}
MIXED_MODE = "allow_mix_precision(_fp16|_bf16)?|mixed_(float16|bfloat16)"
PATTERNS = {  # of the value as text
    "precision_mode": "force_fp32|force_fp16|allow_fp32_to_fp16|must_keep_origin_dtype"
    "|allow_mix_precision(_fp16|_bf16)?|cube_fp16in_fp32out|allow_fp32_to_bf16",
    "op_select_implmode": "high_(precision|performance)(_for_all)?",
    "dump_mode": "input|output|all",
    "dump_data": "tensor|stats",
    "dump_step": r"\d+(-\d+)?(\|\d+(-\d+)?){0,99}",
    "dump_debug_mode": "aicore_overflow|atomic_overflow|all",
    "jit_compile": "true|false|auto",
    "aoe_mode": "1|2|4|mdat",
    "buffer_optimize": "l2_optimize|off_optimize",
    "dynamic_graph_execute_mode": "lazy_recompile|dynamic_execute",
    "variable_placement": "Device|Host",
    "graph_memory_max_size": r"\d+",  # bytes, as a decimal string
    "variable_memory_max_size": r"\d+",
    "local_device_list": r"\d+(,\d+)*",
    "graph_run_mode": "0|1",
    "dynamic_node_type": "0|1",
    "deterministic": "0|1",
    "enable_exception_dump": "[0-2]",
    "local_rank_id": "[0-7]",
    "session_device_id": r"\d+",
    "iterations_per_loop": r"[1-9]\d*",
}


def checked_options(config):
    """Returns the NPU options of a ConfigProto as a dict; raises FakeNpuError on any violation."""
    rewrites = config.graph_options.rewrite_options if config else None
    npu = [c for c in rewrites.custom_optimizers if c.name == "NpuOptimizer"] if config else []
    require(len(npu) == 1, f"Expected exactly 1 NpuOptimizer in the config, found {len(npu)}.")
    require(rewrites.remapping == 2, "rewrite_options.remapping must be RewriterConfig.OFF.")
    is_known_setting = rewrites.memory_optimization in (1, 2)
    require(is_known_setting, "rewrite_options.memory_optimization must be OFF or NO_MEM_OPT.")
    is_jit_off = config.graph_options.optimizer_options.global_jit_level <= 0
    require(is_jit_off, "optimizer_options.global_jit_level (XLA) must be off.")
    options = {name: _checked(name, value) for name, value in npu[0].parameter_map.items()}
    for check in (_check_precision, _check_files, _check_groups, _check_loop):
        check(options)
    return options


def _checked(name, attribute):
    """One AttrValue as bool, int or str."""
    require(name in TYPE_OF, f"The adapter knows no option {name!r}, and would ignore it.")
    era = os.environ.get("FAKE_NPU_ERA", "2023")
    is_newer = any(era < year and name in names.split() for year, names in NAMES_SINCE.items())
    require(not is_newer, f"Option {name} is newer than the adapter of {era}.")
    found, expected = attribute.WhichOneof("value"), TYPE_OF[name]
    require(found == expected, f"Option {name} must be set as .{expected}, not as .{found}.")
    value = getattr(attribute, found)
    value = value.decode("utf-8") if found == "s" else value
    pattern = PATTERNS.get(name)
    is_allowed = pattern is None or re.fullmatch(pattern, str(value))
    require(is_allowed, f"Option {name}={value!r} is not of the form {pattern}.")
    return value


def _check_precision(options):
    modes = [options[name] for name in ("precision_mode", "precision_mode_v2") if name in options]
    require(len(modes) < 2, "precision_mode and precision_mode_v2 must not both be set.")
    path = options.get("modify_mixlist")
    if path is None:
        return
    is_mixed = modes and re.fullmatch(MIXED_MODE, modes[0])
    require(is_mixed, "modify_mixlist needs precision_mode allow_mix_precision.")
    require(os.path.isabs(path), f"modify_mixlist={path!r} must be an absolute path.")
    require(os.path.isfile(path), f"modify_mixlist={path!r} does not exist.")
    with open(path) as stream:
        lists = _json_object("modify_mixlist", stream.read())
    unknown = set(lists) - {"black-list", "white-list"}
    unknown.update(key for part in lists.values() for key in set(part) - {"to-add", "to-remove"})
    require(not unknown, f"modify_mixlist has the unknown keys {sorted(unknown)}.")


def _json_object(name, text):
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    require(isinstance(value, dict), f"{name} must be a JSON object, found {text!r}.")
    return value


def _check_files(options):
    for name in ("op_precision_mode", "customize_dtypes", "fusion_switch_file"):
        is_file = name not in options or os.path.isfile(options[name])
        require(is_file, f"Option {name} does not name an existing file.")
    if options.get("enable_dump") or options.get("enable_dump_debug"):
        path = options.get("dump_path", "")
        is_usable = os.path.isdir(path) and os.access(path, os.R_OK | os.W_OK)
        require(is_usable, f"dump_path={path!r} is not an existing readable, writable folder.")
    if options.get("profiling_mode"):
        _json_object("profiling_options", options.get("profiling_options", ""))


def _check_groups(options):
    dynamic = {"input_shape", "dynamic_dims", "dynamic_node_type"}
    require(len(dynamic & set(options)) in (0, 3), f"{sorted(dynamic)} go together: all or none.")
    is_complete = "optypelist_for_implmode" not in options or "op_select_implmode" in options
    require(is_complete, "optypelist_for_implmode needs op_select_implmode.")
    is_double = options.get("enable_compress_weight") and options.get("compress_weight_conf")
    require(not is_double, "enable_compress_weight and compress_weight_conf exclude each other.")


def _check_loop(options):
    if options.get("iterations_per_loop", 1) == 1:
        return
    need = "iterations_per_loop>1 needs"
    require(options.get("enable_data_pre_proc"), f"{need} enable_data_pre_proc.")
    require(not options.get("mix_compile_mode"), f"{need} mix_compile_mode off.")
    is_lazy = options.get("dynamic_graph_execute_mode") == "lazy_recompile"
    require(not is_lazy, f"{need} another dynamic_graph_execute_mode than lazy_recompile.")
