"""Files that are made from the code: written, or with `--check` held against it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def bring_up_to_date(
    arguments: list[str], command: str, made: Mapping[Path, str], whole: Sequence[Path] = ()
) -> int:
    """Write what is not as ``made`` has it, or with `--check` name it; the exit status.

    ``command`` is what somebody types to have them written. Other arguments are refused: a misspelt `--check` must
    not write. Of the folders ``whole`` everything else is removed, or named.
    """
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"usage: {command} [--check]\n")
        return 2
    old = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in old:
        if arguments:
            sys.stderr.write(f"{path} is not as the code has it: run {command}\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
    gone = [path for folder in whole for path in sorted(folder.glob("*")) if path not in made]
    for path in gone:
        if arguments:
            sys.stderr.write(f"{path} is made no more: run {command}\n")
        else:
            path.unlink()
            sys.stdout.write(f"removed {path}\n")
    return int(bool((old or gone) and arguments))
