"""The report as one HTML page that needs nothing else: no script, no font, no picture from anywhere.

Its own policy forbids everything but its one style sheet, which is named by its digest.
"""

import base64
import hashlib
from html import escape

from schemas.v1.common import Decision
from schemas.v1.record import Report
from services.router.domain.report.figures import when
from services.router.domain.report.plots import plots
from services.router.domain.report.sections import Section, headline, proof, reason, sections, subject
from services.router.domain.report.style import STYLE

_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
STYLE_SOURCE = f"'sha256-{_DIGEST}'"
"""The page's style sheet, as a policy names it."""
_RULES = f"default-src 'none'; style-src {STYLE_SOURCE}; base-uri 'none'; form-action 'none'"
POLICY = f"{_RULES}; frame-ancestors 'none'"
"""The Content-Security-Policy that the page is served under; the page carries the same (a file has no headers)."""

_TONE = {Decision.PROMOTE_B: "good", Decision.ROLLBACK: "bad"}
_MONO = ("Rule", "Digest of", "Configuration hash", "Tick")


def page(report: Report) -> str:
    """The whole page. Everything from outside is escaped; attributes hold nothing but names of ours and numbers."""
    tone = _TONE.get(report.result.decision, "") if report.result.decision else ""
    title = f"{headline(report)}: {subject(report)}"
    found = sections(report)
    drawn = plots(report)
    before, command, behind = proof(report)
    shown = f"<code>{escape(command)}</code>" if command else ""
    figures = "<h2>Over time</h2>" + "".join(drawn) if drawn else ""
    # The first section is the decision itself: its plots come right after it.
    body = _section(found[0]) + figures + "".join(_section(section) for section in found[1:])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_RULES)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><span class="badge {tone}">{escape(headline(report))}</span>'
        f"<h1>{escape(subject(report))}</h1><p>{escape(reason(report))}</p>"
        f'<p class="soft">Test <code>{escape(report.test_id)}</code>, report of {escape(when(report.at_ms))}</p>'
        "</header>"
        f"<main>{body}</main>"
        f"<footer>{escape(before)}{shown}{behind}</footer></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    if section.facts:
        parts.append("<dl>" + "".join(_fact(label, value) for label, value in section.facts) + "</dl>")
    if section.rows:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in section.header)
        rows = "".join(_row(row) for row in section.rows)
        parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>')
    if section.text:
        parts.append("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in section.text) + "</ul>")
    return "".join(parts) + "</section>"


def _fact(label: str, value: str) -> str:
    mono = ' class="mono"' if label.startswith(_MONO) else ""
    return f"<dt>{escape(label)}</dt><dd{mono}>{escape(value)}</dd>"


def _row(cells: list[str]) -> str:
    tone = next((word for word in ("fired", "warned") if word in cells), "")
    mark = f' class="{tone}"' if tone else ""
    return f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
