"""`python -m services.monitor [--config FILE]`."""

from services._runtime.start import main

if __name__ == "__main__":
    main("monitor")
