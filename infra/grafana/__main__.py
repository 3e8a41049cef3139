"""Writes the dashboards: `python -m infra.grafana`. With `--check` it writes nothing and exits 1 where a file differs."""

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from infra.grafana import fleet, in_depth, models, pipeline
from services._runtime.generated import bring_up_to_date

FOLDER = Path(__file__).resolve().parent / "dashboards"


def files() -> dict[Path, str]:
    """Path and content of each."""
    encoder = JSONEncoder(indent=1, sort_keys=True, ensure_ascii=False)
    boards = [one.dashboard().build() for one in (fleet, in_depth, models, pipeline)]
    return {FOLDER / f"{board.uid}.json": encoder.encode(board) + "\n" for board in boards}


def main(arguments: list[str]) -> int:
    """Write or check, and so with dashboards that are made no more; the exit status."""
    return bring_up_to_date(arguments, "python -m infra.grafana", files(), whole=[FOLDER])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
