"""The destination `apprise`: whatever Apprise has a URL for."""

import asyncio

import apprise

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services._runtime.settings import ConfigError
from services.alerts.adapters.base import BaseDestination
from services.alerts.domain.letter import letter
from services.alerts.domain.outcome import Outcome, Retry, Sent
from services.alerts.settings import Channel

TIMEOUT_S = 20.0
_KINDS = {
    AlertLevel.INFO: apprise.NotifyType.INFO,
    AlertLevel.WARNING: apprise.NotifyType.WARNING,
    AlertLevel.CRITICAL: apprise.NotifyType.FAILURE,
    AlertLevel.EMERGENCY: apprise.NotifyType.FAILURE,
}


class AppriseDestination(BaseDestination):
    """Apprise blocks, so it works in a thread. It says only whether it worked, so nothing is refused for good."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        asset = apprise.AppriseAsset(app_id="Cypria", app_desc="Cypria", async_mode=False)
        self._apprise = apprise.Apprise(asset=asset)
        if not self._apprise.add(channel.secrets["url"]):
            raise ConfigError(
                f"destination {channel.name}: Apprise does not know this URL: check its scheme and its parts "
                "in Apprise's list of services"
            )

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """One notification."""
        content = letter(alert, event_id, self.wording.of(alert))
        kind = apprise.NotifyType.SUCCESS if alert.resolved else _KINDS[alert.level]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                done = await asyncio.to_thread(
                    self._apprise.notify, body=content.text, title=content.subject, notify_type=kind,
                    body_format=apprise.NotifyFormat.TEXT,
                )  # fmt: skip
        except (TimeoutError, OSError, ValueError, TypeError) as exc:
            return Retry(type(exc).__name__)
        return Sent() if done else Retry("Apprise could not deliver it")
