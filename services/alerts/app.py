"""Wires the alerts service together; nothing else does."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.js.errors import NotFoundError

from schemas import streams, subjects
from services._runtime.bus import TRANSIENT, Bus, inbox_prefix, make_broker
from services._runtime.health import Readiness, routes
from services._runtime.server import EXIT_CONFIG
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Settings
from services._runtime.telemetry import get_logger
from services.alerts import handlers
from services.alerts import settings as own_settings
from services.alerts.adapters.apprise import AppriseDestination
from services.alerts.adapters.email import EmailDestination
from services.alerts.adapters.log import LogDestination
from services.alerts.adapters.nats_alerts import NatsAlerts
from services.alerts.adapters.nats_consumers import EVENTS_DURABLE, durable_of, ensure_consumers
from services.alerts.adapters.nats_history import HistoryFeed
from services.alerts.adapters.nats_ledger import NatsLedger
from services.alerts.adapters.nats_letters import NatsDeadLetters
from services.alerts.adapters.nats_links import ensure_link_consumers
from services.alerts.adapters.nats_occasions import ORIGIN
from services.alerts.adapters.nats_redrive import ONLY, NatsRedrive
from services.alerts.adapters.pagerduty import PagerDutyDestination
from services.alerts.adapters.pushgateway import PushgatewayDestination
from services.alerts.adapters.slack import SlackBotDestination, SlackDestination
from services.alerts.adapters.webhook import WebhookDestination
from services.alerts.commands import Commands
from services.alerts.domain.backoff import RetryPolicy
from services.alerts.domain.history import History
from services.alerts.links import Links
from services.alerts.ports import Destination, Incoming
from services.alerts.settings import DRAIN_S, PROGRESS_S, AlertsSettings, Channel, Link

log = get_logger(__name__)

SERVICE = "alerts"
_FETCH_S = 1.0
_TYPES: dict[str, Callable[[Channel], Destination]] = {
    "log": LogDestination,
    "email": EmailDestination,
    "pagerduty": PagerDutyDestination,
    "webhook": WebhookDestination,
    "apprise": AppriseDestination,
}


def build_app(settings: Settings, retry: RetryPolicy | None = None) -> AsgiFastStream:
    """The service as an ASGI application; its lifespan connects and lets go."""
    own = _read(settings)
    retry = retry or own.retry
    bus = Bus(settings, SERVICE)
    broker = make_broker(settings, SERVICE)
    ledger = NatsLedger(bus)
    feed = HistoryFeed(bus, own.retention)
    letters = NatsDeadLetters(bus)
    destinations = _destinations(own.channels, feed, ledger)
    names = [destination.name for destination in destinations]
    streaming = _Streaming(broker, inbox_prefix(settings, SERVICE))
    deliveries: list[handlers.Delivery] = []
    for destination in destinations:
        delivery = handlers.Delivery(destination, ledger, letters, retry, lambda: feed.history)
        deliveries.append(delivery)
        streaming.consume(streams.ALERTS.name, subjects.ALERT, durable_of(destination.name), delivery)
    events = handlers.Events(lambda: feed.history, NatsAlerts(bus).raise_alert, letters, retry)
    streaming.consume(streams.EVENTS.name, subjects.EVENT, EVENTS_DURABLE, events)
    links = _links(own, bus, ledger, letters, retry)
    links.bind(streaming.consume)
    readiness = Readiness()
    readiness.add("bus", bus.missing)
    readiness.add("history", feed.missing)
    readiness.add("state", ledger.missing)

    @broker.subscriber(subjects.query("alerts"), queue=SERVICE, no_reply=True, decoder=_raw)
    async def query(body: bytes, message: NatsMessage) -> None:
        missing = feed.missing() or ledger.missing()
        reply, failed = handlers.answer(body, feed.history, missing, partial(ledger.delivered_to, names))
        if message.reply_to:
            await broker.publish(reply, message.reply_to, headers={"Cypria-Error": "1"} if failed else None)

    types = {channel.name: channel.type for channel in own.channels}
    commands = Commands(destinations, types, NatsRedrive(bus, ledger))

    _answer(broker, {"test": commands.test, "redrive": commands.redrive, **links.verbs()})

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await bus.connect()
        await _when_provisioned(bus, names, own.links)
        await ledger.start()
        feed.start()
        await links.start()
        try:
            yield
        finally:
            for delivery in deliveries:
                await delivery.stop()
            await links.stop()
            await feed.stop()
            await ledger.stop()
            for destination in destinations:
                await destination.close()
            await bus.close()

    return AsgiFastStream(
        broker, lifespan=lifespan, asgi_routes=routes(SERVICE, readiness), logger=None,
        on_shutdown=[streaming.drain],
    )  # fmt: skip


def _answer(broker: NatsBroker, verbs: dict[str, Callable[[bytes], Awaitable[tuple[bytes, bool]]]]) -> None:
    """Have each of `cypria.alerts.<verb>` answered."""

    def answers(verb: str, act: Callable[[bytes], Awaitable[tuple[bytes, bool]]]) -> None:
        @broker.subscriber(subjects.alerts(verb), queue=SERVICE, no_reply=True, decoder=_raw)
        async def command(body: bytes, message: NatsMessage) -> None:
            reply, failed = await act(body)
            if message.reply_to:
                await broker.publish(reply, message.reply_to, headers={"Cypria-Error": "1"} if failed else None)

    for verb, act in verbs.items():
        answers(verb, act)


class _Streaming:
    """Binds handlers to durable pull consumers, one message in hand each."""

    def __init__(self, broker: NatsBroker, inbox: str) -> None:
        self._broker = broker
        self._inbox = f"{inbox}.".encode()
        self._busy: set[asyncio.Task[None]] = set()
        self._draining = False

    def consume(self, stream: str, subject: str, durable: str, handler: handlers.Consumer) -> None:
        @self._broker.subscriber(
            subject, stream=JStream(stream, declare=False), durable=durable, ack_policy=AckPolicy.MANUAL,
            pull_sub=PullSub(batch_size=1, timeout=_FETCH_S), inbox_prefix=self._inbox, decoder=_raw, no_reply=True,
        )  # fmt: skip
        async def take(body: bytes, message: NatsMessage) -> None:
            if self._draining:
                return
            parked = asyncio.Event()
            task = asyncio.create_task(self._one(body, message, handler, parked.set))
            self._busy.add(task)
            task.add_done_callback(self._busy.discard)
            task.add_done_callback(lambda _task: parked.set())
            # Only waited for: a broker that stops cancels its consumers, and a delivery under way must end with its
            # record. A message that a rate limit holds back lets the next one in.
            await parked.wait()

    async def drain(self) -> None:
        """Take nothing more and let what is under way end, within DRAIN_S; the rest comes again to whoever is next."""
        self._draining = True
        if self._busy:
            _, late = await asyncio.wait(self._busy, timeout=DRAIN_S)
            for task in late:
                task.cancel()

    @staticmethod
    async def _one(
        body: bytes, message: NatsMessage, handler: handlers.Consumer, park: Callable[[], None]
    ) -> None:
        raw = message.raw_message
        meta = raw.metadata
        incoming = Incoming(
            body, raw.subject, int(meta.sequence.stream), int(meta.num_delivered),
            only=(raw.headers or {}).get(ONLY), park=park, origin=int((raw.headers or {}).get(ORIGIN, 0)),
        )  # fmt: skip
        working = asyncio.create_task(_keep_working(message))
        try:
            delay = await handler.handle(incoming)
        finally:
            working.cancel()
        try:
            if delay is None:
                await message.ack()
            else:
                await message.nack(delay)
        except TRANSIENT as exc:
            log.warning("not_acknowledged", sequence=incoming.sequence, error=repr(exc))


async def _keep_working(message: NatsMessage) -> None:
    """Tell the server that the message is in hand, so that no other replica gets it."""
    while True:
        await asyncio.sleep(PROGRESS_S)
        with contextlib.suppress(*TRANSIENT):
            await message.in_progress()


async def _raw(message: NatsMessage) -> bytes:
    """Payloads are decoded by the handlers, which bury what is not one of ours."""
    return message.body


async def _when_provisioned(bus: Bus, destinations: list[str], links: tuple[Link, ...]) -> None:
    """Make the consumers, waiting for streams and buckets that `provision` has yet to make."""
    told = False
    while True:
        try:
            await ensure_consumers(bus, destinations)
            await ensure_link_consumers(bus, links)
            return
        except NotFoundError:
            if not told:
                log.warning("waiting_for_provision", remedy="run `cypria provision`")
                told = True
        except TRANSIENT as exc:
            log.warning("consumers_not_made", error=repr(exc))
        await asyncio.sleep(0.5)


def _destinations(channels: tuple[Channel, ...], feed: HistoryFeed, ledger: NatsLedger) -> list[Destination]:
    try:
        return [_make(channel, lambda: feed.history, ledger) for channel in channels]
    except ConfigError as exc:
        _refuse(exc)


def _links(
    own: AlertsSettings, bus: Bus, ledger: NatsLedger, letters: NatsDeadLetters, retry: RetryPolicy
) -> Links:
    try:
        return Links(own, bus, ledger, letters, retry)
    except ConfigError as exc:
        _refuse(exc)


def _make(channel: Channel, history: Callable[[], History], ledger: NatsLedger) -> Destination:
    if channel.type == "prometheus":
        return PushgatewayDestination(channel, history, partial(ledger.pushed, channel.name))
    if channel.type == "slack":
        return SlackBotDestination(channel) if "token" in channel.secrets else SlackDestination(channel)
    return _TYPES[channel.type](channel)


def _refuse(exc: ConfigError) -> NoReturn:
    sys.stderr.write(f"cypria: configuration refused\n{exc}\n")
    raise SystemExit(EXIT_CONFIG) from None


def _read(settings: Settings) -> AlertsSettings:
    try:
        return own_settings.read(settings, os.environ)
    except ConfigError as exc:
        _refuse(exc)
