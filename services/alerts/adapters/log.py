"""The destination `log`: one structured line for each alert."""

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services._runtime.telemetry import get_logger
from services.alerts.adapters.base import BaseDestination
from services.alerts.domain.outcome import Outcome, Sent
from services.alerts.domain.render import log_fields

log = get_logger("services.alerts")


class LogDestination(BaseDestination):
    """Writes at the log level that fits the alert's."""

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """Never fails."""
        fields = log_fields(alert, event_id, self.words(alert, repeat=repeat))
        if alert.resolved or alert.level is AlertLevel.INFO:
            log.info("alert", **fields)
        elif alert.level is AlertLevel.WARNING:
            log.warning("alert", **fields)
        else:
            log.error("alert", **fields)
        return Sent()
