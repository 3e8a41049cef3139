"""Which peers run, how they are started and what is compared."""

from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.__main__ import hot_path_figures


def put(venv: Path, name: str, version: str) -> None:
    (venv / "bin").mkdir(exist_ok=True, parents=True)
    (venv / "bin" / name).touch()
    (venv / f"lib/python3.11/site-packages/{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)


def test_only_what_is_installed_runs_and_never_the_compromised_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "VENV", tmp_path)
    assert peers.installed() == []
    put(tmp_path, "vllm-router", "0.1.17")
    put(tmp_path, "litellm", "1.107.0")
    assert peers.installed() == ["vllm-router"]
    assert peers.version("vllm-router") == "0.1.17"
    assert "!=1.107.0" in peers.REQUIREMENTS["litellm"]


def test_every_peer_listens_on_loopback_before_one_engine(tmp_path: Path) -> None:
    for name in peers.REQUIREMENTS:
        arguments = " ".join(peers.command(name, 1234, 5678, tmp_path))
        assert "--host 127.0.0.1 --port 1234" in arguments
    assert "http://127.0.0.1:5678/v1" in (tmp_path / "litellm.yaml").read_text()


def test_ratios_are_taken_round_by_round_and_have_targets_for_router_and_bus_only() -> None:
    found = peers.Found()
    for round_values in ((1000.0, 500.0, 400.0, 800.0), (2000.0, 900.0, 700.0, 1200.0)):
        for name, value in zip(("direct", "echo", "openai", "vllm-router"), round_values, strict=True):
            found.add("rps", name, value)
            found.add("p99", name, 1.0 if name == "direct" else 1000.0 / value)
            found.add("ttft p99", name, 1.0 if name == "direct" else 2000.0 / value)
    figures = {one.name: one for one in peers.ratios(found, ["direct", "echo", "openai", "vllm-router"])}
    rate = figures["echo: requests/s against vllm-router"]
    assert rate.values == (0.625, 0.75)
    assert (rate.must, rate.aim) == (0.5, 1.0)
    assert figures["openai: requests/s against vllm-router"].must is None
    added = figures["echo: added p99 at 200/s against vllm-router"]
    mine, theirs = (2.0 + 1000 / 900) / 2 - 1.0, (1.25 + 1000 / 1200) / 2 - 1.0
    assert added.values == pytest.approx((mine / theirs,))


def test_the_hot_path_is_shown_against_the_direct_connection() -> None:
    cells = {
        ("requests/s, 64 connections", "direct"): [100.0, 200.0],
        ("requests/s, 64 connections", "echo"): [50.0, 50.0],
        ("latency ms at 200/s, p99", "direct"): [1.0, 1.0],
        ("latency ms at 200/s, p99", "echo"): [3.0, 4.0],
        ("CPU s per 1,000 requests, router + nats-server", "echo"): [0.1, 0.2],
    }
    figures = {one.name: one for one in hot_path_figures(cells)}
    assert figures["echo: requests/s, 64 connections, share of direct"].values == (0.5, 0.25)
    assert figures["echo: added latency at 200/s, p99"].values == (2.0, 3.0)
    assert figures["echo: CPU per 1,000 requests, with NATS"].must == 0.15
