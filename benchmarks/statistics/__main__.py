"""``python -m benchmarks.statistics``."""

from benchmarks.statistics.tables import main

if __name__ == "__main__":
    main()
