"""`python -m services.monitor [--config FILE]`."""

from services._runtime.server import main
from services.monitor.app import build_app

if __name__ == "__main__":
    main("monitor", build_app)
