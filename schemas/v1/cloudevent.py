"""CloudEvents 1.0: structured JSON for durable events, binary mode (headers) for fact batches."""

from typing import Any, Generic, TypeVar

from pydantic import Field

from schemas.v1.common import Message, rfc3339

T = TypeVar("T", bound=Message)

CONTENT_TYPE = "application/cloudevents+json"


class CloudEvent(Message, Generic[T]):
    """Envelope of a durable event. ``id`` is its identity for ever: consumers deduplicate on it."""

    specversion: str = Field(default="1.0", pattern=r"^1\.0$")
    id: str = Field(min_length=1)
    source: str = Field(min_length=1)
    type: str = Field(min_length=1)
    time: str
    subject: str | None = None
    datacontenttype: str = "application/json"
    dataschema: str | None = None
    data: T


def envelope(event_type: str, event_id: str, source: str, now_ms: int, data: T, subject: str | None = None) -> "CloudEvent[T]":
    """An event of type ``cypria.<event_type>.v1`` around its data."""
    return CloudEvent[T](
        id=event_id, source=f"cypria/{source}", type=f"cypria.{event_type}.v1", time=rfc3339(now_ms),
        subject=subject, data=data,
    )  # fmt: skip


def binary_headers(event_type: str, event_id: str, source: str) -> dict[str, str]:
    """NATS headers of a CloudEvent in binary content mode, with the id also as the broker's dedup id."""
    return {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": f"cypria/{source}",
        "ce-type": f"cypria.{event_type}.v1",
        "content-type": "application/json",
        "Nats-Msg-Id": event_id,
    }


def dump(event: CloudEvent[Any]) -> bytes:
    """Structured-mode JSON."""
    return event.model_dump_json(exclude_none=True).encode()
