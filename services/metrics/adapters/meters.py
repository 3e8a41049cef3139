"""What this service shows on /metrics."""

from prometheus_client import Counter, Gauge, Histogram

from services._runtime.vitals import dead_letters

FACTS = Counter("cypria_metrics_facts", "Facts folded into windows")
WINDOWS = Counter("cypria_metrics_windows", "Windows stored")
REPEATED_BATCHES = Counter("cypria_metrics_repeated_batches", "Fact batches that came again and were dropped")
MISSING_BATCHES = Counter("cypria_metrics_missing_batches", "Fact batches that never came although later ones did")
DEAD_LETTERS = dead_letters("metrics")
WRITING = Gauge(
    "cypria_metrics_partition_writing", "1 where this process writes the partition's windows", ["partition"]
)
UNITS = Gauge("cypria_metrics_seen_units", "Units of known tests held in memory", ["partition"])
STORED_SEQUENCE = Gauge("cypria_metrics_stored_sequence", "Last WINDOWS sequence whose sums are in ClickHouse")
INSERTS = Histogram(
    "cypria_metrics_insert_seconds", "Time of an insert with its read-back",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)  # fmt: skip
INSERT_RETRIES = Counter("cypria_metrics_insert_retries", "Inserts that had to be tried again", ["why"])
QUERIES = Histogram(
    "cypria_metrics_query_seconds", "Time to answer a question", ["query"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)  # fmt: skip
QUERY_ERRORS = Counter("cypria_metrics_query_errors", "Questions that could not be answered", ["query"])
HTTP_QUERIES = Counter("cypria_metrics_http_queries", "Statements over the read-only HTTP front", ["outcome"])
AUDIT_CHECKS = Counter(
    "cypria_metrics_audit_checks", "Checks of the audit's chain that ended; pinned: it lacks the head that was given",
    ["result"],
)  # fmt: skip
for _result in ("whole", "broken", "pinned", "deleted"):
    AUDIT_CHECKS.labels(_result)
AUDIT_TOUCHED = Gauge(
    "cypria_metrics_audit_touched", "1 where this process's own check found the audit touched, until all of it is whole"
)
AUDIT_RECORDS = Counter("cypria_metrics_audit_checked_records", "Audit records that this process has checked by itself")
AUDIT_CHECKED = Gauge(
    "cypria_metrics_audit_checked_timestamp_seconds",
    "When this process last ended a check of its own of the audit's chain, all of it or what was new; 0: not yet",
    ["what"],
)
