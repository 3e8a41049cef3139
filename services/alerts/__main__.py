"""`python -m services.alerts [--config FILE]`."""

from services._runtime.server import main
from services.alerts.app import build_app

if __name__ == "__main__":
    main("alerts", build_app)
