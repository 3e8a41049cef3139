"""`telemetry`: what is told of requests to systems that gather traces."""

from pydantic import Field, field_validator

from services._runtime.settings_base import Section, is_url


class Traces(Section):
    """`telemetry.traces`. Without an endpoint there are none."""

    endpoint: str | None = None
    sample_ratio: float = Field(default=0.01, ge=0, le=1)

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and (not is_url(value, {"http", "https"}) or "@" in value):
            raise ValueError(
                "it is no address of a collector: give one such as http://127.0.0.1:4318/v1/traces, without user and "
                "password (OTEL_EXPORTER_OTLP_HEADERS may hold what it wants to see)"
            )
        return value


class Telemetry(Section):
    """`telemetry`."""

    traces: Traces = Traces()
