"""A batch of sequences on one torch model: they join and leave between two steps.

Each row has its own prompt, padded on the left with masked zeros, its own positions, sampler and random
generator, so that no row can see or break another.
"""

import inspect
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from services.inference.domain.formats import TokenLogprob
from services.inference.domain.sequence import Delta, Sequence

NOT_FINITE = "the model's output is not finite (NaN or infinity): its weights are broken"


@dataclass(slots=True)
class _Row:
    sequence: Sequence
    generator: torch.Generator
    length: int
    last: int
    seen: Counter[int] = field(default_factory=Counter)


Results = list[tuple[Sequence, Delta]]


class TorchBatch:
    """Not thread-safe: belongs to the engine's thread."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        # transformers renames the argument in 5.x and drops its old name in 5.40.
        known = inspect.signature(type(model).forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"
        self._tokenizer = tokenizer
        self._rows: list[_Row] = []
        self._cache: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._mask = torch.zeros((0, 0), dtype=torch.long)

    def __len__(self) -> int:
        return len(self._rows)

    def sequences(self) -> list[Sequence]:
        """All that are being generated."""
        return [row.sequence for row in self._rows]

    def join(self, sequence: Sequence) -> Results:
        """Read a prompt and produce its first token; the sequence stays unless that ended it."""
        with torch.inference_mode():
            return self._join(sequence)

    def step(self) -> Results:
        """One more token for every row; those that end, leave."""
        with torch.inference_mode():
            return self._step()

    def _join(self, sequence: Sequence) -> Results:
        began = time.perf_counter()
        ids = torch.tensor([sequence.prompt])
        cache = DynamicCache()
        output = self._model(input_ids=ids, use_cache=True, logits_to_keep=1, **{self._cache_name: cache})
        generator = torch.Generator().manual_seed(sequence.params.seed % (1 << 63))
        row = _Row(sequence, generator, len(sequence.prompt), 0)
        results: Results = []
        logits = output.logits[:, -1].float()
        sequence.compute_s += time.perf_counter() - began
        if self._advance(row, logits[0], results):
            self._append(row, [(layer.keys, layer.values) for layer in cache.layers])
        return results

    def _step(self) -> Results:
        began = time.perf_counter()
        rows = self._rows
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self._cache):
            cache.update(keys, values, index)
        output = self._model(
            input_ids=torch.tensor([[row.last] for row in rows]),
            attention_mask=self._mask,
            position_ids=torch.tensor([[row.length] for row in rows]),
            use_cache=True,
            **{self._cache_name: cache},
        )
        self._cache = [(layer.keys, layer.values) for layer in cache.layers]
        logits = output.logits[:, -1].float()
        share = (time.perf_counter() - began) / len(rows)
        results: Results = []
        keep = []
        for index, row in enumerate(rows):
            row.length += 1
            row.sequence.compute_s += share
            if self._advance(row, logits[index], results):
                keep.append(index)
        self._keep(keep)
        return results

    def drop_cancelled(self) -> None:
        """Remove the rows whose callers have gone."""
        if any(row.sequence.cancelled for row in self._rows):
            self._keep([index for index, row in enumerate(self._rows) if not row.sequence.cancelled])

    def clear(self) -> None:
        """Forget everything."""
        self._keep([])

    def _advance(self, row: _Row, logits: torch.Tensor, results: Results) -> bool:
        """Choose the row's next token; False when that ends it."""
        sequence = row.sequence
        if not bool(torch.isfinite(logits).all()) and not _only_masked(logits):
            results.append((sequence, sequence.fail(NOT_FINITE)))
            return False
        row.last = token = _sample(_adjusted(logits, row), row)
        chosen = self._logprob(logits, token, sequence.params.logprobs) if sequence.params.logprobs >= 0 else None
        if sequence.params.adjusts:
            row.seen[token] += 1
        delta = sequence.push(token, chosen)
        if delta is None:
            return True
        results.append((sequence, delta))
        return not delta.last

    def _logprob(self, logits: torch.Tensor, token: int, alternatives: int) -> TokenLogprob:
        logprobs = torch.log_softmax(logits, dim=-1)
        top: list[tuple[str, float]] = []
        if alternatives:
            values, ids = logprobs.topk(min(alternatives, logprobs.numel()))
            top = [(self._token(i), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
        return TokenLogprob(self._token(token), float(logprobs[token]), top)

    def _token(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def _append(self, row: _Row, cache: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        mask = torch.ones((1, cache[0][0].shape[-2]), dtype=torch.long)
        if not self._rows:
            self._cache, self._mask = cache, mask
        else:
            width = max(self._mask.shape[1], mask.shape[1])
            self._mask = torch.cat((_widen(self._mask, width), _widen(mask, width)))
            self._cache = [
                (_join(keys, new_keys, width), _join(values, new_values, width))
                for (keys, values), (new_keys, new_values) in zip(self._cache, cache, strict=True)
            ]
        self._rows.append(row)

    def _keep(self, indices: list[int]) -> None:
        if len(indices) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in indices]
        if not indices:
            self._cache, self._mask = [], torch.zeros((0, 0), dtype=torch.long)
            return
        rows = torch.tensor(indices)
        mask = self._mask.index_select(0, rows)
        # Columns that are padding for everybody left are only work.
        start = int(mask.any(dim=0).int().argmax())
        self._mask = mask[:, start:]
        self._cache = [
            (keys.index_select(0, rows)[:, :, start:], values.index_select(0, rows)[:, :, start:])
            for keys, values in self._cache
        ]


def _only_masked(logits: torch.Tensor) -> bool:
    """Whether what is not finite is -inf, which models use for tokens that must not come, and something is left."""
    return not bool(torch.isnan(logits).any() | torch.isposinf(logits).any()) and bool(torch.isfinite(logits).any())


def _widen(mask: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _join(one: torch.Tensor, other: torch.Tensor, width: int) -> torch.Tensor:
    """Two caches [rows, heads, length, size], both padded with zeros on the left to ``width``."""
    return torch.cat([torch.nn.functional.pad(part, (0, 0, width - part.shape[-2], 0)) for part in (one, other)])


def _adjusted(logits: torch.Tensor, row: _Row) -> torch.Tensor:
    """The logits after OpenAI's bias and its penalties for tokens that the answer has already."""
    params = row.sequence.params
    if not params.adjusts:
        return logits
    change = torch.zeros_like(logits)
    for token, bias in params.bias.items():
        change[token] += bias
    for token, count in row.seen.items():
        change[token] -= params.presence_penalty + params.frequency_penalty * count
    return logits + change


def _sample(logits: torch.Tensor, row: _Row) -> int:
    """Temperature, then top-k, then nucleus (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751)."""
    params = row.sequence.params
    if params.temperature < 1e-5:
        return int(logits.argmax())
    logits = logits / params.temperature
    if 0 < params.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], float("-inf"))
    probabilities = torch.softmax(logits, dim=-1)
    if params.top_p < 1:
        ordered, ids = probabilities.sort(descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.masked_fill(before > params.top_p, 0.0)
        return int(ids[torch.multinomial(ordered, 1, generator=row.generator)])
    return int(torch.multinomial(probabilities, 1, generator=row.generator))
