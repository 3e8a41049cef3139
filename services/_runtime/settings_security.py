"""`security.anomalies` and `security.audit_checks`: how metrics watches the audit."""

from pydantic import Field

from services._runtime.settings_base import Section


class Anomalies(Section):
    """`security.anomalies`: what of the use of keys is an alert; so many within the window, 0 for never."""

    window_seconds: float = Field(default=60, gt=0, le=3600)
    quiet_minutes: float = Field(default=15, gt=0, le=1440)
    refused_by_source: int = Field(default=20, ge=0, le=10_000)
    refused_in_all: int = Field(default=100, ge=0, le=100_000)
    refused_admin_changes: int = Field(default=1, ge=0, le=10_000)
    new_places: bool = True
    new_places_of_clients: bool = False


class AuditChecks(Section):
    """`security.audit_checks`: metrics checks what is new of the audit's chain every so often, 0 for never, and all of
    it after so many hours.
    """

    every_seconds: float = Field(default=300, ge=0, le=86_400)
    full_every_hours: float = Field(default=24, gt=0, le=24)
