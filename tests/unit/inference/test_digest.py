"""What may be loaded, and what changes the digest."""

from pathlib import Path

import pytest

from infra.models import digest as published
from services.inference.adapters.digest import IntegrityError, digest_dir, verify

STABLE = Path(__file__).parents[3] / "infra" / "models" / "stable"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "sub").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "sub" / "model.safetensors").write_bytes(b"weights")
    return path


def test_the_same_digest_as_the_published_one() -> None:
    assert digest_dir(STABLE) == published.digest_dir(STABLE)


def test_every_change_shows(model: Path) -> None:
    seen = {digest_dir(model)}
    (model / "config.json").write_text("{ }")
    seen.add(digest_dir(model))
    (model / "more").write_text("")
    seen.add(digest_dir(model))
    (model / "more").rename(model / "moved")
    seen.add(digest_dir(model))
    assert len(seen) == 4


def test_accepted(model: Path) -> None:
    found = verify(model, None, [])
    assert verify(model, found, [str(model.parent) + "/"]) == found


def test_tampered(model: Path) -> None:
    found = verify(model, None, [])
    (model / "sub" / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(IntegrityError, match=r"digest is sha256:.*configured is sha256:"):
        verify(model, found, [])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "sub/optimizer.PKL", "a.ckpt"])
def test_pickles(model: Path, name: str) -> None:
    (model / name).write_bytes(b"x")
    with pytest.raises(IntegrityError, match="may run code when loaded"):
        verify(model, None, [])


def test_no_safetensors(model: Path) -> None:
    (model / "sub" / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"has no .*safetensors"):
        verify(model, None, [])


def test_links(model: Path, tmp_path: Path) -> None:
    (model / "link").symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError, match="symlink"):
        verify(model, None, [])
    (model / "link").unlink()
    (tmp_path / "alias").symlink_to(model)
    with pytest.raises(IntegrityError, match="symlink"):
        verify(tmp_path / "alias", None, [])


def test_outside_the_allowed_sources(model: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    for allow in ([str(allowed)], ["hf://meta/"], [str(model) + "-other"]):
        with pytest.raises(IntegrityError, match=r"model_sources\.allow"):
            verify(model, None, allow)
    with pytest.raises(IntegrityError, match=r"model_sources\.allow"):
        verify(allowed / ".." / "model", None, [str(allowed)])


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no directory"):
        verify(tmp_path / "none", None, [])
