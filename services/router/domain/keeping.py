"""What routers do about models by themselves: decisions over entries, heartbeats and tests. Pure.

Every router comes to the same decisions and tries to carry them out; compare-and-set lets it happen once.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from schemas.v1.experiment import Experiment
from schemas.v1.inference import Heartbeat
from schemas.v1.models import ModelEntry, ModelNeed, ModelPlan
from services.router.domain.models import ABANDONED_MS, as_in_file, failed, user_of

ORPHAN_MS = 5000
"""A test that is this old and yet on a model that is being changed was left so by a router that died."""
_AT_REST = frozenset({"registered", "unloaded", "failed"})
FREE = "openai"
"""The engine that takes no memory and no place."""


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    generation: int


@dataclass(frozen=True, slots=True)
class TakeBack(_Step):
    """A claim that nobody has followed up."""


@dataclass(frozen=True, slots=True)
class Settle(_Step):
    """Every worker concerned has done what is wanted."""


@dataclass(frozen=True, slots=True)
class GiveTurn(_Step):
    """The next worker of a rolling change."""

    worker: str


@dataclass(frozen=True, slots=True)
class GoBack(_Step):
    """The new one does not load."""

    reason: str


@dataclass(frozen=True, slots=True)
class LetGo:
    """Unload a model that nobody uses."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class EndTest:
    """A test whose start nobody finished."""

    test_id: str
    model_a: str
    reason: str


Step = TakeBack | Settle | GiveTurn | GoBack | LetGo | EndTest


@dataclass(slots=True)
class Field:
    """Everything that decisions rest on. ``beats`` are those of living workers, of every model."""

    entries: Mapping[str, ModelEntry]
    beats: Sequence[Heartbeat]
    tests: Sequence[Experiment]
    now_ms: int
    unused_minutes: float = 0.0
    of: dict[str, dict[str, Heartbeat]] = field(init=False)
    pools: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.of, self.pools = defaultdict(dict), {}
        for beat in self.beats:
            self.of[beat.model][beat.worker] = beat
            self.pools[beat.worker] = beat.pool

    def concerned(self, entry: ModelEntry) -> list[str]:
        """The living workers that have to do something about the entry."""
        mine = self.of.get(entry.name, {})
        if entry.spec is None or entry.desired != "loaded":
            return sorted(mine)
        pool = entry.spec.get("pool")
        return sorted({*(worker for worker, its in self.pools.items() if pool in {None, its})})


def steps(seen: Field) -> list[Step]:
    """What is to be done now."""
    found: list[Step] = []
    for entry in seen.entries.values():
        step = _step(entry, seen)
        if step is not None:
            found.append(step)
    return [*found, *_unused(seen), *_orphans(seen)]


def _step(entry: ModelEntry, seen: Field) -> Step | None:
    where = (entry.name, entry.generation)
    if entry.stage == "claimed":
        return TakeBack(*where) if seen.now_ms - entry.at_ms > ABANDONED_MS else None
    if entry.stage == "settled":
        return None
    mine = seen.of.get(entry.name, {})
    concerned = seen.concerned(entry)
    broken = [worker for worker in concerned if worker in mine and failed(entry, mine[worker])]
    if entry.has_previous and broken:
        beat = mine[broken[0]]
        why = (beat.next_reason if beat.next_state == "failed" else beat.reason) or "no reason was given"
        return GoBack(*where, f"generation {entry.generation} did not load on '{beat.worker}': {why}")
    done = [worker for worker in concerned if reached(entry, mine.get(worker))]
    if len(done) == len(concerned) or (done and {*done, *broken} == {*concerned}):
        # Loaded on nobody is not loaded: it stays in the changing until a worker comes.
        return Settle(*where) if done or entry.desired != "loaded" else None
    if entry.strategy == "rolling":
        worker = _next_turn(entry, concerned, mine)
        return GiveTurn(*where, worker) if worker else None
    return None


def reached(entry: ModelEntry, beat: Heartbeat | None) -> bool:
    """Whether a worker has done what the entry wants."""
    if entry.desired == "loaded":
        return beat is not None and beat.generation >= entry.generation and beat.state == "ready"
    if beat is None:
        return True
    if entry.desired == "removed":
        return as_in_file(entry, beat)
    return beat.state in _AT_REST and beat.generation >= entry.generation


def _next_turn(entry: ModelEntry, concerned: Iterable[str], mine: Mapping[str, Heartbeat]) -> str | None:
    """The worker to change over next: one that serves nobody, else one beside which another serves."""
    left = [worker for worker in concerned if not reached(entry, mine.get(worker))]
    if any(worker in entry.turn for worker in left):
        return None
    ready = {worker for worker, beat in mine.items() if beat.state == "ready"}
    idle = [worker for worker in left if worker not in ready]
    if idle:
        return idle[0]
    return next((worker for worker in left if ready - {worker}), None)


def _unused(seen: Field) -> list[Step]:
    if not seen.unused_minutes:
        return []
    found: list[Step] = []
    for name, mine in sorted(seen.of.items()):
        idle = _idle_s(name, mine.values(), seen)
        if idle is not None and idle >= seen.unused_minutes * 60:
            found.append(LetGo(name, f"unused for {seen.unused_minutes:g} min"))
    return found


def _idle_s(name: str, beats: Iterable[Heartbeat], seen: Field) -> float | None:
    """For how long nobody has asked for a model; None for one that must stay where it is."""
    entry = seen.entries.get(name)
    if entry is not None and entry.stage != "settled":
        return None
    if user_of(name, seen.tests) is not None:
        return None
    idle = [_rest_s(beat) for beat in beats if beat.state not in _AT_REST]
    known = [seconds for seconds in idle if seconds is not None]
    return min(known) if known and len(known) == len(idle) else None


def _rest_s(beat: Heartbeat) -> float | None:
    busy = beat.running or beat.queued or beat.idle_s < 0
    if beat.state != "ready" or beat.next_state not in {"", "failed"} or beat.engine == FREE or busy:
        return None
    return beat.idle_s


def _orphans(seen: Field) -> list[Step]:
    """Tests that began on a model that was being changed: their router died before it could see that."""
    found: list[Step] = []
    for test in seen.tests:
        for name in (test.model_a, test.model_b):
            entry = seen.entries.get(name)
            late = seen.now_ms - test.created_ms > ORPHAN_MS
            if entry is None or not late or entry.stage != "changing" or test.created_ms <= entry.at_ms:
                continue
            reason = f"model '{name}' was being changed when the test began: start it again"
            found.append(EndTest(test.test_id, test.model_a, reason))
            break
    return found


@dataclass(frozen=True, slots=True)
class Room:
    """How a load finds places on workers that hold as many models as they may.

    ``victims`` are to be unloaded for it; ``full`` says by worker who holds the places where nothing can be.
    """

    victims: tuple[str, ...] = ()
    full: Mapping[str, str] = field(default_factory=dict)


def room(name: str, plans: Iterable[ModelPlan], seen: Field, idle_s: float = 0.0) -> Room:
    """Whom to unload so that ``name`` can be loaded: of what is not in use, what was used longest ago.

    Only what nobody has asked for since ``idle_s`` seconds: two models must not throw each other out by turns.
    """
    victims: list[str] = []
    full: dict[str, str] = {}
    for plan in plans:
        here = {beat.model: beat for beat in seen.beats if beat.worker == plan.worker and _holds_place(beat)}
        lacking = plan.loaded_models - plan.max_models + 1
        if not plan.max_models or lacking <= 0 or name in here:
            continue
        idle = {model: _idle_s(model, seen.of[model].values(), seen) for model in here}
        free = [(seconds, model) for model, seconds in idle.items() if seconds is not None and seconds >= idle_s]
        chosen = [model for model in victims if model in here]
        fresh = [model for _, model in sorted(free, reverse=True) if model not in chosen]
        if len(chosen) + len(fresh) < lacking:
            full[plan.worker] = _holders(here, seen)
        else:
            victims += fresh[: max(0, lacking - len(chosen))]
    return Room(tuple(victims), full)


REFUSALS = ("insufficient_memory", "too_many_models", "model_not_loadable")
"""Why no worker takes a model; the first that holds for any of them is said."""


def refusal(plan: ModelPlan, need: ModelNeed | None, found: Room, freed: int = 0) -> str | None:
    """Why a worker does not take a model, one of REFUSALS; None where it does.

    ``freed``: bytes that the worker has got back by the time that it loads.
    """
    if need is None or need.fits:
        return None
    if need.source == "none":
        return REFUSALS[2]
    if need.total_bytes > need.available_bytes:
        return None if need.total_bytes <= need.available_bytes + freed else REFUSALS[0]
    if plan.worker in found.full:
        return REFUSALS[1]
    # Its places are why it said no, and there will be one, or the model has its own already.
    return None if 0 < plan.max_models <= plan.loaded_models else REFUSALS[2]


def _holds_place(beat: Heartbeat) -> bool:
    return beat.engine != FREE and beat.state not in _AT_REST


def _holders(here: Mapping[str, Heartbeat], seen: Field) -> str:
    said = []
    for model, beat in sorted(here.items()):
        test = user_of(model, seen.tests)
        if test is not None:
            said.append(f"'{model}' (test '{test.test_id}')")
        else:
            said.append(f"'{model}' ({beat.state}, {beat.running} running)")
    return ", ".join(said)
