"""What a start form begins with: which model to try against which, and what holds where nothing else is asked for."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from schemas.v1.experiment import Experiment, TestResult


class ModelStanding(BaseModel):
    """A model as the page shows it: its state, its workers, what they carry, and the tests that it is in."""

    name: str
    state: str
    reason: str = ""
    workers: int = 0
    ready_workers: int = 0
    running: int = 0
    queued: int = 0
    free: int = 0
    engine: str = ""
    digest: str = ""
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    in_use_by: list[str] = Field(default_factory=list)


class Suggestion(BaseModel):
    """Split in percent, duration in minutes; models are null where none is ready for it."""

    enabled: bool = True
    model_a: str | None = None
    model_b: str | None = None
    traffic_split_percent: float
    test_duration_minutes: float
    success_criteria: dict[str, Any] = Field(default_factory=dict)
    failure_criteria: dict[str, Any] = Field(default_factory=dict)


def suggested(
    models: Sequence[ModelStanding], tests: Sequence[Experiment], results: Sequence[TestResult]
) -> tuple[str | None, str | None]:
    """(stable, canary): those of the last test where they are ready, else ready ones by their names."""
    ready = [model.name for model in models if model.ready_workers]
    taken = {name for test in tests for name in (test.model_a, test.model_b)}
    last = max(results, key=lambda result: result.end_time or "", default=None)
    before = last.models if last is not None else {}
    free = [name for name in ready if name not in taken]
    named = [name for name in free if any(word in name.lower() for word in ("stable", "prod", "base"))]
    a = _first([before.get("variant_a"), *named, *free], free)
    others = [name for name in ready if name != a and name not in taken]
    canaries = [name for name in others if any(word in name.lower() for word in ("canary", "candidate", "next"))]
    return a, _first([before.get("variant_b"), *canaries, *others], others)


def _first(wanted: Sequence[str | None], there: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in there), None)
