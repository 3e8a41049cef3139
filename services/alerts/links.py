"""Everything about integrations, wired together; with none configured, nothing of it runs."""

from collections.abc import Awaitable, Callable

from schemas import streams, subjects
from services._runtime.bus import Bus
from services.alerts.adapters.dtesn import DtesnIntegration
from services.alerts.adapters.event_webhook import EventWebhook, wanted_events
from services.alerts.adapters.nats_ledger import NatsLedger
from services.alerts.adapters.nats_letters import NatsDeadLetters
from services.alerts.adapters.nats_links import DERIVING, NatsStandings, events_durable, windows_durable
from services.alerts.adapters.nats_occasions import NatsOccasions
from services.alerts.adapters.nats_redrive import LinkRedrive
from services.alerts.adapters.nats_windows import WindowTap
from services.alerts.adapters.subscriber import SubscriberIntegration
from services.alerts.domain.backoff import RetryPolicy
from services.alerts.handlers import Consumer
from services.alerts.integrating import Calling, Deriving
from services.alerts.integration_commands import IntegrationCommands
from services.alerts.ports import Integration
from services.alerts.settings import AlertsSettings, Link

_TYPES: dict[str, Callable[[Link], Integration]] = {
    "dtesn": DtesnIntegration,
    "webhook": EventWebhook,
    "subscriber": SubscriberIntegration,
}


class Links:
    """The integrations of one process. Raises ConfigError for one that cannot be."""

    def __init__(
        self, own: AlertsSettings, bus: Bus, ledger: NatsLedger, letters: NatsDeadLetters, retry: RetryPolicy
    ) -> None:
        links = self._links = own.links
        self._integrations = [_TYPES[link.type](link) for link in links]
        standings = NatsStandings(bus)
        publisher = NatsOccasions(bus)
        self._calling = [
            Calling(integration, ledger, letters, retry, standings) for integration in self._integrations
        ]
        calls = any(link.type != "webhook" for link in links)
        self._deriving = Deriving(publisher, letters, retry, calls=calls, patterns=wanted_events(links))
        lengths = {link.window_s for link in links if link.window_s is not None}
        self._tap = WindowTap(bus, lengths, publisher.window, own.min_group_size)
        self._commands = IntegrationCommands(links, self._integrations, standings, LinkRedrive(bus, ledger))

    def bind(self, consume: Callable[[str, str, str, Consumer], None]) -> None:
        """Have every consumer consumed: ``consume(stream, subject, durable, handler)``."""
        if not self._links:
            return
        consume(streams.EVENTS.name, subjects.EVENT, DERIVING, self._deriving)
        for link, calling in zip(self._links, self._calling, strict=True):
            stream = streams.INTEGRATIONS.name
            consume(stream, subjects.INTEGRATION_EVENT, events_durable(link.name), calling)
            if link.window_s is not None:
                subject = subjects.integration_window(link.window_s)
                consume(stream, subject, windows_durable(link.name, link.window_s), calling)

    def verbs(self) -> dict[str, Callable[[bytes], Awaitable[tuple[bytes, bool]]]]:
        """What is answered on `cypria.alerts.<verb>`."""
        return {
            "integrations": self._commands.standing,
            "integrations-test": self._commands.test,
            "integrations-redrive": self._commands.redrive,
        }

    async def start(self) -> None:
        """Begin to read windows, where anybody wants them."""
        await self._tap.start()

    async def stop(self) -> None:
        """End what runs."""
        await self._tap.stop()
        for integration in self._integrations:
            await integration.close()
