"""Digests of the demo's models: one value for each that changes when any of its files does.

`python -m infra.models.digest [ROOT]` checks ROOT/digests.json against the directories beside it.
"""

import json
import sys
from pathlib import Path

from services.inference.adapters.digest import digest_dir

MODELS = ("stable", "canary", "broken")


def write_digests(root: Path) -> dict[str, str]:
    """Write `root/digests.json` ({model name: digest}) for the models below `root`, and return it."""
    digests = {name: digest_dir(root / name) for name in MODELS}
    (root / "digests.json").write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    return digests


def main(argv: list[str]) -> int:
    """Compare `digests.json` with the directories; 0 when all agree, 1 otherwise."""
    root = Path(argv[0]) if argv else Path(__file__).parent
    expected: dict[str, str] = json.loads((root / "digests.json").read_text(encoding="utf-8"))
    failed = 0
    for name, want in expected.items():
        have = digest_dir(root / name)
        failed += have != want
        print(f"{name}: {have}" + ("" if have == want else f" differs from digests.json: {want}"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
