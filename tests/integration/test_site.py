"""The site of docs/ builds strictly, its links and anchors lead somewhere, and a reader's browser asks nobody else for anything."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from infra.docs_site import spaced
from services.router.control import reference
from tests.system import ROOT


class Parsed(HTMLParser):
    """A page's links with their tags, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {str(found[name]) for name in ("id", "name") if found.get(name)}
        self.links += [(tag, str(found[name])) for name in ("href", "src") if found.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(target)))  # strict: a warning raises
    return target


def test_every_link_and_anchor_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {page: Parsed(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 30
    followed = 0
    for page, parsed in pages.items():
        for tag, link in parsed.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert tag == "a", f"{page.name} loads {link}"
                continue
            there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert there.exists(), f"{page.relative_to(site)} links to {link}, which is not there"
            if parts.fragment and there in pages:
                assert unquote(parts.fragment) in pages[there].anchors, f"{page.relative_to(site)}: no anchor {link}"
            followed += 1
    assert followed > 1000
    for page in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", page.read_text()), f"{page.name} loads from elsewhere"


def test_no_page_shows_its_markdown(site: Path) -> None:
    """Lists, tables and fences of the repository's Markdown became lists, tables and code."""
    for page in site.rglob("*.html"):
        text = re.sub(r"(?s)<(pre|code|script)\b.*?</\1>", "", page.read_text())
        for left in re.findall(r"<p>[^<]*(?:\n[-|] [^<]*|```[^<]*)|\]\([^)]*\.md", text):
            pytest.fail(f"{page.relative_to(site)} shows {left[:200]!r}")


def test_markdown_of_github_becomes_that_of_the_site() -> None:
    text = "Some:\n- one\n  goes on\n- two\n\n1. first\n   ```\n   - code\n   ```\n   after\n2. second\n"
    assert spaced(text) == (
        "Some:\n\n- one\n    goes on\n- two\n\n1. first\n    ```\n    - code\n    ```\n    after\n2. second\n"
    )
    assert spaced("Some\n| a |\n| - |\n| b |\n") == "Some\n\n| a |\n| - |\n| b |\n"


def test_the_references_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert reference.main(["--check"]) == 0, f"run: {reference.COMMAND}"
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    assert reference.main(["--chek"]) == 2
