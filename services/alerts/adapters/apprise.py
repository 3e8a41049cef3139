"""The destination `apprise`: whatever Apprise has a URL for."""

import asyncio

import apprise

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services._runtime.settings import ConfigError
from services.alerts.adapters.base import BaseDestination
from services.alerts.domain.letter import letter
from services.alerts.domain.outcome import Outcome, Retry, Sent
from services.alerts.settings import Channel, setting

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
        self._setting = setting(channel.options, "url")
        asset = apprise.AppriseAsset(app_id="Cypria", app_desc="Cypria", async_mode=False)
        self._apprise = apprise.Apprise(asset=asset)
        if not self._apprise.add(channel.secrets["url"]):
            raise ConfigError(
                f"destination {channel.name}: Apprise does not know this URL: check its scheme and its parts "
                "in Apprise's list of services"
            )

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """One notification."""
        content = letter(alert, event_id, self.words(alert, repeat=repeat))
        kind = apprise.NotifyType.SUCCESS if alert.resolved else _KINDS[alert.level]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                done = await asyncio.to_thread(
                    self._apprise.notify, body=content.text, title=content.subject, notify_type=kind,
                    body_format=apprise.NotifyFormat.TEXT,
                )  # fmt: skip
        except TimeoutError:
            return Retry(f"no answer within {TIMEOUT_S:g} s from what {self._setting} names: check both")
        except (OSError, ValueError, TypeError) as exc:
            return Retry(f"Apprise failed ({type(exc).__name__}): check {self._setting}")
        return Sent() if done else Retry(f"Apprise could not deliver it and says no more: check {self._setting}")
