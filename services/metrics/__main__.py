"""`python -m services.metrics [--config FILE]`."""

from services._runtime.start import main

if __name__ == "__main__":
    main("metrics")
