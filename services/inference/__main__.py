"""`python -m services.inference [--config FILE]`."""

from services._runtime.server import main
from services.inference.app import build_app

if __name__ == "__main__":
    main("inference", build_app)
