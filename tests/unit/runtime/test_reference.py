"""The configuration page is what the code says."""

from services._runtime.reference import TARGET, render


def test_the_page_is_current() -> None:
    assert TARGET.read_text() == render(), "run: python -m services._runtime.reference"
