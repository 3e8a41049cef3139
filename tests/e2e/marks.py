"""Text that must be nowhere, and where it is looked for: as it is and in every form that a record might take."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

MARKS = {
    "prompt": "zwischenprüfung-mark",
    "system prompt": "vorgabe-mark",
    "tool": "werkzeug-mark",
    "user": "nutzerin-mark",
    "session": "sitzung-mark",
    "user id": "kennung-mark",
    "cache key": "speicher-mark",
    "forwarded address": "203.0.113.177",
    "forwarded address, version 6": "2001:db8::beef:77",
    "address": "127.0.0.177",
    "key": "SECRETMARK",
    "wrong key": "falsch-mark",
    "key in a URL": "adresszeile-mark",
    "cookie": "keks-mark",
    "user agent": "programm-mark",
    "model that nobody serves": "unbekannt-mark",
    "body that is no JSON": "kaputt-mark",
    "forged token": "gefälscht-mark",
    "bad parameter": "parameter-mark",
    "unknown path": "pfad-mark",
    "unknown verb": "verbmark",
}
"""By what it is. Words that are in no code, each told from the others."""


def forms(mark: str) -> set[bytes]:
    """A text as it is, escaped as JSON and URLs escape it, and within longer texts in hex and base64."""
    raw = mark.encode()
    found = {raw, json.dumps(mark)[1:-1].encode(), quote(mark).encode(), quote(mark, safe="").encode()}
    found |= {mark.encode("latin-1"), raw.hex().encode(), raw.hex().upper().encode()}
    for before in range(3):  # where it begins in a group of three bytes
        text = base64.b64encode(b"\0" * before + raw)
        inside = text[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        found |= {inside, inside.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def held(texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """What is held where, in words: nothing at all, as it should be."""
    looked_for = [(name, form) for name, mark in MARKS.items() for form in forms(mark)]
    found = []
    for where, text in texts:
        found += [f"{name} ({form!r}) in {where}" for name, form in looked_for if form in text]
    return found


def files(folder: Path, *without: Path) -> list[tuple[str, bytes]]:
    """Every file below a folder with its content."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in without]
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in paths]
