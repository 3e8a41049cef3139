"""`python -m schemas.generate` writes JSON Schema and missing golden examples; `--check` says what is not in order.

Neither accepts a breaking change: writing compares with the schemas on disk, checking also with those committed.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from schemas import catalog, compat
from schemas.examples import example

HERE = Path(__file__).resolve().parent
JSON_DIR = HERE / "json" / "v1"
GOLDEN_DIR = HERE / "golden" / "v1"
SUMS = "SHA256SUMS"


def render(value: Any) -> str:
    """Deterministic text of a JSON file."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def schema_name(golden: Path) -> str:
    """Which schema a golden example `<schema>.<label>.json` is of."""
    return golden.name.removesuffix(".json").rsplit(".", 1)[0]


def write(json_dir: Path = JSON_DIR, golden_dir: Path = GOLDEN_DIR) -> list[str]:
    """Bring both folders up to date; what stands in the way, with nothing written where anything does."""
    schemas = catalog.json_schemas()
    problems = compat.breaking(compat.load(json_dir), schemas) + changed_goldens(golden_dir)
    if problems:
        return problems
    for name, schema in schemas.items():
        _put(json_dir / f"{name}.json", render(schema))
    for name in _without_golden(schemas, golden_dir):
        for label, full in (("full", True), ("minimal", False)):
            _put(golden_dir / f"{name}.{label}.json", render(example(schemas[name], full=full)))
    _put(golden_dir / SUMS, _sums(golden_dir))
    return []


def check(json_dir: Path = JSON_DIR, golden_dir: Path = GOLDEN_DIR) -> list[str]:
    """What is not in order, one sentence each."""
    schemas = catalog.json_schemas()
    wanted = {f"{name}.json": render(schema) for name, schema in schemas.items()}
    problems = [f"schemas/json/v1/{name} is not up to date" for name, text in wanted.items()
                if _text(json_dir / name) != text]  # fmt: skip
    problems += [f"schemas/json/v1/{path.name} is of no message" for path in sorted(json_dir.glob("*.json"))
                 if path.name not in wanted]  # fmt: skip
    problems += [f"{name} has no golden example" for name in _without_golden(schemas, golden_dir)]
    problems += changed_goldens(golden_dir)
    if _text(golden_dir / SUMS) != _sums(golden_dir):
        problems.append(f"schemas/golden/v1/{SUMS} is not up to date")
    return problems + compat.breaking(committed(), schemas)


def changed_goldens(golden_dir: Path = GOLDEN_DIR) -> list[str]:
    """Golden examples that are not what they were when they were added: they must decode for ever as they are."""
    problems = []
    for line in _text(golden_dir / SUMS).splitlines():
        digest, _, name = line.partition("  ")
        path = golden_dir / name
        if not path.exists():
            problems.append(f"schemas/golden/v1/{name} is gone: restore it, what was written once must decode for ever")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            problems.append(f"schemas/golden/v1/{name} was changed: restore it and add another example instead")
    return problems


def committed() -> dict[str, compat.Schema]:
    """Schemas of the last commit; empty where the tree is not a git checkout or has none yet."""
    try:
        listing = _git("ls-tree", "--name-only", "HEAD:schemas/json/v1")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {
        name.removesuffix(".json"): json.loads(_git("show", f"HEAD:schemas/json/v1/{name}"))
        for name in listing.split()
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout  # noqa: S603


def _without_golden(schemas: dict[str, Any], golden_dir: Path) -> list[str]:
    have = {schema_name(path) for path in golden_dir.glob("*.json")}
    return [name for name in schemas if name not in have]


def _sums(golden_dir: Path) -> str:
    files = sorted(golden_dir.glob("*.json"))
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(argv: list[str]) -> int:
    """The exit status: 0 in order, 1 not, 2 for a wrong call."""
    if argv not in ([], ["--check"]):
        sys.stderr.write("usage: python -m schemas.generate [--check]\n")
        return 2
    problems = check() if argv else write()
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if problems and argv:
        sys.stderr.write("run `make schemas` after adding fields with defaults; nothing is removed or narrowed in v1\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
