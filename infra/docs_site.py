"""What MkDocs needs to build the site from pages that are written for a reader of the repository.

Pages that lie elsewhere (the README, those of the services) become pages of the site, links are those of the site, and
Markdown as GitHub reads it becomes what MkDocs reads. Named in mkdocs.yml, called by MkDocs.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/README.md": "reference/benchmarks.md",
    "infra/clickhouse/README.md": "reference/clickhouse.md",
    "infra/nats/README.md": "reference/nats.md",
    "schemas/README.md": "reference/schemas.md",
    "services/alerts/README.md": "reference/alerts-service.md",
    "services/inference/README.md": "reference/inference.md",
    "services/metrics/README.md": "reference/metrics-service.md",
    "services/monitor/README.md": "reference/monitor.md",
    "services/router/README.md": "reference/router.md",
}
"""Where it is in the repository, and where on the site."""
DECISIONS = "decisions/index.md"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"\s*(```|~~~)")
_ITEM = re.compile(r"( *)([-*]|\d+\.) +")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Bring every decision record into the navigation."""
    for section in config.nav or []:
        for pages in section.values():
            for entry in pages if isinstance(pages, list) else []:
                if DECISIONS in (listed := next(iter(entry.values()))):
                    listed += [f"decisions/{path.name}" for path in sorted(DOCS.glob("decisions/*.md"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and the list of the decisions."""
    for source, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, DECISIONS, content=decisions()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """A page as MkDocs reads it."""
    lies = next((source for source, uri in ELSEWHERE.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")
    return spaced(linked(markdown, ROOT / lies, page.file.src_uri))


def decisions() -> str:
    """The page that lists the decision records."""
    found = sorted(DOCS.glob("decisions/*.md"))
    titles = [(path.name, path.read_text().split("\n", 1)[0].lstrip("# ")) for path in found]
    head = "# Decision records\n\nWhy things are as they are, and what was tried and not taken.\n\n"
    return head + "".join(f"- [{title.replace('. ', ' · ', 1)}]({name})\n" for name, title in titles)


def linked(markdown: str, source: Path, uri: str) -> str:
    """The text with links between pages of the site; what is no page is named by its place in the repository."""

    def one(found: re.Match[str]) -> str:
        picture, text, target, anchor = found.groups()
        there = Path(os.path.normpath(source.parent / target))
        if not there.exists():
            return found.group()  # MkDocs says where it is
        place = there.relative_to(ROOT).as_posix()
        if there == DOCS / "decisions":
            place = f"docs/{DECISIONS}"
        on_site = ELSEWHERE.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else None)
        if on_site is None:
            return text if text.strip("`") == place else f"{text} (`{place}`)"
        return f"{picture}[{text}]({os.path.relpath(on_site, Path(uri).parent)}{anchor or ''})"

    return _outside_fences(markdown, lambda line: _LINK.sub(one, line))


def spaced(markdown: str) -> str:
    """Lists and tables begin behind an empty line, and what belongs to an item is indented by multiples of four."""
    lines: list[str] = []
    depths: list[tuple[int, int]] = []  # of each open item: where its text begins, and where it begins in the result
    fence = ""
    for line in markdown.splitlines():
        bare, indent = line.lstrip(), len(line) - len(line.lstrip())
        if not bare:
            lines.append("")
            continue
        item = None if fence else _ITEM.match(line)
        if not fence:
            before = lines[-1] if lines else ""
            starts = item is not None and not (before == "" or _ITEM.match(before) or depths)
            if starts or (bare.startswith("|") and before.strip() and not before.lstrip().startswith("|")):
                lines.append("")
            while depths and indent < depths[-1][0] and (item or before == "" or _FENCE.match(line)):
                depths.pop()
        base_from, base_to = depths[-1] if depths else (0, 0)
        inside = max(indent - base_from, 0) if depths else indent
        lines.append(" " * (base_to + inside) + bare)
        if item:
            depths.append((item.end(), base_to + 4))
        if mark := _FENCE.match(line):
            fence = "" if fence else mark.group(1)
    return "\n".join(lines) + "\n"


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    lines, fence = [], False
    for line in markdown.splitlines():
        fence ^= bool(_FENCE.match(line))
        lines.append(line if fence else change(line))
    return "\n".join(lines) + "\n"
