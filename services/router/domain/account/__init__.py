"""A test told to people: what runs, whether it is safe, why it ended, what a promotion still needs. Pure."""

from services.router.domain.account.build import ended, live, why
from services.router.domain.account.shapes import TestAccount

__all__ = ["TestAccount", "ended", "live", "why"]
