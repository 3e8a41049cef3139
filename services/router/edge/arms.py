"""Which arm a request goes to, and what its end means: assignment, breaker, lease, in-flight counts, facts."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from schemas.v1.alerts import Alert
from schemas.v1.common import ERRORS, NEUTRAL, AlertLevel, Decision, Outcome
from schemas.v1.experiment import Experiment, RollbackOrder, VerdictRecord
from schemas.v1.inference import Final
from services._runtime.clock import monotonic, now_ms
from services._runtime.telemetry import get_logger
from services.router.domain.assignment import SlotTable, UnitHasher, partition_of, unit_hash, unit_of
from services.router.domain.breaker import Breaker, Signal
from services.router.domain.call import Call
from services.router.domain.facts import Batcher, Fact, stratum
from services.router.domain.lease import CHECKS_TO_ROLLBACK, Lease, rollback_due, unwatched
from services.router.ports import Erasures, Experiments, Salts

log = get_logger(__name__)

BREAKER_RULE = "consecutive_errors"
LEASE_RULE = "monitor_down"
UNWATCHED = "unwatched"
MAX_BLOCKED = 1000
OVERDUE_GRACE_S = 1.0
"""A request that ends at its limit ends by its time-out; only what goes on beyond is overdue."""


def _nobody() -> int:
    """A unit that is nobody: nobody gains by guessing it, and it costs no system call."""
    return random.getrandbits(64)


class FactSink(Protocol):
    """Where facts go."""

    def add(self, partition: int, fact: Fact) -> None:
        """One fact."""


class Guard:
    """What this router keeps of one running test; ``hash_unit`` is None until the test's salt has come."""

    __slots__ = ("breaker", "erased", "hash_unit", "in_flight", "lease", "ordered", "slots", "test", "unwatched")

    def __init__(self, test: Experiment, now: float, erased: Collection[int]) -> None:
        self.test = test
        self.slots = SlotTable(test.salt.encode(), test.slots)
        self.breaker = Breaker(test.failure_criteria.max_consecutive_errors)
        self.lease = Lease(now)
        self.ordered = False
        self.unwatched = False
        self.in_flight: dict[str, int] = {}
        self.hash_unit: UnitHasher | None = None
        self.erased = erased

    def renew(self, test: Experiment) -> None:
        """The test has a new version."""
        self.test = test
        self.slots = SlotTable(test.salt.encode(), test.slots)


class Arms:
    """Assigns requests and learns from how they end. ``connected_for`` gives seconds since the bus came (back).

    ``turn_salt`` salts the hashes by which callers of one key take turns; those are in no fact.

    ``answered`` is told of every good answer of a stable model: its name, the seconds it took, and when.
    """

    def __init__(
        self, *, experiments: Experiments, batcher: Batcher, facts: FactSink, salts: Salts,
        erasures: Erasures, turn_salt: bytes, unit_order: Sequence[str], enabled: bool, default_on_monitor_down: str,
        monitoring_active: Callable[[], bool], connected_for: Callable[[], float],
        raise_alert: Callable[[Alert], None], answered: Callable[[str, float, float], None],
    ) -> None:  # fmt: skip
        self._experiments = experiments
        self._batcher = batcher
        self._facts = facts
        self._salts = salts
        self._erasures = erasures
        self._turn_salt = turn_salt
        self._unit_order = tuple(unit_order)
        self._enabled = enabled
        self._on_monitor_down = default_on_monitor_down
        self._monitoring_active = monitoring_active
        self._connected_for = connected_for
        self._raise_alert = raise_alert
        self._answered = answered
        self._guards: dict[str, Guard] = {}
        self._blocked: dict[str, None] = {}
        self._calls: dict[int, Call] = {}

    def admit(self, call: Call, now: float) -> None:
        """Assign the request, if a running test asks for it, and count it in."""
        if not self._enabled:
            return
        test = self._experiments.current(call.model)
        if test is None or not test.assigning:
            return
        guard = self._guard(test, now)
        if guard.hash_unit is None:
            return  # here the test begins when its salt has come: a hash under another one would be another unit
        unit = unit_of(self._unit_order, call.units)
        call.sticky = unit is not None
        if unit is None:
            unit = random.randbytes(16)  # noqa: S311 - nobody gains by guessing it, and it costs no system call
        call.unit = guard.hash_unit(unit)
        if call.unit in guard.erased:
            call.unit, call.sticky = _nobody(), False
        call.test = test.test_id
        mine = guard.slots.is_b(unit)
        if self._held(guard, now):
            call.share_bp = 0
            call.probe = mine and self._may_probe(guard, now)
            mine = call.probe
        else:
            call.share_bp = test.share_bp
        call.variant = "b" if mine else "a"
        call.target = test.model_b if mine else test.model_a
        self._batcher.admit(
            partition_of(call.unit), call.test, call.variant, call.share_bp, call.unit if call.sticky else None
        )
        guard.in_flight[call.variant] = guard.in_flight.get(call.variant, 0) + 1
        self._calls[id(call)] = call

    def member(self, units: Mapping[str, bytes]) -> str:
        """Whoever is behind a request, as a hash; callers of one key take turns by it. Empty when it does not say."""
        unit = unit_of(self._unit_order, units)
        return "" if unit is None else f"/{unit_hash(self._turn_salt, unit):016x}"

    def finish(
        self, call: Call, outcome: Outcome, *, ended: float, final: Final | None, digest: str, fallback: bool = False
    ) -> None:
        """The variant's part in an assigned request is over; to be called once for each that `admit` assigned."""
        if self._calls.pop(id(call), None) is None:
            return
        fact = self._fact(call, outcome=outcome, fallback=fallback, was_overdue=call.overdue, digest=digest)
        fact.latency_us = max(0, int((ended - call.started) * 1e6))
        if call.variant == "a" and outcome is Outcome.OK:
            self._answered(call.model, ended - call.started, ended)
        if final is not None:
            fact.ttft_us = final.ttft_us if final.ttft_us >= 0 else None
            fact.itl_us = final.itl_us if final.itl_us >= 0 else None
            fact.prompt_tokens = max(0, final.prompt_tokens)
            fact.completion_tokens = max(0, final.completion_tokens)
            fact.cached_tokens = max(0, final.cached_tokens)
            fact.cost_nano = max(0, final.cost_nano)
            fact.gpu_us = max(0, final.gpu_us)
        self._facts.add(partition_of(call.unit), fact)
        log.debug("request", request_id=call.id, test_id=call.test, variant=call.variant, share_bp=call.share_bp,
                  outcome=outcome, fallback=fallback, latency_us=fact.latency_us)  # fmt: skip
        guard = self._guards.get(call.test)
        if guard is not None:
            guard.in_flight[call.variant] -= 1
            self._learn(guard, call, outcome, ended)

    def tick(self, now: float) -> None:
        """Overdue requests, lapsed leases, and tests that are over."""
        for call in self._calls.values():
            if not call.overdue and call.limit_s and now - call.started > call.limit_s + OVERDUE_GRACE_S:
                call.overdue = True
                self._facts.add(partition_of(call.unit), self._fact(call, kind="overdue"))
        live = {test.test_id: test for test in self._experiments.live()}
        for test in live.values():
            if test.assigning:
                self._watch_lease(self._guard(test, now), now)
        for test_id in [t for t, g in self._guards.items() if t not in live and not any(g.in_flight.values())]:
            # The clock stays with batches until the last fact has surely left with one.
            if self._batcher.waiting() == 0:
                del self._guards[test_id]
                self._batcher.forget(test_id)
                self._blocked.pop(test_id, None)

    def heard_lease(self, test_id: str, holder: str, counter: int, now: float) -> None:
        """A monitor watches the test."""
        guard = self._guards.get(test_id)
        if guard is not None:
            guard.lease.heard(holder, counter, now)

    def block(self, test_id: str) -> None:
        """Serve the canary nothing from now on."""
        self._blocked[test_id] = None
        if len(self._blocked) > MAX_BLOCKED:
            self._blocked.pop(next(iter(self._blocked)))

    def erase(self, test_id: str, unit: int) -> None:
        """Requests of this unit in this test are nobody's from now on, those under way included."""
        guard = self._guards.get(test_id)
        if guard is not None:
            guard.erased = self._erasures.of(test_id)
        for call in self._calls.values():
            if call.test == test_id and call.unit == unit and call.sticky:
                call.unit, call.sticky = _nobody(), False

    def effective_share_bp(self, test: Experiment) -> int:
        """The share that this router really applies now."""
        if not self._enabled or not test.assigning or test.test_id in self._blocked:
            return 0
        now = monotonic()
        guard = self._guard(test, now)
        return 0 if guard.hash_unit is None or self._held(guard, now) else test.share_bp

    def unsalted(self) -> list[str]:
        """Tests to which this router assigns nothing because their salt is not here."""
        return [test_id for test_id, guard in self._guards.items() if guard.hash_unit is None]

    def in_flight(self, test_id: str) -> dict[str, int]:
        """Requests under way by variant."""
        guard = self._guards.get(test_id)
        return {"a": 0, "b": 0, **guard.in_flight} if guard else {"a": 0, "b": 0}

    def unwatched(self) -> int:
        """Tests whose lease has lapsed: no monitor watches their canary."""
        return sum(guard.unwatched for guard in self._guards.values())

    def open_breakers(self) -> int:
        """Tests whose canary this router keeps away by its own breaker."""
        return sum(guard.breaker.open for guard in self._guards.values())

    def _guard(self, test: Experiment, now: float) -> Guard:
        guard = self._guards.get(test.test_id)
        if guard is None:
            guard = self._guards[test.test_id] = Guard(test, now, self._erasures.of(test.test_id))
            self._batcher.clock(test.test_id, test.started_ms or test.created_ms, test.epoch_seconds)
        elif guard.test.version != test.version:
            guard.renew(test)
        if guard.hash_unit is None and (key := self._salts.key(test.unit_salt_version)) is not None:
            guard.hash_unit = UnitHasher(key)
        return guard

    def _held(self, guard: Guard, now: float) -> bool:
        return (
            guard.test.test_id in self._blocked
            or guard.breaker.open
            or (guard.lease.lapsed(now) and self._policy(guard.test) == "rollback")
        )

    def _may_probe(self, guard: Guard, now: float) -> bool:
        if guard.test.test_id in self._blocked or guard.lease.lapsed(now):
            return False
        return guard.breaker.try_probe(now)

    def _policy(self, test: Experiment) -> str:
        return str(test.policies.get("on_monitor_down", self._on_monitor_down))

    def _fact(
        self, call: Call, *, kind: str = "final", outcome: Outcome = Outcome.OK, fallback: bool = False,
        was_overdue: bool = False, digest: str = "",
    ) -> Fact:  # fmt: skip
        return Fact(
            test=call.test, variant=call.variant, share_bp=call.share_bp, unit=f"{call.unit:016x}", sticky=call.sticky,
            kind=kind, outcome=outcome, fallback=fallback, was_overdue=was_overdue, digest=digest,
            stratum=stratum(stream=call.stream, prompt_bytes=len(call.body)),
        )  # fmt: skip

    def _learn(self, guard: Guard, call: Call, outcome: Outcome, now: float) -> None:
        breaker = guard.breaker
        error = outcome in ERRORS
        if call.probe:
            signal = breaker.probed(now, error=None if outcome in NEUTRAL else error)
        elif outcome in NEUTRAL:
            return
        elif call.variant == "b":
            signal = breaker.canary(call.unit, now, error=error)
        else:
            signal = breaker.stable(now, error=error)
        if signal is not Signal.NONE:
            self._act(guard, signal)

    def _act(self, guard: Guard, signal: Signal) -> None:
        test, breaker = guard.test, guard.breaker
        numbers = f"{breaker.errors} errors in a row on '{test.model_b}'"
        beside = f"{breaker.stable_errors} of {breaker.stable_done} requests to '{test.model_a}' failed beside them"
        if signal is Signal.FIRED:
            reason = f"{numbers}, while {beside}"
            log.warning("breaker_opened", test_id=test.test_id, errors=breaker.errors, stable_done=breaker.stable_done,
                        stable_errors=breaker.stable_errors)  # fmt: skip
            if self._acts(test):
                text = f"{reason}; {self._taken_out(test)}"
                self._alert(guard, AlertLevel.EMERGENCY, "breaker", "The canary fails every request", text)
            else:
                # An emergency of a test means its rollback; this one goes on, and the incident ends with a recovery.
                text = f"{reason}; the test goes on without the canary until it answers again"
                self._alert(guard, AlertLevel.CRITICAL, "breaker", "The canary fails every request", text)
            self._order(
                guard, BREAKER_RULE, reason, value=breaker.errors, threshold=breaker.limit, unit="errors in a row",
                n_a=breaker.stable_done, n_b=breaker.errors,
            )  # fmt: skip
        elif signal is Signal.BOTH_ARMS:
            log.warning("both_arms_fail", test_id=test.test_id, errors=breaker.errors)
            text = f"{numbers}, but {beside}: not the canary's fault alone, so nothing is rolled back"
            self._alert(guard, AlertLevel.CRITICAL, "both_arms", "Both arms fail", text)
        elif signal is Signal.BOTH_OVER:
            text = f"'{test.model_b}' answers again"
            self._alert(guard, AlertLevel.INFO, "both_arms", "Both arms fail no more", text, resolved=True)
        else:
            log.info("breaker_closed", test_id=test.test_id)
            text = "three trial requests succeeded: the canary has its share again"
            self._alert(guard, AlertLevel.INFO, "breaker", "The canary answers again", text, resolved=True)

    def _note_lapse(self, guard: Guard, now: float) -> None:
        lapsed = unwatched(guard.lease, now, self._connected_for())
        if lapsed is None or lapsed == guard.unwatched:
            return
        guard.unwatched = lapsed
        test = guard.test
        if not lapsed:
            self._say_watched(guard, "The canary is watched again", f"a monitor watches '{test.model_b}'", over=True)
            return
        text = f"'{test.model_b}' keeps its share, since on_monitor_down is hold"
        if self._policy(test) == "rollback":
            text = f"requests of '{test.model_b}' go to '{test.model_a}' until a monitor watches it again"
            text += ", and it is rolled back if none does" if self._acts(test) else ""
        self._say_watched(guard, "No monitor watches the canary", text)

    def _say_watched(self, guard: Guard, title: str, text: str, *, over: bool = False) -> None:
        level = AlertLevel.INFO if over else AlertLevel.WARNING
        self._alert(guard, level, UNWATCHED, title, text, resolved=over)

    def _watch_lease(self, guard: Guard, now: float) -> None:
        test = guard.test
        self._note_lapse(guard, now)
        if guard.ordered or self._policy(test) != "rollback":
            return
        if rollback_due(
            guard.lease, now, check_interval_s=test.check_interval_seconds, connected_for_s=self._connected_for(),
            auto_rollback=test.auto_rollback, active=self._monitoring_active(),
        ):  # fmt: skip
            silent = now - guard.lease.since
            reason = (
                f"no monitor has watched the test for {silent:.0f} s, "
                f"{CHECKS_TO_ROLLBACK} checks of {test.check_interval_seconds:g} s past the end of its lease"
            )
            text = f"{reason}; {self._taken_out(test)}"
            self._alert(guard, AlertLevel.EMERGENCY, "monitor_down", "Nobody watches the canary", text)
            limit = CHECKS_TO_ROLLBACK * test.check_interval_seconds
            self._order(guard, LEASE_RULE, reason, value=silent, threshold=limit, unit="s")

    @staticmethod
    def _taken_out(test: Experiment) -> str:
        return f"'{test.model_a}' serves everything and the test is being rolled back"

    def _acts(self, test: Experiment) -> bool:
        """Whether findings about a test may end it."""
        return test.auto_rollback and self._monitoring_active()

    def _order(
        self, guard: Guard, rule: str, reason: str, *, value: float, threshold: float, unit: str, n_a: int = 0,
        n_b: int = 0,
    ) -> None:  # fmt: skip
        test, now = guard.test, now_ms()
        if guard.ordered or not self._acts(test):
            return
        guard.ordered = True
        verdict = VerdictRecord(
            decision=Decision.ROLLBACK, reason=reason, rule=rule, at_ms=now, value=value, threshold=threshold, n_a=n_a,
            n_b=n_b, split_bp=test.share_bp, digests=dict(test.digests), config_hash=test.config_hash,
            details={"unit": unit},
        )  # fmt: skip
        order = RollbackOrder(
            rule=rule, reason=reason, actor="router", at_ms=now, decided_on=test.version, verdict=verdict
        )
        self._experiments.request_rollback(test.test_id, order)

    def _alert(
        self, guard: Guard, level: AlertLevel, kind: str, title: str, message: str, *, resolved: bool = False
    ) -> None:
        test, breaker = guard.test, guard.breaker
        numbers = {
            "errors": float(breaker.errors),
            "stable_done": float(breaker.stable_done),
            "stable_errors": float(breaker.stable_errors),
        }
        alert = Alert(
            incident=f"{test.test_id}.{kind}", level=level, title=title, message=message, test_id=test.test_id,
            rule=LEASE_RULE if kind in {LEASE_RULE, UNWATCHED} else BREAKER_RULE, at_ms=now_ms(), resolved=resolved,
            n=breaker.errors, tags={**test.tags, "model_a": test.model_a, "model_b": test.model_b}, numbers=numbers,
        )  # fmt: skip
        self._raise_alert(alert)
