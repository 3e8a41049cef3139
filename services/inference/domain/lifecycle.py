"""The states of a model on a worker and the ways between them."""

from enum import StrEnum


class State(StrEnum):
    """Only ``ready`` takes requests; ``failed`` and ``unloaded`` can be loaded again."""

    REGISTERED = "registered"
    VERIFYING = "verifying"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


_NEXT: dict[State, frozenset[State]] = {
    State.REGISTERED: frozenset({State.VERIFYING}),
    State.VERIFYING: frozenset({State.LOADING, State.FAILED, State.UNLOADED}),
    State.LOADING: frozenset({State.WARMING, State.FAILED, State.UNLOADED}),
    State.WARMING: frozenset({State.READY, State.FAILED, State.UNLOADED}),
    State.READY: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.UNLOADED, State.FAILED}),
    State.UNLOADED: frozenset({State.VERIFYING}),
    State.FAILED: frozenset({State.VERIFYING, State.UNLOADED}),
}

LOADABLE = frozenset(state for state, following in _NEXT.items() if State.VERIFYING in following)


class LifecycleError(ValueError):
    """A step that the present state does not allow."""


def advance(present: State, following: State) -> State:
    """``following``, when it may come after ``present``. Raises LifecycleError."""
    if following not in _NEXT[present]:
        raise LifecycleError(f"a model that is {present} cannot become {following}")
    return following
