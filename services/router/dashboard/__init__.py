"""The live page: static files that need no key, and a script that asks the API with the key of whoever looks."""

from services.router.dashboard.routes import add_dashboard

__all__ = ["add_dashboard"]
