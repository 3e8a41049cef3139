"""Bytes on the bus to records and back."""

import msgspec

from services.metrics.domain.records import Admitted, Fact, FactBatch, Feedback, NewUnits, TestClock, Window


class BadMessageError(ValueError):
    """Bytes that are not the message they should be; the text says where and why."""


class _Envelope(msgspec.Struct):
    """A batch whose facts are still to be judged one by one."""

    router_epoch: str
    partition: int
    n: int
    tests: dict[str, TestClock] = {}
    admitted: list[msgspec.Raw] = []
    facts: list[msgspec.Raw] = []
    feedback: list[msgspec.Raw] = []
    admits_units: bool = False


class Units(msgspec.Struct):
    """The part of a window that rebuilds the seen-sets."""

    new_units: list[NewUnits] = []


_batch = msgspec.json.Decoder(FactBatch)
_envelope = msgspec.json.Decoder(_Envelope)
_fact = msgspec.json.Decoder(Fact)
_admitted = msgspec.json.Decoder(Admitted)
_feedback = msgspec.json.Decoder(Feedback)
_window = msgspec.json.Decoder(Window)
_units = msgspec.json.Decoder(Units)
_encode = msgspec.json.Encoder().encode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_batch(data: bytes, partition: int) -> tuple[FactBatch, list[str]]:
    """A fact batch, and why elements of it had to be left out (normally none).

    One bad element does not lose the others. Raises BadMessageError when the batch itself cannot be read or belongs
    to another partition.
    """
    reasons: list[str] = []
    try:
        batch = _batch.decode(data)
    except _UNREADABLE as whole:
        batch, reasons = _salvage(data, str(whole))
    if batch.partition != partition:
        raise BadMessageError(f"a batch of partition {batch.partition} came on the subject of partition {partition}")
    return batch, reasons


def _salvage(data: bytes, reason: str) -> tuple[FactBatch, list[str]]:
    try:
        envelope = _envelope.decode(data)
    except _UNREADABLE:
        raise BadMessageError(f"not a fact batch: {reason}") from None
    batch = FactBatch(envelope.router_epoch, envelope.partition, envelope.n, envelope.tests)
    batch.admits_units = envelope.admits_units
    if not batch.router_epoch or len(batch.router_epoch) > 64 or batch.n < 1:
        raise BadMessageError(f"not a fact batch: {reason}")
    reasons = []
    for name, raws in (("facts", envelope.facts), ("admitted", envelope.admitted), ("feedback", envelope.feedback)):
        for index, raw in enumerate(raws):
            try:
                if name == "facts":
                    batch.facts.append(_fact.decode(raw))
                elif name == "admitted":
                    batch.admitted.append(_admitted.decode(raw))
                else:
                    batch.feedback.append(_feedback.decode(raw))
            except _UNREADABLE as exc:
                reasons.append(f"{name}[{index}]: {exc}")
    return batch, reasons


def decode_window(data: bytes) -> Window:
    """A window. Raises BadMessageError."""
    try:
        return _window.decode(data)
    except _UNREADABLE as exc:
        raise BadMessageError(f"not a window: {exc}") from None


def decode_new_units(data: bytes) -> list[NewUnits]:
    """Only the new units of a window. Raises BadMessageError."""
    try:
        return _units.decode(data).new_units
    except _UNREADABLE as exc:
        raise BadMessageError(f"not a window: {exc}") from None


def encode_window(window: Window) -> bytes:
    """JSON of a window; what is zero or empty is left out."""
    return _encode(window)
