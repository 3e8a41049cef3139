"""Brings up to date all that is made from the code: `python -m infra.generate`; `--check` names what is not."""

import importlib
import sys

MAKERS = (
    "schemas.generate",
    "services._runtime.reference",
    "services._cli.reference",
    "services.router.control.reference",
    "infra.metrics_reference",
    "infra.nats.render",
    "infra.grafana.__main__",
    "infra.chart_files",  # of what the two before have made, too
)
"""Modules with a ``main`` that writes with no arguments, and checks with `--check`; each may be run by itself."""


def main(arguments: list[str]) -> int:
    """Write or check everything, whatever one of them says; the exit status is the highest of theirs."""
    return max(int(importlib.import_module(name).main(arguments)) for name in MAKERS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
