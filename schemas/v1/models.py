"""The registry of models: what the KV bucket `models` holds, and the questions that workers answer about models.

One key for each model, `subjects.token(name)`, written by routers by compare-and-set and watched by every router and
worker. A model that has no entry is as the configuration of each worker says.
"""

from typing import Any, Literal

from pydantic import Field

from schemas.v1.common import Message, UnixMs
from schemas.v1.events import ModelRegistered

Desired = Literal["loaded", "unloaded", "removed"]
Strategy = Literal["alongside", "rolling"]
Stage = Literal["claimed", "changing", "settled"]


class ModelEntry(Message):
    """What is wanted of one model.

    ``spec`` is an entry of `models` in the configuration; None: as each worker's own configuration has it.
    ``generation`` grows with every change of what is wanted, unloading included; a worker of a lower one changes over.
    ``stage``: a ``claimed`` entry is still being checked against running tests, and no worker acts on it; ``changing``
    until every living worker has done what is wanted; then ``settled``. A test starts on settled models only.
    ``strategy`` ``rolling``: only the workers of ``turn`` change over, so that the others go on serving; ``alongside``:
    every worker loads the new one beside the old one and then drains that.
    ``reload``: to be loaded anew although ``spec`` is what a worker runs already (its files have changed, say); without it a
    worker that runs the same spec only takes over the generation.
    ``previous`` is the spec that served until now, to go back to should the new one not load anywhere.
    ``before`` is the whole entry that a claim stands on, and None where there was no entry: what counts while it is
    ``claimed``. ``outbox``: events that have not been published yet.
    """

    name: str
    spec: dict[str, Any] | None = None
    desired: Desired = "loaded"
    generation: int = Field(default=1, ge=1)
    stage: Stage = "claimed"
    strategy: Strategy = "alongside"
    turn: list[str] = Field(default_factory=list)
    reload: bool = False
    previous: dict[str, Any] | None = None
    has_previous: bool = False
    reason: str = ""
    actor: str = ""
    at_ms: UnixMs = 0
    before: dict[str, Any] | None = None
    outbox: list[ModelRegistered] = Field(default_factory=list)


class ModelQuery(Message):
    """`cypria.models.<verb>`: ``list`` (all models, without a name), ``plan`` (would ``specs`` fit?)

    ``worker`` restricts it to one worker; without it every worker answers.
    """

    model: str = ""
    worker: str = ""
    specs: list[dict[str, Any]] = Field(default_factory=list)


class ModelNeed(Message):
    """What one model needs on a worker, in bytes, and whether it fits there; ``message`` says why not, with figures.

    ``device`` is ``ram`` or ``gpu``; ``available_bytes`` is what is left there below the threshold of the worker;
    ``source`` says where the figures are from: ``files``, ``resource_planning`` or ``none`` (nothing is loaded here).
    """

    model: str
    fits: bool
    message: str = ""
    device: Literal["ram", "gpu"] = "ram"
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    overhead_bytes: int = 0
    total_bytes: int = 0
    available_bytes: int = 0
    parameters: int = 0
    loaded: bool = False
    source: str = "files"


class ModelPlan(Message):
    """What one worker says to ``plan``: every model asked for, in order, each beside those before it.

    ``limit_bytes`` = memory_threshold_percent of ``capacity_bytes``; ``used_bytes`` are taken already, by whatever.
    """

    worker: str
    pool: str = ""
    capacity_bytes: int = 0
    limit_bytes: int = 0
    used_bytes: int = 0
    gpu_capacity_bytes: int = 0
    gpu_limit_bytes: int = 0
    gpu_used_bytes: int = 0
    loaded_models: int = 0
    max_models: int = 0
    fits: bool = True
    needs: list[ModelNeed] = Field(default_factory=list)
