"""Which of vLLM's arguments an entry of `models` may set.

Who may register a model may not thereby run code on a worker, read its files, open ports or reach other machines, nor
get round the digest of the weights. vLLM has some 300 arguments and more with each version, so what may be set is
listed, and what is not listed is refused.
"""

import difflib
from pathlib import Path
from typing import Any

_FREE = frozenset({
    # limits of the engine
    "max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_queued_reqs",
    "max_num_queued_tokens", "long_prefill_token_threshold", "max_logprobs", "block_size", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "num_gpu_blocks_override", "cpu_offload_gb", "kv_offloading_size", "watermark",
    # how it computes
    "dtype", "kv_cache_dtype", "mamba_cache_dtype", "mamba_ssm_cache_dtype", "quantization", "enforce_eager", "seed",
    "enable_prefix_caching", "prefix_caching_hash_algo", "enable_chunked_prefill", "async_scheduling",
    "scheduling_policy", "stream_interval", "optimization_level", "performance_mode", "attention_backend",
    "moe_backend", "linear_backend", "cudagraph_capture_sizes", "max_cudagraph_capture_size",
    "disable_sliding_window", "disable_hybrid_kv_cache_manager", "kv_sharing_fast_prefill", "logprobs_mode",
    "safetensors_load_strategy", "disable_custom_all_reduce", "enable_dbo", "dbo_decode_token_threshold",
    "dbo_prefill_token_threshold", "enable_flashinfer_autotune", "kv_cache_dtype_skip_layers", "mamba_cache_mode",
    "mamba_block_size", "mamba_backend", "max_num_active_seqs", "use_fp64_gumbel", "video_pruning_rate",
    # on which devices
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size",
    "prefill_context_parallel_size", "enable_expert_parallel", "enable_eplb", "all2all_backend",
    "expert_placement_strategy", "device_ids", "numa_bind", "numa_bind_nodes", "distributed_timeout_seconds",
    "max_parallel_loading_workers",
    # what kind of model it is taken for
    "runner", "convert", "task", "language_model_only", "limit_mm_per_prompt", "mm_processor_cache_gb",
    "mm_encoder_tp_mode", "mm_encoder_only", "interleave_mm_strings", "skip_mm_profiling", "override_generation_config",
    "allowed_media_domains",
    # LoRA
    "enable_lora", "lora_target_modules", "max_lora_rank", "max_loras", "max_cpu_loras", "fully_sharded_loras",
    "lora_dtype",
    # the front of it
    "chat_template_content_format", "default_chat_template_kwargs", "response_role", "return_tokens_as_token_ids",
    "enable_auto_tool_choice", "exclude_tools_when_tool_choice_none", "tool_call_parser", "tool_strict_level",
    "reasoning_parser", "enable_prompt_tokens_details", "fingerprint_mode", "renderer_num_workers",
})  # fmt: skip

_CHOICES: dict[str, frozenset[Any]] = {
    # Another name would be imported, or read as a path.
    "distributed_executor_backend": frozenset({"uni", "mp"}),
    "tokenizer_mode": frozenset({"auto", "hf", "slow", "mistral"}),
    "config_format": frozenset({"auto", "hf", "mistral"}),
    "generation_config": frozenset({"auto", "vllm"}),
    "model_impl": frozenset({"auto", "vllm", "transformers"}),
    "load_format": frozenset({"safetensors"}),
    "data_parallel_backend": frozenset({"mp"}),
}
_FIELDS: dict[str, frozenset[str]] = {
    # Of what has fields, those that name no code, file or address.
    "compilation_config": frozenset({
        "mode", "level", "cudagraph_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "compile_sizes",
        "cudagraph_num_of_warmups",
    }),
    "hf_overrides": frozenset({
        "rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings", "sliding_window",
    }),
    "speculative_config": frozenset({
        "method", "num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min", "disable_by_batch_size",
    }),
    "pooler_config": frozenset({
        "pooling_type", "seq_pooling_type", "tok_pooling_type", "normalize", "dimensions", "use_activation", "softmax",
        "activation", "enable_chunked_processing", "max_embed_len", "step_tag_id", "returned_token_ids", "task",
    }),
    "structured_outputs_config": frozenset({
        "backend", "disable_fallback", "disable_any_whitespace", "disable_additional_properties", "reasoning_parser",
        "enable_in_reasoning",
    }),
}  # fmt: skip
_SPECULATION = frozenset({"ngram", "suffix"})

_MODEL = "the entry itself names the model: set path"
_WEIGHTS = "only the safetensors in the model's directory are loaded, whose digest can be pinned"
_CODE = "it would run code that is not vLLM's"
_FILES = "it would read or write files outside the model's directory"
_NETWORK = "a worker opens no port for it and reaches no other machine"
_LOGS = "prompts and completions are not logged"
_CALLERS = "it would let callers do what only the operator may"
_OWN = "Cypria sets it"
_REFUSED: dict[str, str] = {
    **dict.fromkeys((
        "model", "model_tag", "tokenizer", "hf_config_path", "served_model_name", "skip_tokenizer_init",
    ), _MODEL),
    **dict.fromkeys((
        "model_weights", "revision", "code_revision", "tokenizer_revision", "hf_token", "download_dir",
        "model_loader_extra_config", "ignore_patterns", "quantization_config", "weight_transfer_config",
        "pt_load_map_location", "spec_model", "spec_method", "spec_tokens",
    ), _WEIGHTS),
    "lora_modules": "set adapter, the adapter's directory",
    "default_mm_loras": "set adapter, the adapter's directory",
    **dict.fromkeys((
        "middleware", "tool_parser_plugin", "reasoning_parser_plugin", "io_processor_plugin", "worker_cls",
        "worker_extension_cls", "scheduler_cls", "logits_processors", "model_class_overrides", "kv_transfer_config",
        "ec_transfer_config", "additional_config", "tool_server", "profiler_config", "logging_config", "kernel_config",
        "attention_config", "reasoning_config", "kv_offloading_backend",
    ), _CODE),
    **dict.fromkeys((
        "allowed_local_media_path", "config", "log_config_file", "mm_encoder_fp8_scale_path",
        "mm_encoder_fp8_scale_save_path",
    ), _FILES),
    **dict.fromkeys((
        "host", "port", "uds", "grpc", "grpc_port", "root_path", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs",
        "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh", "api_key", "allowed_origins", "allowed_methods",
        "allowed_headers", "allow_credentials", "otlp_traces_endpoint", "collect_detailed_traces", "kv_events_config",
        "master_addr", "master_port", "nnodes", "node_rank", "data_parallel_address", "data_parallel_rpc_port",
        "data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local", "data_parallel_hybrid_lb",
        "data_parallel_external_lb", "headless", "api_server_count",
    ), _NETWORK),
    **dict.fromkeys((
        "enable_log_requests", "enable_log_outputs", "enable_log_deltas", "max_log_len", "log_error_stack",
    ), _LOGS),
    **dict.fromkeys((
        "trust_request_chat_template", "trust_request_mm_kwargs", "enable_prompt_embeds", "enable_mm_embeds",
    ), _CALLERS),
    **dict.fromkeys((
        "disable_log_stats", "enable_force_include_usage", "sse_keep_alive_interval", "enable_per_request_metrics",
    ), _OWN),
}  # fmt: skip

_NO_DOMAIN = ("no-media-urls.invalid",)
"""Of engine_args.allowed_media_domains; an empty list would allow all of them."""
_JINJA = ("{{", "{%")


def checked(args: dict[str, Any], path: Path, *, remote_code: bool) -> dict[str, Any]:
    """``args`` as vLLM is to get them. Raises ValueError naming the first that may not be set, and why.

    ``path`` is the model's directory; ``remote_code``: the model may bring code of its own.
    """
    taken = {}
    for name, value in args.items():
        taken[name] = _checked(name, value, path, remote_code=remote_code)
    return taken


def defaults(*, max_num_seqs: int) -> dict[str, Any]:
    """What holds where ``args`` say nothing else."""
    return {
        "load_format": "safetensors",
        "max_num_seqs": max_num_seqs,
        "enable_prompt_tokens_details": True,
        "enable_log_requests": False,
        "log_error_stack": False,
        "allowed_media_domains": list(_NO_DOMAIN),
    }


def _checked(name: str, value: Any, path: Path, *, remote_code: bool) -> Any:
    where = f"engine_args.{name}"
    if name in _FREE:
        return value
    if name == "trust_remote_code":
        if value and not remote_code:
            raise ValueError(f"{where}: {_CODE}: model_sources.remote_code must name the model")
        return value
    if name == "chat_template":
        return _template(where, value, path)
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"{where}: may be {', '.join(sorted(_CHOICES[name]))}")
        return value
    if name in _FIELDS:
        return _fields(where, name, value)
    if reason := _REFUSED.get(name):
        raise ValueError(f"{where} cannot be set: {reason}")
    near = difflib.get_close_matches(name, [*_FREE, *_CHOICES, *_FIELDS], 1)
    hint = f"did you mean {near[0]}?" if near else "remove it"
    raise ValueError(f"{where}: vLLM has no such argument, or it may not be set here: {hint}")


def _fields(where: str, name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: give a mapping")  # noqa: TRY004 - of the configuration's errors all are ValueErrors
    if others := sorted(set(value) - _FIELDS[name]):
        raise ValueError(f"{where}.{others[0]} cannot be set: only {', '.join(sorted(_FIELDS[name]))} can")
    if name == "speculative_config" and value.get("method") not in _SPECULATION:
        raise ValueError(f"{where}.method: may be {', '.join(sorted(_SPECULATION))}, which need no other model")
    return value


def _template(where: str, value: Any, path: Path) -> str:
    """The text of the template: given as such, or in a file of the model's directory."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}: give a Jinja template, or the name of a file in the model's directory")
    if any(mark in value for mark in _JINJA):
        return value
    root = path.resolve()
    file = (root / value).resolve()
    if not file.is_relative_to(root):
        raise ValueError(f"{where}: {_FILES}: give the name of a file in it, or the template itself")
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"{where}: {value} cannot be read in the model's directory ({exc})") from exc
    if not any(mark in text for mark in _JINJA):  # vLLM would take it for the name of another file
        raise ValueError(f"{where}: {value} is no Jinja template")
    return text
