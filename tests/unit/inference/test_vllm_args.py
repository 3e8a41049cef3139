"""What an entry of `models` may set of vLLM, and what its process gets of ours."""

from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters import vllm_args, vllm_environment
from services.inference.adapters.engines import Surroundings, make_engine
from services.inference.adapters.vllm_log import HostLog
from services.inference.vllm_host import frames


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "model"
    found.mkdir()
    (found / "template.jinja").write_text("{{ messages }}")
    (found / "words.txt").write_text("/etc/passwd")
    (tmp_path / "other.jinja").write_text("{{ messages }}")
    (found / "link.jinja").symlink_to(tmp_path / "other.jinja")
    return found


def checked(path: Path, args: dict[str, Any], *, remote_code: bool = False) -> dict[str, Any]:
    return vllm_args.checked(args, path, remote_code=remote_code)


def test_what_is_harmless_passes_as_it_is(path: Path) -> None:
    args = {
        "max_model_len": 4096, "dtype": "bfloat16", "enforce_eager": True, "tensor_parallel_size": 8,
        "gpu_memory_utilization": 0.8, "enable_auto_tool_choice": True, "tool_call_parser": "hermes",
        "hf_overrides": {"rope_scaling": {"factor": 4.0}}, "distributed_executor_backend": "mp",
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3}, "compilation_config": {"mode": 3},
        "generation_config": "vllm", "trust_remote_code": False,
    }  # fmt: skip
    assert checked(path, args) == args


# One by one: each would be a way to run code, to read or write a file, to open a port, to send something away, to see what
# callers write, or to load other weights than those whose digest was verified.
@pytest.mark.parametrize("name", [
    "model", "tokenizer", "hf_config_path", "served_model_name", "revision", "code_revision", "tokenizer_revision",
    "hf_token", "download_dir", "model_loader_extra_config", "lora_modules", "default_mm_loras", "middleware",
    "tool_parser_plugin", "reasoning_parser_plugin", "io_processor_plugin", "worker_cls", "worker_extension_cls",
    "scheduler_cls", "logits_processors", "model_class_overrides", "kv_transfer_config", "ec_transfer_config",
    "additional_config", "tool_server", "profiler_config", "logging_config", "log_config_file", "config",
    "allowed_local_media_path", "mm_encoder_fp8_scale_path", "mm_encoder_fp8_scale_save_path", "host", "port", "uds",
    "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "api_key", "root_path", "otlp_traces_endpoint", "kv_events_config",
    "master_addr", "nnodes", "data_parallel_address", "enable_log_requests", "enable_log_outputs", "log_error_stack",
    "trust_request_chat_template", "trust_request_mm_kwargs", "enable_prompt_embeds", "enable_mm_embeds",
    "disable_log_stats", "spec_model", "quantization_config", "weight_transfer_config", "enable_scale_out", "log_level",
])  # fmt: skip
def test_what_would_get_round_integrity_or_security_is_refused_by_name(path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^engine_args\.{name}\b.*: .+"):
        checked(path, {"max_model_len": 64, name: "x"})


@pytest.mark.parametrize(("args", "words"), [
    ({"load_format": "pt"}, "safetensors"),
    ({"distributed_executor_backend": "evil.Executor"}, "mp, uni"),
    ({"tokenizer_mode": "custom"}, "auto"),
    ({"generation_config": "/etc"}, "auto, vllm"),
    ({"compilation_config": {"inductor_passes": {"x": "evil.run"}}}, r"compilation_config\.inductor_passes"),
    ({"compilation_config": {"backend": "evil.run"}}, r"compilation_config\.backend"),
    ({"compilation_config": {"cache_dir": "/tmp/x"}}, r"compilation_config\.cache_dir"),
    ({"compilation_config": 3}, "mapping"),
    ({"speculative_config": {"model": "/other", "method": "eagle"}}, r"speculative_config\.model"),
    ({"speculative_config": {"method": "eagle"}}, "ngram"),
    ({"structured_outputs_config": {"reasoning_parser_plugin": "/x.py"}}, "reasoning_parser_plugin"),
    ({"hf_overrides": {"auto_map": {}}}, r"hf_overrides\.auto_map"),
    ({"trust_remote_code": True}, r"model_sources\.remote_code"),
    ({"chat_template": "../other.jinja"}, "outside the model's directory"),
    ({"chat_template": "/etc/passwd"}, "outside the model's directory"),
    ({"chat_template": "link.jinja"}, "outside the model's directory"),
    ({"chat_template": "words.txt"}, "no Jinja template"),
    ({"chat_template": "none.jinja"}, "cannot be read"),
    ({"chat_template": 7}, "Jinja"),
    ({"max_num_seq": 7}, "did you mean max_num_seqs"),
    ({"wings": 2}, "remove it"),
])  # fmt: skip
def test_values_that_would_do_so_are_refused_too(path: Path, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        checked(path, args)
    assert str(caught.value).startswith(f"engine_args.{next(iter(args))}")


def test_a_template_is_given_as_such_or_in_the_models_directory(path: Path) -> None:
    assert checked(path, {"chat_template": "{{ x }}"}) == {"chat_template": "{{ x }}"}
    assert checked(path, {"chat_template": "template.jinja"}) == {"chat_template": "{{ messages }}"}


def test_remote_code_needs_the_operators_word(path: Path) -> None:
    assert checked(path, {"trust_remote_code": True}, remote_code=True) == {"trust_remote_code": True}


def test_nothing_passes_to_the_host_that_it_does_not_need() -> None:
    ours = {
        "PATH": "/bin", "HOME": "/home/x", "LD_LIBRARY_PATH": "/lib", "CUDA_VISIBLE_DEVICES": "1", "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_ATTENTION_BACKEND": "X",
        "VLLM_API_KEY": "k", "HF_TOKEN": "t", "CYPRIA_NATS__PASSWORD": "p", "AWS_SECRET_ACCESS_KEY": "s", "PYTHONPATH": "/work",
        "OPENAI_API_KEY": "o", "HTTPS_PROXY": "http://u:p@x", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    got = vllm_environment.environment(ours, "/tmp/folder")
    assert {name for name in got if name in ours} == {
        "PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "VLLM_ATTENTION_BACKEND", "HF_HUB_OFFLINE",
    }  # fmt: skip
    assert got["HF_HUB_OFFLINE"] == "1"
    assert got["TMPDIR"] == got["VLLM_RPC_BASE_PATH"] == "/tmp/folder"
    assert vllm_environment.environment({**ours, "OMP_WAIT_POLICY": "ACTIVE"}, "/tmp/folder")["OMP_WAIT_POLICY"] == "ACTIVE"


def test_an_environment_that_is_not_there_is_an_error_with_its_remedy(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = Model(name="m", engine="vllm", path=path)
    with pytest.raises(ValueError, match=r"^inference\.vllm_python: /nowhere/python does not exist"):
        make_engine(model, Surroundings(vllm_python=Path("/nowhere/python")))
    monkeypatch.setattr(vllm_environment, "_INSTALLED", tmp_path / "none")
    with pytest.raises(ValueError, match=r"make install-vllm.*inference\.vllm_python"):
        make_engine(model)


def test_frames_come_out_as_they_went_in_however_they_are_cut() -> None:
    sent = [(frames.PIECE, 7, b"x" * 5000), (frames.HEALTH, 0, b""), (frames.END, 2**32 - 1, b"{}"), (frames.PIECE, 1, b"y" * 70000)]
    raw = b"".join(frames.frame(*frame) for frame in sent)
    for size in (1, 3, 9, 4096, len(raw)):
        splitter, got = frames.Splitter(), []
        for at in range(0, len(raw), size):
            got += splitter.feed(raw[at : at + size])
        assert got == sent


def test_the_cause_is_found_above_where_vllm_points_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []
    log = HostLog("m")
    log.progress = lambda doing, fraction: told.append((doing, fraction))
    for line in (
        "(EngineCore pid=9) INFO 11-25 21:24:43 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='x'",
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  7.96it/s]",
        "(EngineCore pid=9) ERROR 11-25 21:24:47 [core.py:1100] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "(MainProcess pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ):
        log._said(line)
    assert told == [("starting the engine", 0.3), ("loading the weights", pytest.approx(0.55))]
    cause = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    assert log.root_cause("RuntimeError: Engine core initialization failed. See root cause above.") == cause
    assert log.root_cause("ValueError: something else") == "ValueError: something else"
    assert log.last_words("it died") == f"it died ({cause})"
