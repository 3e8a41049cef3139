"""One engine of one model, from its configuration to its end; and all that this worker has under one name."""

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services._runtime.clock import monotonic
from services._runtime.settings_engines import Model
from services.inference.adapters.engine import UNKNOWN, Engine, EngineHealth
from services.inference.domain.admission import Admission
from services.inference.domain.cost import Prices
from services.inference.domain.lifecycle import ON_THE_WAY, State
from services.inference.domain.registry import Held, Wanted

if TYPE_CHECKING:
    from services.inference.adapters.job import Job


_numbers = itertools.count(1)


def spec_of(config: Model, problem: str = "") -> str:
    """A text that is equal for configurations which the same engine serves, and cannot serve for the same reason.

    Who loads a model at start, and which workers have it, changes nothing about its engine.
    """
    said = config.model_dump(mode="json", exclude={"preload", "pool"}, warnings=False)
    return json.dumps([said, problem], sort_keys=True, default=str)


class ServedModel:
    """One engine of a model: configuration, engine, state, and who runs or waits there.

    A request stays with the one that it came to, whatever takes its place meanwhile. ``problem`` is why there can never
    be an engine of this configuration, if so; ``key`` is its own, whatever else has its name. ``reread``: its
    files are to be read again even where they seem unchanged. ``after``: what became of the engine before it, which is
    the reason that is given until it is ready.
    """

    def __init__(self, config: Model, generation: int = 0, problem: str = "") -> None:
        self.config = config
        self.spec = spec_of(config, problem)
        self.generation = generation
        self.problem = problem
        self.reread = False
        self.key = f"{config.name}#{next(_numbers)}"
        self.engine: Engine | None = None
        self.state = State.REGISTERED
        self.reason = ""
        self.after = ""
        self.digest = config.digest or ""
        self.version = ""
        self.attempt: object = None
        self.dropped = False
        self.created = 0
        self.ready_at = 0.0
        self.doing = ""
        self.progress = -1.0
        self.admission: Admission[Job] = Admission(config.max_concurrency, config.max_queue)
        self.prices = Prices(config.cost.prompt_per_1k, config.cost.completion_per_1k, config.cost.gpu_second)
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def name(self) -> str:
        """What clients send as ``model``."""
        return self.config.name

    @property
    def held(self) -> Held:
        """As decisions see it."""
        return Held(self.spec, self.generation, self.state)

    @property
    def in_memory(self) -> bool:
        """Whether it takes, or is about to take, memory of this machine."""
        return self.config.engine != "openai" and (self.engine is not None or self.state in ON_THE_WAY)

    def memory_bytes(self) -> int:
        """Memory of the loaded model in this process."""
        return self.engine.memory_bytes() if self.engine else 0

    def health(self) -> EngineHealth:
        """How its engine is now."""
        return self.engine.health() if self.engine else UNKNOWN


@dataclass(eq=False)
class Place:
    """Everything under one model's name.

    ``present`` is what requests go to and heartbeats tell of; ``successor`` is being loaded to take over, or failed at
    it; ``leaving`` finish what they have, or are being closed. ``file`` is the entry of this worker's own
    configuration, ``wanted`` the order in force, about ``config``. ``deaths``: how often the engine has died since it
    was last healthy for long; ``restarts``: how often it was loaded again after that.
    """

    name: str
    file: Model | None
    present: ServedModel
    config: Model
    wanted: Wanted | None = None
    problem: str = ""
    successor: ServedModel | None = None
    leaving: list[ServedModel] = field(default_factory=list)
    restarts: int = 0
    deaths: int = 0
    used_at: float = field(default_factory=monotonic)

    @property
    def editions(self) -> list[ServedModel]:
        """All engines of this name, the present one first."""
        return [self.present, *([self.successor] if self.successor else []), *self.leaving]

    @property
    def in_memory(self) -> bool:
        """Whether anything of this name takes memory here."""
        return any(edition.in_memory for edition in self.editions)

    def idle_s(self) -> float:
        """Seconds since the last request ended, or since it was ready if that was later; negative while one is here.

        For the router, which knows the tests. A load may take longer than a model may be unused.
        """
        now = monotonic()
        if any(not edition.idle.is_set() for edition in (self.present, *self.leaving)):
            self.used_at = now
            return -1.0
        return now - max(self.used_at, self.present.ready_at)
