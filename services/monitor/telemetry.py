"""The monitor's own metrics. No label is a test, a unit or a model: their number is bounded."""

from prometheus_client import Counter, Gauge

from services._runtime.vitals import dead_letters

WINDOWS = Counter("cypria_monitor_windows_total", "Windows read")
TICKS = Counter("cypria_monitor_ticks_total", "Ticks evaluated, over all tests")
FAILED_CHECKS = Counter("cypria_monitor_failed_checks_total", "Checks that raised, by check", ["check"])
ROLLBACKS = Counter("cypria_monitor_rollback_requests_total", "Rollbacks requested by this replica")
ACTIONS = Counter(
    "cypria_monitor_action_requests_total", "Actions requested by this replica, by action", ["action"]
)
DEAD_LETTERS = dead_letters("monitor")
TESTS = Gauge("cypria_monitor_tests", "Tests under watch")
LEADING = Gauge("cypria_monitor_leading", "Tests that this replica leads")
SEQUENCE = Gauge("cypria_monitor_windows_sequence", "Last sequence of WINDOWS read")
LAG = Gauge("cypria_monitor_lag_seconds", "Age of the last window read")
