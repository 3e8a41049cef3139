"""What the monitor reads from the configuration, and the times it lives by (seconds)."""

from dataclasses import dataclass

from services._runtime.settings_model import Settings


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """``takeover_s``: a leader whose record has not moved for this long is gone. ``blind_after_s``: without any window
    for this long the lease is not renewed.
    """

    active: bool = True
    check_interval_seconds: float = 30.0
    beat_s: float = 0.5
    takeover_s: float = 1.5
    lease_s: float = 1.0
    repeat_s: float = 1.0
    checkpoint_s: float = 10.0
    blind_after_s: float = 5.0
    forget_s: float = 60.0
    clock_skew_s: float = 60.0


def monitor_settings(settings: Settings) -> MonitorSettings:
    """The monitor's part of the configuration."""
    return MonitorSettings(
        active=settings.monitoring.enabled,
        check_interval_seconds=settings.monitoring.check_interval_seconds,
    )
