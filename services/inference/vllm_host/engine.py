"""Makes vLLM's engine and its OpenAI application from the arguments of a START frame."""

import argparse
import difflib
import gc
import inspect
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from . import stats as own_stats
from .frames import Start
from .stats import EngineStats

_KV_CACHE_BYTES = 1 << 30
"""Of a model on a CPU whose arguments say nothing; vLLM would take most of the machine's memory."""


class Loaded(NamedTuple):
    """What answers requests: the engine's client, the ASGI application before it, and what they are."""

    engine: Any
    app: Any
    version: str
    generates: bool
    embeds: bool
    tidy: bool
    """Whether it holds what outlives a killed process: memory of devices and memory shared between processes."""


class ArgumentError(ValueError):
    """An engine argument that vLLM does not have, or whose value it does not take; the message names it."""


def said(exc: BaseException) -> str:
    """The line that says something, of an error whose text may have many."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        # Pydantic's: a heading, the name of the field unless it is of several, and then what is wrong.
        lines = lines[1:] if " " in lines[1] else lines[2:]
    return lines[0].removeprefix("Value error, ").partition(" [type=")[0] if lines else repr(exc)


def parse(start: Start) -> Any:
    """VLLM's own arguments, as its command line would make them. Raises ArgumentError."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.30
        from vllm.entrypoints.openai.cli_args import make_arg_parser

    parser = make_arg_parser(FlexibleArgumentParser())
    arguments = parser.parse_args([])
    actions = {action.dest: action for action in parser._actions}  # noqa: SLF001 - what argparse has no name for
    for name, value in {**start.defaults, **start.args}.items():
        if name not in actions:
            if name not in start.args:
                continue  # a default of ours that this version has no use for
            near = difflib.get_close_matches(name, actions, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentError(f"engine_args.{name}: this vLLM has no such argument{hint}")
        setattr(arguments, name, _value(parser, actions[name], value))
    arguments.model = start.path
    arguments.served_model_name = [start.base or start.name]
    return arguments


def _value(parser: Any, action: argparse.Action, value: Any) -> Any:
    """One value, checked and converted as if it came from the command line."""
    if value is None:
        return None
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ArgumentError(f"engine_args.{action.dest}: give true or false")
        return value
    many = action.nargs in {"+", "*"}
    if many and not isinstance(value, list):
        raise ArgumentError(f"engine_args.{action.dest}: give a list")
    try:
        values = [_converted(parser, action, item) for item in (value if many else [value])]
    except (argparse.ArgumentError, ValueError, TypeError) as exc:
        text = exc.message if isinstance(exc, argparse.ArgumentError) else said(exc)
        raise ArgumentError(f"engine_args.{action.dest}: {said(ValueError(text))}") from exc
    return values if many else values[0]


def _converted(parser: Any, action: argparse.Action, value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value)
    converted = parser._get_value(action, text)  # noqa: SLF001
    parser._check_value(action, converted)  # noqa: SLF001
    return converted


def _settle(arguments: Any, start: Start) -> bool:
    """What the machine decides, where nobody has said otherwise; whether one process on a CPU is the whole engine."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    given = start.args
    if "kv_cache_memory_bytes" not in given and "gpu_memory_utilization" not in given:
        arguments.kv_cache_memory_bytes = _KV_CACHE_BYTES
    if given.get("enforce_eager"):
        # Else a few helpers are compiled at their first use all the same, which takes a C++ compiler some 20 s.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    alone = getattr(arguments, "tensor_parallel_size", 1) * getattr(arguments, "pipeline_parallel_size", 1) == 1
    unbound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind"
    if alone and unbound and given.get("distributed_executor_backend", "uni") == "uni":
        # vLLM takes a process more, only so that it can bind its threads to cores, unless this variable is 0.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        arguments.distributed_executor_backend = "uni"
        return True
    return False


async def load(start: Start, stats: EngineStats) -> Loaded:
    """Load the model; blocks the event loop until it is there. Raises what vLLM raises, and ArgumentError."""
    gc.disable()  # modules stay: looking through them while more of them come takes long
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    how = "VLLM_WORKER_MULTIPROC_METHOD"
    chosen = os.environ.get(how)
    os.environ.setdefault(how, "spawn")
    arguments = parse(start)
    alone = _settle(arguments, start)
    if start.lora:
        _add_lora(arguments, start)
    _validate(arguments)
    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    gc.freeze()
    gc.enable()  # before the engine's process is forked, which has its own garbage
    # vLLM sets this for CPUs, so that libraries for binding threads can be preloaded. Forked, the engine need not
    # import everything again, which is half of the time and of the work of loading a small model.
    os.environ[how] = chosen or ("fork" if alone else "spawn")
    # With a logger of our own, the engine counts, but nothing is made of it but what we need.
    engine = AsyncLLM.from_vllm_config(
        config, usage_context=UsageContext.OPENAI_API_SERVER, stat_loggers=[_stat_logger(stats)], disable_log_stats=True
    )
    try:
        stats.devices = config.parallel_config.world_size * config.parallel_config.data_parallel_size
        app, tasks = await _application(engine, arguments)
    except BaseException:
        engine.shutdown()
        raise
    own_stats.watch(engine, stats)
    return Loaded(engine, app, vllm.__version__, "generate" in tasks, "embed" in tasks, tidy=not alone)


def _add_lora(arguments: Any, start: Start) -> None:
    try:
        from vllm.entrypoints.openai.models.protocol import LoRAModulePath
    except ImportError:
        from vllm.entrypoints.openai.serving_models import LoRAModulePath
    arguments.enable_lora = True
    if "max_lora_rank" not in start.args:
        rank = int(json.loads((Path(start.lora) / "adapter_config.json").read_text())["r"])
        allowed = (1, 8, 16, 32, 64, 128, 256, 320, 512)
        arguments.max_lora_rank = next((size for size in allowed if size >= rank), rank)
    arguments.lora_modules = [LoRAModulePath(name=start.name, path=start.lora)]


def _validate(arguments: Any) -> None:
    if arguments.enable_auto_tool_choice and not arguments.tool_call_parser:
        raise ArgumentError("engine_args.enable_auto_tool_choice needs tool_call_parser: name the parser of the model")
    try:
        from vllm.tool_parsers import ToolParserManager
    except ImportError:
        return
    known = list(ToolParserManager.list_registered())
    if arguments.tool_call_parser and arguments.tool_call_parser not in known:
        raise ArgumentError(
            f"engine_args.tool_call_parser: vLLM has no '{arguments.tool_call_parser}'; it has {', '.join(known)}"
        )


async def _application(engine: Any, arguments: Any) -> tuple[Any, tuple[str, ...]]:
    """VLLM's application for the engine, and the tasks that the model is fit for."""
    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
    except ImportError:  # before 0.30
        from vllm.entrypoints.openai.api_server import build_app, init_app_state

    tasks = tuple(await engine.get_supported_tasks())
    offered = {"supported_tasks": tasks, "model_config": engine.model_config, "vllm_config": engine.vllm_config}
    app = build_app(arguments, **_wanted(build_app, offered))
    # What it would stop when the engine dies is a server; we see to that ourselves.
    app.state.server = argparse.Namespace(should_exit=False)
    await init_app_state(engine, state=app.state, args=arguments, **_wanted(init_app_state, offered))
    return app, tasks


def _wanted(function: Any, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of ``offered`` that this version's function takes."""
    taken = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in taken}


def _stat_logger(stats: EngineStats) -> type[Any]:
    """A class for vLLM to make its logger of. Being its Prometheus logger by descent, it takes that one's place."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class StatLogger(PrometheusStatLogger):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            self.vllm_config = vllm_config
            self.engine_indexes = engine_indexes or [0]

        def record(self, scheduler_stats: Any, *_others: Any, engine_idx: int = 0, **_more: Any) -> None:
            stats.step(engine_idx, scheduler_stats)

        def log(self) -> None: ...
        def log_engine_initialized(self) -> None: ...
        def record_sleep_state(self, *_args: Any, **_more: Any) -> None: ...
        def record_admission_rejection(self, *_args: Any, **_more: Any) -> None: ...

    return StatLogger
