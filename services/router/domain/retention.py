"""What an entry of the experiments still holds of tests that ended long ago. Pure."""

from schemas.v1.common import unix_ms
from schemas.v1.experiment import Experiment


def kept(entry: Experiment, now_ms: int, retention_ms: int) -> Experiment | None:
    """The entry without tests that ended ``retention_ms`` ago: itself when all stays, None when nothing does.

    A live test stays whatever its age, and so does what has events that wait to be published.
    """
    before = now_ms - retention_ms
    if not entry.live and not entry.outbox and (entry.ended_ms or entry.created_ms) <= before:
        return None
    recent = [result for result in entry.recent if not result.end_time or unix_ms(result.end_time) > before]
    return entry if len(recent) == len(entry.recent) else entry.model_copy(update={"recent": recent})
