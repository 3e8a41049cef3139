"""Gives the chart Prometheus' rules and Grafana's dashboards: `python -m infra.chart_files`.

A chart takes no file from outside of its folder. With `--check` it writes nothing and exits 1 where a file is not as
`infra/prometheus` and `infra/grafana/dashboards` have it.
"""

import json
import sys
from pathlib import Path

from services._runtime.generated import bring_up_to_date

ROOT = Path(__file__).resolve().parent
FILES = ROOT / "helm" / "cypria" / "files"
RULES, DASHBOARDS = FILES / "rules", FILES / "dashboards"


def files() -> dict[Path, str]:
    """Path and content of each; dashboards on one line, since a release is kept in a Secret of 1 MB."""
    rules = {RULES / path.name: path.read_text() for path in (ROOT / "prometheus").glob("*.rules.yml")}
    boards = (ROOT / "grafana" / "dashboards").glob("*.json")
    return rules | {DASHBOARDS / path.name: _short(path.read_text()) for path in boards}


def _short(text: str) -> str:
    return json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    return bring_up_to_date(arguments, "python -m infra.chart_files", files(), whole=[RULES, DASHBOARDS])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
