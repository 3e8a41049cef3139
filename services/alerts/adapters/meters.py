"""What this service shows on /metrics. Destinations are configured, so their number is bounded."""

from prometheus_client import Counter, Gauge

from services._runtime.vitals import dead_letters

DELIVERIES = Counter("cypria_alerts_deliveries", "Attempts to deliver, by outcome", ["destination", "outcome"])
DEAD_LETTERS = dead_letters("alerts")
DERIVED = Counter("cypria_alerts_derived", "Alerts raised from events of tests and monitoring")
ERRORS = Counter("cypria_alerts_handler_errors", "Messages that raised and will come again", ["consumer"])
HISTORY = Gauge("cypria_alerts_history_items", "Alerts in the history")
CALLS = Counter(
    "cypria_alerts_integration_calls", "Attempts to tell an integration, by outcome", ["integration", "outcome"]
)
