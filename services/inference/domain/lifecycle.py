"""The states of a model on a worker, the ways between them, and how long to wait before another try."""

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
    State.REGISTERED: frozenset({State.VERIFYING, State.FAILED, State.UNLOADED}),
    State.VERIFYING: frozenset({State.LOADING, State.FAILED, State.UNLOADED}),
    # Back to verifying: another try after one that failed.
    State.LOADING: frozenset({State.WARMING, State.VERIFYING, State.FAILED, State.UNLOADED}),
    State.WARMING: frozenset({State.READY, State.VERIFYING, State.FAILED, State.UNLOADED}),
    State.READY: frozenset({State.DRAINING, State.FAILED}),
    State.DRAINING: frozenset({State.UNLOADED, State.FAILED}),
    State.UNLOADED: frozenset({State.VERIFYING}),
    State.FAILED: frozenset({State.VERIFYING, State.UNLOADED}),
}

ON_THE_WAY = frozenset({State.VERIFYING, State.LOADING, State.WARMING})
"""A load is going on."""

LOADABLE = frozenset({State.REGISTERED, State.UNLOADED, State.FAILED})
"""Nothing is loaded and nothing is being loaded."""

HEALTHY_S = 600.0
"""An engine that has lived for so long has all of its tries again."""

HUNG_S = 60.0
"""An engine that has shown no life for so long is taken for dead."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class LifecycleError(ValueError):
    """A step that the present state does not allow."""


def advance(present: State, following: State) -> State:
    """``following``, when it may come after ``present``. Raises LifecycleError."""
    if following not in _NEXT[present]:
        raise LifecycleError(f"a model that is {present} cannot become {following}")
    return following


def pause_s(failed: int, jitter: float) -> float:
    """Seconds to wait after so many failed tries (at least 1): 1, 2, 4 ... 60, less up to half of it.

    ``jitter`` is drawn from 0 to 1, so that workers which failed together do not try again together.
    """
    longest = min(_FIRST_PAUSE_S * 2.0 ** min(failed - 1, 16), _LONGEST_PAUSE_S)
    return longest * (1.0 - 0.5 * jitter)
