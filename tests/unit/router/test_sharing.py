"""Questions that several callers have at once: one is asked, and no caller depends on another."""

import asyncio

import pytest

from services.router.control.sharing import Shared
from services.router.domain.refusals import NotFound, Unavailable, UpstreamTimeout


class Monitor:
    """Counts what it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.ready = asyncio.Event()
        self.wrong: Exception | None = None

    async def answer(self) -> int:
        self.asked += 1
        mine = self.asked
        await self.ready.wait()
        if self.wrong is not None:
            raise self.wrong
        return mine


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_question_for_all_and_each_caller_goes_when_it_likes() -> None:
    shared, monitor = Shared(), Monitor()

    def caller(within_s: float = 60, held_s: float = 60) -> asyncio.Task[int]:
        return asyncio.create_task(shared.ask("t", monitor.answer, who="monitor", within_s=within_s, held_s=held_s))

    first, second, hurried = caller(), caller(), caller(within_s=0.01)
    with pytest.raises(UpstreamTimeout, match=r"monitor gave no answer within 0\.01 s"):
        await hurried
    first.cancel()
    await settled()
    assert not second.done()
    monitor.ready.set()
    assert (await second, await caller(), monitor.asked) == (1, 1, 1)
    # Another question is another answer.
    assert await shared.ask("u", monitor.answer, who="monitor", within_s=60, held_s=0) == 2
    assert await shared.ask("u", monitor.answer, who="monitor", within_s=60, held_s=0) == 3


async def test_what_goes_wrong_goes_to_all_who_wait_and_is_not_held() -> None:
    shared, monitor = Shared(), Monitor()
    monitor.wrong = NotFound("no such test")
    callers = [asyncio.create_task(shared.ask("t", monitor.answer, who="monitor", within_s=60, held_s=60)) for _ in range(3)]
    await settled()
    monitor.ready.set()
    assert [str(one) for one in await asyncio.gather(*callers, return_exceptions=True)] == ["no such test"] * 3
    monitor.wrong = None
    assert await shared.ask("t", monitor.answer, who="monitor", within_s=60, held_s=60) == 2


async def test_an_answer_is_held_so_long_and_no_longer() -> None:
    shared, monitor = Shared(), Monitor()
    monitor.ready.set()
    assert await shared.ask("t", monitor.answer, who="monitor", within_s=60, held_s=0.01) == 1
    await asyncio.sleep(0.05)
    assert await shared.ask("t", monitor.answer, who="monitor", within_s=60, held_s=60) == 2


async def test_a_stop_ends_what_is_under_way_with_a_reason() -> None:
    shared, monitor = Shared(), Monitor()
    caller = asyncio.create_task(shared.ask("t", monitor.answer, who="monitor", within_s=60, held_s=60))
    await settled()
    await shared.stop()
    with pytest.raises(Unavailable, match="this router stops"):
        await caller
