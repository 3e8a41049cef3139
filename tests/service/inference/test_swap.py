"""Swapping a served model: nobody notices but by the answers."""

from pathlib import Path

from tests.service.inference.conftest import StackFactory
from tests.service.inference.swapping import check, swap, write_model


async def test_swaps_under_load_fail_no_request_and_leave_no_weights(stack: StackFactory, tmp_path: Path) -> None:
    times = 4
    specs = [{"engine": "transformers", "path": str(write_model(tmp_path / name, seed))} for seed, name in enumerate("ab")]
    sections = {"model_sources": {"allow": [str(tmp_path)]}}
    async with stack(models=[{"name": "m", **specs[0]}], sections=sections) as s:
        first = s.models.get("m").digest
        replies = await swap(s, specs, times)
        [other] = {reply.done.digest for reply in replies} - {first}
        check(replies, [other if n % 2 else first for n in range(times + 1)])
