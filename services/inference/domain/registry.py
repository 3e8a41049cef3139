"""What a worker does next about one model, given what it has of it and what is wanted."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from services.inference.domain.lifecycle import LOADABLE, ON_THE_WAY, State


class Step(StrEnum):
    """One step; after each the question is asked anew.

    ``nothing``: wait for what is going on, or all is as wanted. ``adopt``: what is here is what is wanted, under
    another generation. ``load``: from nothing to ready. ``load_next``: beside what serves, to take its place once it
    is ready. ``drop_next``: give that one up. ``abandon``: give up a load that is going on. ``unload``: take no more,
    let what is here finish, close. ``rest``: note that it is unloaded as wanted. ``forget``: drop it altogether.
    """

    NOTHING = "nothing"
    ADOPT = "adopt"
    LOAD = "load"
    LOAD_NEXT = "load_next"
    DROP_NEXT = "drop_next"
    ABANDON = "abandon"
    UNLOAD = "unload"
    REST = "rest"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Held:
    """One engine, or the lack of one: the spec it is of (a text that is equal for equal specs), and its generation."""

    spec: str
    generation: int
    state: State


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be. ``spec`` counts for ``loaded`` only.

    ``reload``: an engine of a lower generation will not do even when its spec is the same. ``turn``: whether this
    worker may stop serving in order to change over, for the strategy ``rolling``.
    """

    desired: Literal["loaded", "unloaded", "removed"]
    spec: str = ""
    generation: int = 0
    reload: bool = False
    rolling: bool = False
    turn: bool = True


def decide(present: Held, following: Held | None, wanted: Wanted) -> Step:  # noqa: PLR0911 - one for each rule
    """The next step for a model of which ``present`` serves (or does not) and ``following`` is to take its place."""
    if wanted.desired != "loaded":
        return _away(present, following, wanted)
    if following is not None:
        return _beside(following, wanted)
    if present.state is State.DRAINING:
        return Step.NOTHING
    if _serves_for(present, wanted):
        return _same(present, wanted)
    if present.state in LOADABLE:
        return Step.LOAD
    if present.state in ON_THE_WAY:
        return Step.ABANDON
    if not wanted.rolling:
        return Step.LOAD_NEXT
    return Step.UNLOAD if wanted.turn else Step.NOTHING


def _away(present: Held, following: Held | None, wanted: Wanted) -> Step:
    if following is not None:
        return Step.DROP_NEXT
    if present.state in ON_THE_WAY:
        return Step.ABANDON
    if present.state is State.READY:
        return Step.UNLOAD
    if present.state is State.DRAINING:
        return Step.NOTHING
    if wanted.desired == "removed":
        return Step.FORGET
    done = present.state is State.UNLOADED and present.generation == wanted.generation
    return Step.NOTHING if done else Step.REST


def _beside(following: Held, wanted: Wanted) -> Step:
    if following.generation == wanted.generation and following.spec == wanted.spec:
        return Step.NOTHING  # being loaded, or failed: then what serves goes on until something else is wanted
    return Step.DROP_NEXT


def _serves_for(present: Held, wanted: Wanted) -> bool:
    if present.spec != wanted.spec:
        return False
    return not (wanted.reload and present.generation < wanted.generation)


def _same(present: Held, wanted: Wanted) -> Step:
    if present.state is State.FAILED:
        # Its tries are used up: only a new order begins anew.
        return Step.NOTHING if present.generation == wanted.generation else Step.LOAD
    if present.state in LOADABLE:
        return Step.LOAD
    return Step.NOTHING if present.generation == wanted.generation else Step.ADOPT
