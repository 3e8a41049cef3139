"""`python -m services.alerts [--config FILE]`."""

from services._runtime.start import main

if __name__ == "__main__":
    main("alerts")
