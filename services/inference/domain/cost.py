"""What a request cost, in whole nano-dollars so that sums stay exact."""

from dataclasses import dataclass

_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars for 1,000 prompt tokens, 1,000 completion tokens, and a second of the accelerator."""

    prompt_per_1k: float = 0.0
    completion_per_1k: float = 0.0
    gpu_second: float = 0.0


def cost_nano(prices: Prices, prompt_tokens: int, completion_tokens: int, gpu_us: int) -> int:
    """Nano-dollars of ``prompt_tokens``, ``completion_tokens`` and ``gpu_us`` microseconds, rounded once."""
    tokens = prompt_tokens * prices.prompt_per_1k + completion_tokens * prices.completion_per_1k
    return round(tokens * _NANO / 1000 + gpu_us * prices.gpu_second * _NANO / 1_000_000)
