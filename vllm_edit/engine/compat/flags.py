"""Classifies vLLM's settings by their effect on the base model, and refuses those that change it.

A site is fixed for the config, tokenizer, chat template, weights and generation config of the model's folder. The
fingerprint covers the folder, so it cannot detect a setting that replaces a part of the folder. Written for vLLM 0.32
(`EngineArgs`, `FrontendArgs`). A test checks that each setting of the installed vLLM is in one of the three tables.
Delete when vLLM can report which parts of a model's folder a server does not use.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.text.thinking import OFF, Thinking
from vllm_edit.text.utf8 import read_text
from vllm_edit.text.yaml_document import NotYaml, YamlDocument


@dataclass(frozen=True)
class Refused:
    """A setting that changes the base model, except with its `allowed` values, which include vLLM's default."""

    why: str
    allowed: Collection[object] = (None,)


_TEMPLATE = "the site was fixed with the template of the model's folder as it is"
_CONFIG = "the site was fixed for the config of the model's folder"
_TOKENIZER = "the site was fixed with the model's own tokenizer"
_WEIGHTS = "the site was fixed for the weights of the model's folder"
_GENERATION = "the gates were measured with the model's own generation_config.json"
_QUANTISED = "quantising changes the site's base model"
_CODE = "the site was fixed without the folder's own code"

REFUSED: Mapping[str, Refused] = {
    "chat_template": Refused(_TEMPLATE),
    "chat_template_content_format": Refused(_TEMPLATE, ("auto",)),
    "code_revision": Refused(_CODE),
    "cohere_format": Refused(_TEMPLATE, (None, "cmd4")),
    "config_format": Refused(_CONFIG, ("auto", "hf")),
    "convert": Refused("answers are text", ("auto", "none")),
    "default_chat_template_kwargs": Refused(_TEMPLATE, (None, {})),
    "default_mm_loras": Refused("adapters come from the store alone", (None, {})),
    "diffusion_config": Refused(_GENERATION),
    "generation_config": Refused(_GENERATION, ("auto",)),
    "hf_config_path": Refused(_CONFIG),
    "hf_overrides": Refused(_CONFIG, (None, {})),
    "ignore_patterns": Refused(_WEIGHTS, ("original/**/*", ["original/**/*"])),
    "kv_cache_dtype": Refused(_QUANTISED, ("auto", "float16", "bfloat16")),
    "load_format": Refused(
        _WEIGHTS, ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer")
    ),
    "logits_processors": Refused(_GENERATION, (None, [])),
    "lora_modules": Refused("adapters come from the store alone", (None, [])),
    "mm_encoder_only": Refused("answers are text", (False,)),
    "model_class_overrides": Refused(_CONFIG, (None, {})),
    "model_impl": Refused(_CONFIG, ("auto", "vllm", "transformers")),
    "model_weights": Refused(_WEIGHTS, (None, "")),
    "override_generation_config": Refused(_GENERATION, (None, {})),
    "quantization": Refused(_QUANTISED),
    "quantization_config": Refused(_QUANTISED, (None, {})),
    "runner": Refused("answers are text", ("auto", "generate")),
    "skip_tokenizer_init": Refused(_TOKENIZER, (False,)),
    "tokenizer": Refused(_TOKENIZER),
    "tokenizer_mode": Refused(_TOKENIZER, ("auto", "hf")),
    "tokenizer_revision": Refused(_TOKENIZER),
    "tokens_only": Refused(_TOKENIZER, (False,)),
    "trust_remote_code": Refused(_CODE, (False,)),
    "watermark_config": Refused(_GENERATION),
    "weight_transfer_config": Refused(_WEIGHTS),
}

_CHECKED = """
    api_key api_server_count config dtype enable_lora grpc headless host lora_target_modules max_lora_rank max_loras
    max_model_len model pipeline_parallel_size revision uds
"""
CHECKED = frozenset(_CHECKED.split())
"""Settings with their own checks in the profile or at start-up."""

_NEUTRAL = """
    _api_process_count _api_process_rank additional_config aggregate_engine_logging all2all_backend
    allow_credentials allow_deprecated_quantization allowed_headers allowed_local_media_path allowed_media_domains
    allowed_methods allowed_origins anthropic_disabled_thinking_effort async_scheduling attention_backend
    attention_config aux_output_config block_size cohere_is_reasoning_model collect_detailed_traces
    compilation_config cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params
    cudagraph_capture_sizes cudagraph_metrics custom_histogram_buckets data_parallel_address data_parallel_backend
    data_parallel_external_lb data_parallel_hybrid_lb data_parallel_multi_port_external_lb data_parallel_rank
    data_parallel_rpc_port data_parallel_size data_parallel_size_local data_parallel_start_rank
    data_parallel_supervisor_port dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend
    dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size device_ids
    disable_access_log_for_endpoints disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
    disable_fastapi_docs disable_hybrid_kv_cache_manager disable_log_stats disable_nccl_for_dp_synchronization
    disable_sliding_window disable_uvicorn_access_log distributed_executor_backend distributed_timeout_seconds
    download_dir dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s
    dp_sync_interval ec_manager_config ec_transfer_config elastic_ep_max_dp_size enable_auto_tool_choice
    enable_batch_sharded_sampling enable_chunked_prefill enable_cumem_allocator enable_dbo enable_elastic_ep
    enable_ep_weight_filter enable_eplb enable_expert_parallel enable_fault_tolerance enable_flash_late_interaction
    enable_flashinfer_autotune enable_force_include_usage enable_hc_sp enable_layerwise_nvtx_tracing
    enable_log_deltas enable_log_outputs enable_log_requests enable_logging_iteration_details
    enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint enable_mfu_metrics
    enable_mixed_moe_lora_format enable_mm_embeds enable_mm_processor_stats enable_moe_shared_loras
    enable_nccl_comm_suspend enable_offline_docs enable_per_request_metrics enable_prefix_caching
    enable_prompt_embeds enable_prompt_tokens_details enable_request_id_headers enable_return_routed_experts
    enable_scale_out enable_server_load_tracking enable_shm_tensor_arena enable_sleep_mode enable_ssl_refresh
    enable_tokenizer_info_endpoint enable_tower_connector_lora enable_trace_replay enforce_eager engram_config
    eplb_config exclude_tools_when_tool_choice_none expert_placement_strategy fail_on_environ_validation
    fault_tolerance_config fingerprint_mode fingerprint_value fully_sharded_loras gdn_prefill_backend
    gpu_memory_utilization grpc_port h11_max_header_count h11_max_incomplete_event_size hf_token
    interleave_mm_strings io_processor_plugin ir_op_priority jit_monitor_mode jit_monitor_verbose kda_decode_backend
    kda_prefill_backend kernel_config kv_cache_dtype_skip_layers kv_cache_memory_bytes kv_cache_metrics
    kv_cache_metrics_sample kv_events_config kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill
    kv_transfer_config language_model_only limit_mm_per_prompt linear_backend log_config_file log_error_stack
    log_level logging_config logprobs_mode long_prefill_token_threshold long_prefill_token_threshold_adaptive
    lora_dtype mamba_backend mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds
    mamba_config mamba_ssm_cache_dtype mamba_ssu_algorithm master_addr master_port max_cpu_loras
    max_cudagraph_capture_size max_log_len max_logprobs max_lora_cls_labels max_num_active_seqs
    max_num_batched_tokens max_num_queued_reqs max_num_queued_tokens max_num_scheduled_tokens max_num_seqs
    max_parallel_loading_workers media_io_kwargs middleware mm_device_do_normalize mm_encoder_attn_backend
    mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path
    mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb mm_processor_cache_type
    mm_processor_device mm_processor_kwargs mm_shm_cache_max_object_size_mb mm_tensor_ipc model_loader_extra_config
    moe_backend nnodes node_rank num_gpu_blocks_override numa_bind numa_bind_cpus numa_bind_nodes offload_backend
    offload_group_size offload_num_in_group offload_params offload_prefetch_step optimization_level
    otlp_traces_endpoint per_request_spec_decode_metrics performance_mode pooler_config port
    prefill_context_parallel_size prefill_schedule_interval prefix_cache_retention_interval prefix_caching_hash_algo
    prefix_match_unit profiler_config pt_load_map_location ray_workers_use_nsight reasoning_config reasoning_parser
    reasoning_parser_plugin renderer_num_workers replayssm_buffer_len response_role return_sampling_mask
    return_tokens_as_token_ids root_path safetensors_load_strategy safetensors_prefetch_block_size
    safetensors_prefetch_num_threads scheduler_cls scheduler_reserve_full_isl scheduling_policy seed
    served_model_name show_hidden_metrics_for_version shutdown_timeout skip_mm_profiling
    sleep_mode_offload_cudagraph sleep_preserve_parameter_names sparse_indexer_topk_backend spec_method spec_model
    spec_tokens specialize_active_lora speculative_config sse_keep_alive_interval ssl_ca_certs ssl_cert_reqs
    ssl_certfile ssl_ciphers ssl_keyfile stream_interval structured_outputs_config swa_bounded_replay
    tensor_parallel_size tool_call_parser tool_parser_plugin tool_server tool_strict_level
    trust_request_chat_template trust_request_mm_kwargs ubatch_size use_fp64_gumbel use_replayssm use_tqdm_on_load
    uvicorn_log_level video_pruning_method video_pruning_rate watermark worker_cls worker_extension_cls
"""
NEUTRAL = frozenset(_NEUTRAL.split())
"""Settings that do not change config, tokenizer, chat template, weights or generation config."""

_SHORT = {"-q": "quantization", "-dc": "diffusion_config", "-asc": "api_server_count", "-pp": "pipeline_parallel_size"}


def problems(settings: Mapping[str, object], thinking: Thinking | None = None) -> list[str]:
    """One line for each setting that changes the base model.

    Args:
        settings: vLLM's settings, by field name.
        thinking: the site's thinking mode; if it is off, a setting may switch off thinking in the template.
    """
    found = []
    for name, value in settings.items():
        refused = REFUSED.get(name)
        switched_off = thinking == "off" and name == "default_chat_template_kwargs" and value == OFF
        if refused is not None and value not in refused.allowed and not switched_off:
            found.append(f"--{name.replace('_', '-')} {_shortened(value)}: {refused.why}; leave it out")
    return found


def named(flags: Sequence[str]) -> dict[str, list[str]]:
    """Flags of a command line by vLLM's field names, each with its values.

    Accepts the forms that vLLM's parser accepts: `_` for `-`, `--a=b`, `--a.b c` for a part of `a`, `--no-a`, short
    forms, and unambiguous prefixes of names. The last occurrence of a flag counts. An unknown flag keeps its name.
    """
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for token in flags:
        if not token.startswith("-") or _is_number(token):
            values.append(token)
            continue
        head, equals, tail = token.partition("=")
        name, dot, part = head.partition(".")
        field = _field(name)
        if field.startswith("no_"):
            found[field.removeprefix("no_")] = ["false"]
            values = []
            continue
        values = [*found.get(field, []), part] if dot else []
        found[field] = values
        if equals:
            found[field].append(tail)
            values = []
    return found


def with_file(flags: Sequence[str]) -> list[str]:
    """The flags of the file that `--config` names, followed by `flags`: the order in which vLLM's parser reads them.

    Raises:
        EditError: the file cannot be read, or is not a YAML mapping.
    """
    place = named(flags).get("config")
    if not place:
        return list(flags)
    try:
        document = YamlDocument.parse(read_text(place[0])).data
    except OSError as error:
        raise EditError(f"--config {place[0]} cannot be read: {error.strerror}") from error
    except NotYaml as error:
        raise EditError(f"--config {place[0]}: {error}") from error
    if not isinstance(document, dict):
        raise EditError(f"--config {place[0]}: expected a mapping from names of flags to values")
    try:
        return [*(token for key, value in document.items() for token in _flag(str(key), value)), *flags]
    except (TypeError, ValueError, RecursionError) as error:  # a self-containing mapping, or non-string keys
        raise EditError(f"--config {place[0]}: expected values that JSON can hold: {error}") from error


def _flag(key: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)] if value else []
    return [f"--{key}", json.dumps(value, default=str) if isinstance(value, dict) else str(value)]


def judged(flags: Sequence[str]) -> JSONObject:
    """The settings of a command line that `problems` may refuse, with their values as vLLM reads them."""
    return {name: _value(said) for name, said in named(flags).items() if name in REFUSED}


def _field(head: str) -> str:
    if not head.startswith("--"):
        return _SHORT.get(head, head)
    name = head[2:].replace("-", "_")
    known = REFUSED.keys() | CHECKED | NEUTRAL
    longer = [field for field in (*known, *(f"no_{field}" for field in known)) if field.startswith(name)]
    return longer[0] if len(longer) == 1 and name not in known else name


def _value(said: Sequence[str]) -> JSONValue:
    read = [_read(text) for text in said]
    return True if not read else read[0] if len(read) == 1 else read


def _read(text: str) -> JSONValue:
    if text in ("None", ""):
        return None
    try:
        value: JSONValue = json.loads(text)
    except ValueError:
        return text
    return value


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
