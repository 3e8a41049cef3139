"""What becomes of a model's entry in the registry when somebody wants something else of it. Pure.

    (none) -> claimed -> changing -> settled -> claimed ...

A change begins as a claim, on which no worker acts; it is confirmed once no live test stands in its way, else what was
there before comes back. Generations only go up, but for those of claims that came to nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.v1.events import ModelRegistered
from schemas.v1.experiment import Experiment
from schemas.v1.inference import Heartbeat
from schemas.v1.models import ModelEntry, Strategy
from services.router.domain.refusals import Conflict, NotFound

KEEPER = "keeper"
"""Actor of what the routers do by themselves, such as unloading what nobody uses."""
DEMAND = "demand"
"""Actor of a load that a request for the model has asked for."""
MAX_MODELS = 500
"""In the registry: each has its heartbeats, four a second from each worker, and its series on /metrics."""
ABANDONED_MS = 5000
"""A claim older than this was left by a router that died: it is taken back."""


@dataclass(frozen=True, slots=True)
class Register:
    """Have this ``spec`` under its name, in place of what is there if ``replace``."""

    name: str
    spec: dict[str, Any]
    actor: str
    replace: bool = False
    strategy: Strategy = "alongside"


@dataclass(frozen=True, slots=True)
class Load:
    """Have the model loaded; with ``anew`` also where it is loaded already."""

    name: str
    actor: str
    anew: bool = False
    reason: str = ""
    strategy: Strategy = "alongside"


@dataclass(frozen=True, slots=True)
class Unload:
    """Have the model drained and unloaded."""

    name: str
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Remove:
    """Forget the entry: the model is as the workers' own configuration has it, if that does."""

    name: str
    actor: str


Command = Register | Load | Unload | Remove


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen of one model: the heartbeats of its living workers, and whether a configuration names it."""

    beats: Sequence[Heartbeat] = ()
    configured: bool = False

    @property
    def serving(self) -> list[Heartbeat]:
        """Those that are ready."""
        return [beat for beat in self.beats if beat.state == "ready"]

    def there(self, entry: ModelEntry | None) -> bool:
        """Whether there is such a model: in the registry, in a configuration, or on a worker of its own accord."""
        if entry is None:
            return self.configured or bool(self.beats)
        return entry.desired != "removed" or self.configured or any(as_in_file(entry, beat) for beat in self.beats)


@dataclass(frozen=True, slots=True)
class Claim:
    """``entry`` as it is to be written, None where nothing changes; ``guarded``: not under a live test."""

    entry: ModelEntry | None
    status: str
    generation: int
    guarded: bool = True


def claim(entry: ModelEntry | None, command: Command, seen: Seen, now_ms: int) -> Claim:
    """The claim that begins a change. Raises NotFound for a model that is not there, and Conflict."""
    if entry is not None and entry.stage == "claimed":
        raise Conflict(
            f"model '{entry.name}' is being changed by {entry.actor}: try again in a moment", param="name",
            code="model_changing", retry_after_s=1,
        )  # fmt: skip
    return _CLAIMS[type(command)](entry, command, seen, now_ms)


def confirm(entry: ModelEntry | None, claimed: ModelEntry, now_ms: int) -> ModelEntry:
    """The claim in force. Raises Conflict when it has been taken back meanwhile."""
    if entry is None or not same(entry, claimed):
        raise Conflict(
            f"the change of model '{claimed.name}' took too long and was taken back: try again", param="name",
            code="model_changing", retry_after_s=1,
        )  # fmt: skip
    return told(entry.model_copy(update={"stage": "changing", "before": None, "at_ms": now_ms}), now_ms)


def take_back(entry: ModelEntry | None, claimed: ModelEntry) -> ModelEntry | None:
    """What was there before the claim, None where nothing was; whatever else stands there now stays."""
    if entry is None or not same(entry, claimed):
        return entry
    if entry.before is None:
        return None
    return ModelEntry.model_validate({**entry.before, "outbox": entry.outbox})


def standing(entry: ModelEntry | None) -> ModelEntry | None:
    """What counts: the entry, or while it is only claimed the one before, if there was one."""
    if entry is None or entry.stage != "claimed":
        return entry
    return None if entry.before is None else ModelEntry.model_validate(entry.before)


def settle(entry: ModelEntry, now_ms: int) -> ModelEntry:
    """What was wanted has been reached."""
    fields: dict[str, Any] = {"stage": "settled", "turn": [], "previous": None, "has_previous": False}
    return told(entry.model_copy(update=fields), now_ms)


def give_turn(entry: ModelEntry, worker: str) -> ModelEntry:
    """Let one more worker change over."""
    return entry.model_copy(update={"turn": [*entry.turn, worker]})


def go_back(entry: ModelEntry, reason: str, now_ms: int) -> ModelEntry:
    """The spec that served before, since the new one does not load."""
    fields: dict[str, Any] = {
        "spec": entry.previous, "generation": entry.generation + 1, "strategy": "alongside", "turn": [],
        "reload": False, "previous": None, "has_previous": False, "reason": reason, "actor": KEEPER, "at_ms": now_ms,
    }  # fmt: skip
    return told(entry.model_copy(update=fields), now_ms)


def told(entry: ModelEntry, now_ms: int) -> ModelEntry:
    """The entry with an event of how it stands."""
    event = ModelRegistered(
        model=entry.name, desired=entry.desired, generation=entry.generation, stage=entry.stage, reason=entry.reason,
        actor=entry.actor, at_ms=now_ms,
    )  # fmt: skip
    return entry.model_copy(update={"outbox": [*entry.outbox, event]})


def without_events(entry: ModelEntry, published: Iterable[ModelRegistered]) -> ModelEntry:
    """The entry without events that have been published; the very same where there is none of them."""
    gone = list(published)
    left = [event for event in entry.outbox if event not in gone]
    return entry if len(left) == len(entry.outbox) else entry.model_copy(update={"outbox": left})


def same(one: ModelEntry, other: ModelEntry) -> bool:
    """Whether two entries say the same, whatever has been published of them."""
    return one.model_copy(update={"outbox": []}) == other.model_copy(update={"outbox": []})


def user_of(name: str, tests: Iterable[Experiment]) -> Experiment | None:
    """A live test whose model_a or model_b it is: scheduled, running, paused and rolling back all count."""
    return next((test for test in tests if test.live and name in {test.model_a, test.model_b}), None)


def refuse_under(name: str, tests: Iterable[Experiment]) -> None:
    """Raises Conflict where a live test stands in the way of changing a model."""
    test = user_of(name, tests)
    if test is not None:
        raise Conflict(
            f"test '{test.test_id}' ({test.status.value}) runs on model '{name}': stop it first", param="name",
            code="model_in_use",
        )  # fmt: skip


def refuse_more(name: str, entries: Mapping[str, ModelEntry]) -> None:
    """Raises Conflict where the registry has as many models as it may, and this is none of them."""
    there = {entry.name for entry in entries.values() if entry.desired != "removed"}
    if name not in there and len(there) >= MAX_MODELS:
        raise Conflict(
            f"there are {len(there)} registered models, as many as there may be: remove one", param="name",
            code="too_many_models",
        )  # fmt: skip


def may_start(param: str, name: str, entry: ModelEntry | None) -> None:
    """Raises Conflict where a test must not start on the model now."""
    if entry is None:
        return
    where = f"/v1/ab-testing/models/{name}"
    if entry.stage != "settled":
        raise Conflict(
            f"{param} '{name}' is being changed ({entry.desired} is wanted, by {entry.actor}): "
            f"start the test when GET {where} shows it settled", param=param, code="model_changing", retry_after_s=2,
        )  # fmt: skip
    if entry.desired == "unloaded":
        why = f", {entry.reason}" if entry.reason else ""
        raise Conflict(
            f"{param} '{name}' is unloaded (by {entry.actor}{why}): load it with POST {where}/load", param=param,
            code="model_unloaded",
        )  # fmt: skip


def still(param: str, name: str, before: ModelEntry | None, now: ModelEntry | None) -> None:
    """Raises Conflict where the model has changed since ``before``."""
    may_start(param, name, now)
    if (before.generation if before else 0) != (now.generation if now else 0):
        raise Conflict(
            f"{param} '{name}' was changed while the test began: start it again", param=param, code="model_changing",
            retry_after_s=1,
        )  # fmt: skip


def as_in_file(entry: ModelEntry, beat: Heartbeat) -> bool:
    """Whether a worker has the model of its own configuration's accord, after the entry was removed."""
    return beat.generation == 0 or beat.generation >= entry.generation


def failed(entry: ModelEntry, beat: Heartbeat) -> bool:
    """Whether a worker could not load what the entry wants."""
    if beat.next_state == "failed":
        return beat.next_generation >= entry.generation
    return beat.state == "failed" and max(beat.generation, beat.next_generation) >= entry.generation


def _register(entry: ModelEntry | None, cmd: Register, seen: Seen, now_ms: int) -> Claim:
    there = seen.there(entry)
    if there and not cmd.replace:
        raise Conflict(
            f"there is a model '{cmd.name}' already: give `replace: true` (--replace in a shell) to put this one in "
            "its place", param="name", code="model_exists",
        )  # fmt: skip
    if there and entry is not None and entry.desired == "loaded" and entry.spec == cmd.spec and not _ails(entry, seen):
        return Claim(None, "unchanged", entry.generation)
    pool = cmd.spec.get("pool")
    elsewhere = [beat for beat in seen.serving if pool is not None and beat.pool != pool]
    if elsewhere:
        raise Conflict(
            f"worker '{elsewhere[0].worker}' of pool '{elsewhere[0].pool}' serves '{cmd.name}', and a model moves to "
            "another pool with its requests lost: remove it first, or register it under another name", param="pool",
            code="pool_changes",
        )  # fmt: skip
    new = _next(entry, cmd, now_ms, spec=cmd.spec, strategy=_strategy(cmd.strategy, seen), **_to_go_back(entry, seen))
    return Claim(new, "replacing" if there else "registered", new.generation)


def _load(entry: ModelEntry | None, cmd: Load, seen: Seen, now_ms: int) -> Claim:
    _must_be_there(entry, cmd.name, seen)
    loaded = bool(seen.beats) and len(seen.serving) == len(seen.beats) if _is_none(entry) else _is_wanted(entry, seen)
    if loaded and not cmd.anew:
        return Claim(None, "unchanged", entry.generation if entry else 0)
    back = _to_go_back(entry, seen) if cmd.anew else {}
    strategy = _strategy(cmd.strategy, seen) if cmd.anew else "alongside"
    new = _next(entry, cmd, now_ms, strategy=strategy, reload=cmd.anew, reason=cmd.reason, **back)
    return Claim(new, "loading", new.generation, guarded=cmd.anew)


def _unload(entry: ModelEntry | None, cmd: Unload, seen: Seen, now_ms: int) -> Claim:
    _must_be_there(entry, cmd.name, seen)
    # What the keeper unloaded comes back on demand; once an operator says so, it does not.
    if entry is not None and entry.desired == "unloaded" and (entry.actor != KEEPER or cmd.actor == KEEPER):
        return Claim(None, "unchanged", entry.generation)
    new = _next(entry, cmd, now_ms, desired="unloaded", reason=cmd.reason)
    return Claim(new, "unloading", new.generation)


def _remove(entry: ModelEntry | None, cmd: Remove, seen: Seen, now_ms: int) -> Claim:
    if entry is None or entry.desired == "removed":
        _must_be_there(entry, cmd.name, seen)
        raise Conflict(
            f"model '{cmd.name}' stands in the configuration of the workers, and not in the registry: unload it, or "
            "take it out of `models` there", param="name", code="model_configured",
        )  # fmt: skip
    new = _next(entry, cmd, now_ms, desired="removed", spec=None)
    return Claim(new, "removed", new.generation)


_CLAIMS: dict[type[Any], Callable[[ModelEntry | None, Any, Seen, int], Claim]] = {
    Register: _register, Load: _load, Unload: _unload, Remove: _remove,
}  # fmt: skip


def _next(entry: ModelEntry | None, cmd: Command, now_ms: int, **fields: Any) -> ModelEntry:
    before = None
    if entry is not None:
        before = entry.model_copy(update={"outbox": []}).model_dump(mode="json")
        fields.setdefault("spec", None if entry.desired == "removed" else entry.spec)
        # A worker may never have seen the order to load anew that this one takes the place of.
        fields["reload"] = fields.get("reload") or (entry.stage == "changing" and entry.reload)
    return ModelEntry(
        **{
            "name": cmd.name, "generation": entry.generation + 1 if entry else 1, "actor": cmd.actor, "at_ms": now_ms,
            "before": before, "outbox": list(entry.outbox) if entry else [], **fields,
        }
    )  # fmt: skip


def _to_go_back(entry: ModelEntry | None, seen: Seen) -> dict[str, Any]:
    """What to return to should the change fail: nothing where nobody serves."""
    if entry is not None and entry.stage == "changing":
        return {"previous": entry.previous, "has_previous": entry.has_previous}
    spec = None if _is_none(entry) or entry is None else entry.spec
    return {"previous": spec, "has_previous": bool(seen.serving)}


def _strategy(wanted: Strategy, seen: Seen) -> Strategy:
    if wanted == "rolling" and seen.serving and len(seen.serving) < 2:
        raise Conflict(
            f"only worker '{seen.serving[0].worker}' serves the model, and rolling needs another one to serve "
            "meanwhile: use strategy alongside", param="strategy", code="cannot_roll",
        )  # fmt: skip
    return wanted if seen.serving else "alongside"


def _is_none(entry: ModelEntry | None) -> bool:
    """Whether the workers' own configuration counts."""
    return entry is None or entry.desired == "removed"


def _is_wanted(entry: ModelEntry | None, seen: Seen) -> bool:
    return entry is not None and entry.desired == "loaded" and not _ails(entry, seen)


def _ails(entry: ModelEntry, seen: Seen) -> bool:
    """Whether a worker has given up on it: saying the same again then means to try again."""
    return any(failed(entry, beat) for beat in seen.beats)


def _must_be_there(entry: ModelEntry | None, name: str, seen: Seen) -> None:
    if not seen.there(entry):
        raise NotFound(
            f"model '{name}' is unknown: GET /v1/ab-testing/models lists the models", param="name",
            code="model_not_found",
        )  # fmt: skip
