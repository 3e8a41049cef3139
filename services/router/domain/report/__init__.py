"""The decision report of a test as Markdown or as one self-contained HTML page, and which of them a caller wants."""

from typing import Literal

from schemas.v1.record import Report
from services.router.domain.report.html import POLICY, page
from services.router.domain.report.markdown import document

__all__ = ["MEDIA", "POLICY", "Format", "choose", "document", "page", "render"]

Format = Literal["json", "markdown", "html"]

MEDIA: dict[Format, str] = {
    "json": "application/json",
    "markdown": "text/markdown; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
_RANGES: dict[str, Format] = {
    "application/json": "json", "application/*": "json", "*/*": "json", "text/markdown": "markdown",
    "text/html": "html", "text/*": "markdown",
}  # fmt: skip


def choose(accept: str) -> Format:
    """The format that an `Accept` header likes best (RFC 9110, 12.5.1); JSON where it names none that there is."""
    best: Format = "json"
    weight = 0.0
    for part in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        found = _RANGES.get(media)
        if found is not None and (quality := _quality(parameters)) > weight:
            best, weight = found, quality
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def render(report: Report, kind: Format) -> str:
    """The report in a format."""
    if kind == "markdown":
        return document(report)
    return page(report) if kind == "html" else report.model_dump_json()
