from schemas.v1.inference import Heartbeat
from services.router.adapters.workers import WorkerTable


def beat(worker: str, **fields: object) -> Heartbeat:
    return Heartbeat(**{"model": "m", "worker": worker, "state": "ready", "free": 4, **fields})  # type: ignore[arg-type]


def test_a_stalled_worker_gets_nothing_until_it_lives_again() -> None:
    table = WorkerTable(["m"])
    table.heard(beat("w1", stalled=True), 0.0)
    assert table.choose("m") is None
    table.heard(beat("w2"), 0.0)
    assert {worker.id for worker in (table.choose("m") for _ in range(20)) if worker} == {"w2"}
    assert table.info("m").ready_workers == 1
    table.heard(beat("w1"), 0.25)
    assert {worker.id for worker in table.ready("m")} == {"w1", "w2"}
