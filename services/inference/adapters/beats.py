"""What a heartbeat says of a model."""

from schemas.v1.inference import Heartbeat
from services.inference.adapters.machine import Group, Sample, Usage
from services.inference.adapters.served import Place, ServedModel

STALLED_S = 0.6
"""An engine without a sign of life for so long gets no more requests."""

_NOTHING = Usage()


def group_of(edition: ServedModel) -> Group:
    """The processes that hold an engine, this one aside."""
    health = edition.health()
    return Group(pids=health.pids, thread=health.thread)


def memory_of(edition: ServedModel, sample: Sample) -> int:
    """Bytes that an engine takes: of its processes where it has some, else what it says itself."""
    measured = sample.groups.get(edition.key, _NOTHING).memory_bytes
    return measured or edition.memory_bytes()


def heartbeat(place: Place, worker: str, pool: str, sample: Sample) -> Heartbeat:
    """The state of a place now; its engines' figures are those of the last sample."""
    present, following = place.present, place.successor
    config, admission = present.config, present.admission
    health, usage = present.health(), sample.groups.get(present.key, _NOTHING)
    engines = (present, *place.leaving)
    stalled = health.silent_s > STALLED_S
    silence = f"its engine has shown no life for {health.silent_s:.0f} s: it gets no requests until it does"
    return Heartbeat(
        model=place.name,
        worker=worker,
        state=present.state.value,
        digest=present.digest,
        engine=config.engine,
        capacity=admission.capacity,
        free=admission.free,
        queued=sum(edition.admission.queued for edition in engines),
        running=sum(edition.admission.running for edition in engines),
        reason=present.reason or (silence if stalled else ""),
        memory_bytes=memory_of(present, sample),
        timeout_ms=round(config.timeout_seconds * 1000),
        total_timeout_ms=round(config.total_timeout_seconds * 1000),
        created=present.created,
        stalled=stalled,
        pool=pool,
        generation=present.generation,
        version=present.version,
        next_generation=following.generation if following else 0,
        next_state=following.state.value if following else "",
        next_reason=following.reason if following else "",
        progress=(following or present).progress,
        idle_s=place.idle_s(),
        engine_running=health.running,
        engine_waiting=health.waiting,
        kv_cache=health.kv_cache,
        cpu=usage.cpu,
        gpu=usage.gpu,
        gpu_memory_bytes=usage.gpu_memory_bytes,
        restarts=place.restarts,
    )
