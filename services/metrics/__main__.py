"""`python -m services.metrics [--config FILE]`."""

from services._runtime.server import main
from services.metrics.app import SERVICE, build_app

if __name__ == "__main__":
    main(SERVICE, build_app)
