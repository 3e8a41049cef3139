"""The report as Markdown (CommonMark with tables)."""

import re

from schemas.v1.record import Report
from services.router.domain.report.figures import when
from services.router.domain.report.sections import Section, headline, proof, reason, sections, subject

_SPECIAL = re.compile(r"([\\`*\[\]<>|#!~])")
_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def document(report: Report) -> str:
    """The whole report; whatever people or models wrote into it stays text."""
    lines = [
        f"# {escape(headline(report))}: {escape(subject(report))}",
        "",
        f"**{escape(reason(report))}**",
        "",
        f"Test {code(report.test_id)}, report of {when(report.at_ms)}",
    ]
    for section in sections(report):
        lines += ["", *_section(section)]
    before, command, behind = proof(report)
    lines += ["", f"{escape(before)}{code(command) if command else ''}{behind}"]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    lines = [f"## {escape(section.title)}", ""]
    if section.facts:
        lines += _table(["", ""], [[label, value] for label, value in section.facts])
    if section.rows:
        lines += _table(section.header, section.rows)
    lines += [f"- {escape(text)}" for text in section.text]
    return lines


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(header), _row(["---"] * len(header), plain=True), *(_row(row) for row in rows)]


def _row(cells: list[str], *, plain: bool = False) -> str:
    return "| " + " | ".join(cell if plain else escape(cell) for cell in cells) + " |"


def escape(text: str) -> str:
    """Text that Markdown and the HTML in it leave alone; on one line."""
    single = " ".join(text.split())
    return _EDGE_UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\1", single))


def code(text: str) -> str:
    """A code span."""
    return f"`{' '.join(text.replace('`', '').split())}`"
