"""Feedback as sums: the names under which cells keep it, and what people are shown of them."""

from collections.abc import Mapping
from typing import Any

MIN_SCORE = 1.0
MAX_SCORE = 5.0
MICRO = 1_000_000

THUMBS_UP = "thumbs_up"
THUMBS_DOWN = "thumbs_down"
CONVERTED = "converted"
NOT_CONVERTED = "not_converted"
SCORE_N = "score_n"
SCORE_MICRO = "score_micro"
SCORE_SQUARES = "score_squares"
"""Sum of round(score**2 * 10**6)."""
UNITS_DOWN = "units_thumbs_down"
"""Units whose first thumbs-down of the whole test this is."""

KEYS = (THUMBS_UP, THUMBS_DOWN, CONVERTED, NOT_CONVERTED, SCORE_N, SCORE_MICRO, SCORE_SQUARES, UNITS_DOWN)


def shown(sums: Mapping[str, int]) -> dict[str, Any]:
    """The fields of `VariantSummary` on feedback; rates in percent, null without answers."""
    up, down = sums.get(THUMBS_UP, 0), sums.get(THUMBS_DOWN, 0)
    converted, scores = sums.get(CONVERTED, 0), sums.get(SCORE_N, 0)
    answers = converted + sums.get(NOT_CONVERTED, 0)
    return {
        "thumbs_up": up,
        "thumbs_down": down,
        "thumbs_up_rate": 100.0 * up / (up + down) if up + down else None,
        "satisfaction_count": scores,
        "satisfaction_score": sums.get(SCORE_MICRO, 0) / scores / MICRO if scores else None,
        "conversion_count": answers,
        "conversions": converted,
        "conversion_rate": 100.0 * converted / answers if answers else None,
    }


def efficiency(*, done: int, cost_nano: int, completion_tokens: int, gpu_us: int) -> dict[str, Any]:
    """The fields of `VariantSummary` on what was spent; null where nothing was measured."""
    return {
        "gpu_seconds": gpu_us / MICRO,
        "cost_per_request": cost_nano / 1e9 / done if done else None,
        "tokens_per_gpu_second": completion_tokens * MICRO / gpu_us if gpu_us else None,
    }
