"""The screen of `cypria watch`: what is known, laid out for so many columns and rows; pure."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from services._cli import watch_words as words
from services._cli.show import number, ramp, styled
from services._cli.watch_words import Happening

BAR = 10
_FOOTER = "q leaves; the test goes on"


@dataclass
class Known:
    """What is known: ``statuses`` of the tests shown by id, and ``line``, how it stands with the edge (empty: live)."""

    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    happenings: list[Happening] = field(default_factory=list)
    line: str = ""
    at: str = ""


def screen(known: Known, width: int, height: int, *, ascii_only: bool = False) -> Text:
    """The whole screen: lines that fit, at most ``height`` of them."""
    if not known.statuses:
        lines = [_top(known, Text("cypria watch", "bold"), width), _sentence({"test_id": None}), Text()]
        lines.append(Text("Start one: cypria start STABLE CANARY --split 10. It is shown here as soon as it runs."))
    elif len(known.statuses) == 1:
        lines = _one(known, next(iter(known.statuses.values())), width, height, ascii_only=ascii_only)
    else:
        lines = _several(known, width, height, ascii_only=ascii_only)
    if known.line:
        lines.insert(1, Text(styled(known.line).plain, f"bold {words.BAD}"))
    lines = lines[: height - 1]
    if len(lines) + 2 < height:
        lines.append(Text())
        lines += _told(_about(known), height - len(lines) - 1, of_one=len(known.statuses) == 1)
    lines += [Text()] * (height - 1 - len(lines))
    lines.append(Text(_FOOTER, "dim"))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _about(known: Known) -> list[Happening]:
    """What happened to the test that is shown, where it is one."""
    if len(known.statuses) != 1:
        return known.happenings
    return [one for one in known.happenings if one.test_id in {"", *known.statuses}]


def _top(known: Known, left: Text, width: int) -> Text:
    right = Text(f"as of {known.at}" if known.line else f"live {known.at}", words.BAD if known.line else "dim")
    return Text.assemble(left, " " * max(2, width - left.cell_len - right.cell_len), right)


def _sentence(status: dict[str, Any]) -> Text:
    style, sentence = words.headline(status)
    return Text(styled(sentence).plain, f"bold {style}")


def _one(known: Known, status: dict[str, Any], width: int, height: int, *, ascii_only: bool) -> list[Text]:
    top = Text.assemble((str(status["test_id"]), "bold"), "  ", styled(status.get("status")))
    style, sentence = words.headline(status)
    lines = [_top(known, top, width)]
    lines += [Text(part, f"bold {style}") for part in textwrap.wrap(styled(sentence).plain, width)[:2]]
    lines += [Text(part) for part in (_split(status), *_notes(status))]
    lines += [Text(), *_arms(status, width)]
    left = height - 1 - len(lines)
    # What only warns, and does not, says no more than its guardrail that acts.
    rails = [one for one in words.guardrails(status) if one.get("action") != "warn" or one.get("warned")]
    needs = words.missing(status)
    # What happened last keeps three lines with its heading, a promotion up to five, guardrails take what is left.
    happened = len(_about(known))
    told = min(4, 1 + happened) if happened else 0
    for_needs = min(max(5, left // 3), 1 + len(_wrapped(needs, width)))
    room = left - told - for_needs - 1
    if rails and room > 1:
        lines += _rails(rails[: room - 1], width, ascii_only=ascii_only)
    if needs:
        lines.append(Text("a promotion still needs", "bold"))
        lines += [Text(f"  {text}") for text in words.first_lines(_wrapped(needs, width), for_needs - 1)]
    elif (status.get("verdict") or {}).get("promotion", {}).get("met"):
        lines.append(Text("all conditions of a promotion hold", "bold green"))
    return lines


def _split(status: dict[str, Any]) -> str:
    parts = [f"split {_share(status.get('traffic_split_percent'))} %"]
    force = status.get("effective_split_percent")
    if force is not None and force != status.get("traffic_split_percent"):
        parts[0] += f" (in force {_share(force)} %)"
    parts.append(f"{number(status.get('elapsed_minutes'))} min")
    if (left := status.get("remaining_minutes")) is not None:
        parts[1] += f", {number(left)} min left"
    parts.append("rolls back by itself" if status.get("auto_rollback", True) else "automatic rollback off")
    return "   ".join(parts)


def _share(percent: Any) -> str:
    return "-" if percent is None else f"{percent:g}"


def _notes(status: dict[str, Any]) -> list[str]:
    """Lines only where there is something to say."""
    found = []
    if stands := status.get("ramp"):
        found.append(ramp(stands))
    if waiting := status.get("waiting_for"):
        found.append(f"waiting for: {waiting}")
    if retry := status.get("retry_at"):
        found.append(f"stepped down; goes back up at {retry}")
    if at := status.get("rollback_at"):
        found.append(f"a rollback is due at {at}")
    found += [f"some of this is not known now: {one}" for one in (status.get("degraded") or [])[:1]]
    return [styled(line).plain for line in found]


_COLUMNS = (
    ("requests", "request_count", 0), ("errors %", "error_rate", 2), ("p50 ms", "latency_p50_ms", 0),
    ("p95 ms", "latency_p95_ms", 0), ("p99 ms", "latency_p99_ms", 0), ("TTFT p50", "ttft_p50_ms", 0),
    ("TTFT p95", "ttft_p95_ms", 0),
)  # fmt: skip
_WIDER = (("TTFT p99", "ttft_p99_ms", 0), ("in flight", "in_flight", 0), ("served by A", "fallback_count", 0))
"""Columns for which 80 leave no room."""


def _arms(status: dict[str, Any], width: int) -> list[Text]:
    metrics, models = status.get("metrics") or {}, status.get("models") or {}
    columns: list[tuple[str, str, int]] = []
    for more in (*_COLUMNS, *_WIDER):
        if width >= 16 + sum(len(name) + 2 for name, _, _ in (*columns, more)):
            columns.append(more)
    room = width - 2 - sum(len(name) + 2 for name, _, _ in columns)
    lines = [Text(f"{'variant':<{2 + room}}" + "".join(f"  {name}" for name, _, _ in columns), "bold")]
    for arm in ("variant_a", "variant_b"):
        of = metrics.get(arm) or {}
        model = styled(models.get(arm)).plain
        model = model if len(model) < room else f"{model[: max(1, room - 2)]}~"
        cells = "".join(f"  {_figure(of.get(key), digits):>{len(name)}}" for name, key, digits in columns)
        lines.append(Text(f"{arm[-1].upper()} {model:<{room}}{cells}"))
    return lines


def _figure(value: Any, digits: int) -> str:
    text = number(value, digits)
    return text if len(text) <= 8 or value is None else f"{value:.2g}"


def _rails(rails: Sequence[dict[str, Any]], width: int, *, ascii_only: bool) -> list[Text]:
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    last = "  at the limit" if width >= 82 else "  then"
    lines = [Text(f"{'guardrails':<24}{'evidence of its limit':<{BAR + 14}}{'A':>10}{'B':>10}{last}", "bold")]
    for one in rails:
        share = words.evidence(one)
        style = words.BAD if one.get("fired") or share >= 1 else words.CAREFUL if one.get("near") else words.GOOD
        filled = round(share * BAR)
        bar = Text.assemble((full * filled, style), (empty * (BAR - filled), "dim"))
        amount = f"{max(0.0, one.get('log_e') or 0.0):.1f} of {one.get('limit') or 0.0:.1f}"
        state = "fired" if one.get("fired") else "warned" if one.get("warned") else str(one.get("action"))
        lines.append(Text.assemble(
            f"{styled(one['name']).plain[:23]:<24}", bar, f" {amount:<13}", f"{_amount(one, 'value_a'):>10}",
            f"{_amount(one, 'value_b'):>10}", "  ", (state, style if state in {"fired", "warned"} else ""),
        ))  # fmt: skip
    return lines


def _amount(guardrail: dict[str, Any], which: str) -> str:
    value, unit = guardrail.get(which), guardrail.get("unit") or ""
    if value is None:
        return "-"
    return f"{value:.4f} $" if unit == "$" else f"{value:,.1f} {unit}"


def _several(known: Known, width: int, height: int, *, ascii_only: bool) -> list[Text]:
    full = "#" if ascii_only else "█"
    lines = [_top(known, Text(f"{len(known.statuses)} tests are running", "bold"), width)]
    lines.append(Text("`cypria watch TEST_ID` shows one of them in full", "dim"))
    head = f"{'test':<29}{'split':>7}{'req. A':>9}{'req. B':>9}{'err. A':>8}{'err. B':>8}  evidence"
    lines += [Text(), Text(head, "bold")]
    for test_id, status in list(known.statuses.items())[: max(1, (height - 8) // 2)]:
        metrics = status.get("metrics") or {}
        a, b = metrics.get("variant_a") or {}, metrics.get("variant_b") or {}
        worst = max((words.evidence(one) for one in words.guardrails(status)), default=0.0)
        lines.append(Text.assemble(
            f"{test_id[:28]:<29}", f"{number(status.get('traffic_split_percent'), 2):>6}%",
            *(f"{number(arm.get('request_count')):>9}" for arm in (a, b)),
            *(f"{number(arm.get('error_rate'), 1):>7}%" for arm in (a, b)), f"  {full * round(worst * 4)} {worst:.0%}",
        ))  # fmt: skip
        style, sentence = words.headline(status)
        lines.append(Text(f"  {styled(sentence).plain}", style))
    return lines


def _told(happenings: Sequence[Happening], room: int, *, of_one: bool) -> list[Text]:
    if room < 2 or not happenings:
        return []
    lines = [Text("what happened last", "bold")]
    for one in list(happenings)[-(room - 1) :][::-1]:
        of = "" if of_one or not one.test_id else f"{one.test_id} "
        said = styled(one.text).plain.replace("\n", " ")
        lines.append(Text.assemble((f"  {clock(one.at_ms)} ", "dim"), of, (said, one.style)))
    return lines


def clock(at_ms: int) -> str:
    """The time of day (UTC) of a moment."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%H:%M:%S")


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    return [part for text in texts for part in textwrap.wrap(styled(text).plain, max(20, width - 2))]
