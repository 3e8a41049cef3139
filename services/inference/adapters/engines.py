"""Which engine a configuration names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services._runtime.settings_engines import Model
from services._runtime.start import importing
from services.inference.adapters.engine import Engine
from services.inference.adapters.openai_engine import OpenAIEngine
from services.inference.adapters.vllm_engine import VllmEngine


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What engines get besides their model: the interpreter of vLLM's environment, None for the default one, the names
    of the models that may bring code of their own, and within how many seconds pieces of one stream are joined.
    """

    vllm_python: Path | None = None
    remote_code: frozenset[str] = frozenset()
    join_s: float = 0.0


NOWHERE = Surroundings()
MakeEngine = Callable[[Model], Engine]


def make_engine(model: Model, surroundings: Surroundings = NOWHERE) -> Engine:
    """The engine that the configuration names. Raises ValueError with the remedy when its parts are missing."""
    try:
        return import_engine(model.engine)(model, surroundings)
    except ImportError as exc:
        raise ValueError(f"engine {model.engine} needs its extra: pip install 'cypria[torch]' ({exc})") from exc


def import_engine(name: str) -> Callable[[Model, Surroundings], Engine]:
    """Import what an engine needs; its factory. Takes seconds the first time. Raises ImportError."""
    if name == "openai":
        return lambda model, _surroundings: OpenAIEngine(model)
    if name == "transformers":
        with importing():
            from services.inference.adapters.transformers_engine import TransformersEngine

        return lambda model, _surroundings: TransformersEngine(model)
    if name == "vllm":
        return lambda model, surroundings: VllmEngine(
            model, python=surroundings.vllm_python, remote_code=model.name in surroundings.remote_code,
            join_s=surroundings.join_s,
        )
    raise ValueError(f"no engine is named '{name}'")
