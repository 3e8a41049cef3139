"""Writes the dashboards: `python -m infra.grafana`. With `--check` it writes nothing and exits 1 where a file differs."""

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from infra.grafana import fleet, in_depth, models, pipeline

FOLDER = Path(__file__).resolve().parent / "dashboards"


def files() -> dict[Path, str]:
    """Path and content of each."""
    encoder = JSONEncoder(indent=1, sort_keys=True, ensure_ascii=False)
    boards = [one.dashboard().build() for one in (fleet, in_depth, models, pipeline)]
    return {FOLDER / f"{board.uid}.json": encoder.encode(board) + "\n" for board in boards}


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m infra.grafana [--check]", file=sys.stderr)
        return 2
    made = files()
    wrong = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    wrong += [path for path in FOLDER.glob("*.json") if path not in made]
    for path in wrong:
        if arguments:
            print(f"{path} is not what infra/grafana says: run `python -m infra.grafana`")
        elif path in made:
            path.write_text(made[path])
        else:
            path.unlink()
    return int(bool(wrong) and bool(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
