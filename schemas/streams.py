"""Streams, KV buckets and durable consumers as data; `provision` makes them, nobody else does."""

from dataclasses import dataclass

from schemas import subjects

DAY = 86_400.0


@dataclass(frozen=True)
class Stream:
    """A JetStream stream.

    ``max_age_s`` 0 means for ever; ``max_bytes`` bounds the disk it may take, oldest out first;
    ``duplicate_window_s`` is how long the server remembers message ids.
    """

    name: str
    subjects: tuple[str, ...]
    max_age_s: float
    max_bytes: int
    duplicate_window_s: float = 120.0
    writers: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bucket:
    """A KV bucket; ``history`` revisions are kept of each key. Of an ``erasable`` one single messages may be overwritten."""

    name: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    history: int = 1
    ttl_s: float = 0.0
    max_bytes: int = 64 << 20
    erasable: bool = False


SERVICES = ("router", "inference", "metrics", "monitor", "alerts")

METRICS = Stream("METRICS", (subjects.METRIC,), 3 * DAY, 8 << 30, writers=("router",), readers=("metrics",))
WINDOWS = Stream(
    "WINDOWS", (subjects.WINDOW,), 92 * DAY, 16 << 30, writers=("metrics",), readers=("metrics", "monitor", "router", "alerts"),
)  # fmt: skip
EVENTS = Stream(
    "EVENTS", (subjects.ROLLBACK, subjects.EVENT), 92 * DAY, 2 << 30,
    writers=("router", "monitor", "inference"), readers=("metrics", "alerts", "monitor", "router"),
)  # fmt: skip
ALERTS = Stream(
    "ALERTS", (subjects.ALERT,), 30 * DAY, 1 << 30,
    writers=("monitor", "router", "inference", "metrics", "alerts"), readers=("alerts", "metrics", "router"),
)  # fmt: skip
AUDIT = Stream(
    "AUDIT", (subjects.AUDIT,), 92 * DAY, 2 << 30, writers=("router", "inference"), readers=("metrics",)
)  # fmt: skip
INTEGRATIONS = Stream(
    "INTEGRATIONS", (subjects.INTEGRATION,), 7 * DAY, 1 << 30, writers=("alerts",), readers=("alerts",)
)  # fmt: skip
"""What integrations have yet to be told; empty where none is configured."""
DLQ = Stream("DLQ", (subjects.DLQ,), 30 * DAY, 1 << 30, writers=SERVICES, readers=("alerts",))

STREAMS = (METRICS, WINDOWS, EVENTS, ALERTS, AUDIT, INTEGRATIONS, DLQ)

EXPERIMENTS = Bucket("experiments", writers=("router",), readers=("monitor", "metrics", "router"), history=5)
CONTROL = Bucket("control", writers=("router",), readers=("monitor", "router", "alerts"))
"""Key ``monitoring``: whether verdicts act (`schemas.v1.control.MonitoringState`)."""
MONITOR = Bucket("monitor", writers=("monitor",), readers=("monitor",), max_bytes=256 << 20)
ALERT_STATE = Bucket("alert_state", writers=("alerts",), readers=("alerts",), ttl_s=30 * DAY)
SECRETS = Bucket("secrets", writers=("router",), readers=("router",))
"""What routers share and nobody else reads: the root salt and the signing key."""
SALTS = Bucket("salts", writers=("router",), readers=("router",), erasable=True)
"""The salt of each test's units; overwritten some time after the test's end."""
ERASURES = Bucket("erasures", writers=("router",), readers=("router", "metrics"), erasable=True)
"""Units that were erased from a test (`schemas.v1.units.Tombstone`); they go with the test's salt."""
MODELS = Bucket("models", writers=("router",), readers=("router", "inference"), history=5)
"""What is wanted of each model (`schemas.v1.models.ModelEntry`), by `subjects.token` of its name."""
KEYS = Bucket("keys", writers=("router",), readers=("router",))
"""API keys and revocations (`schemas.v1.keys.KeyEntry`): hashes only."""

BUCKETS = (EXPERIMENTS, CONTROL, MONITOR, ALERT_STATE, SECRETS, SALTS, ERASURES, MODELS, KEYS)
