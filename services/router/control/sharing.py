"""Questions that several callers have at once: asked once, in a task of its own, for all of them."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from services._runtime.tasks import end
from services.router.domain.refusals import Unavailable, UpstreamTimeout

T = TypeVar("T")


class Shared:
    """One question under way for each key. A caller that hangs up or waits no longer does not end it for the others."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, asyncio.Task[Any]] = {}

    async def ask(
        self, key: Hashable, question: Callable[[], Awaitable[T]], *, who: str, within_s: float, held_s: float
    ) -> T:
        """The answer that is under way, or came less than ``held_s`` ago, else that to a new question.

        Raises UpstreamTimeout, naming ``who``, after ``within_s``; else what the question raises, which is not held.
        """
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(_asked(question), name="shared-question")
            task.add_done_callback(lambda done: self._answered(key, done, held_s))
        await asyncio.wait({task}, timeout=within_s)
        if not task.done():
            raise UpstreamTimeout(f"{who} gave no answer within {within_s:g} s: try again", retry_after_s=2)
        if task.cancelled():
            raise Unavailable("this router stops: ask another, or again", retry_after_s=1)
        answer: T = task.result()
        return answer

    async def stop(self) -> None:
        """End what is under way."""
        asked, self._asked = self._asked, {}
        await end(*asked.values())

    def _answered(self, key: Hashable, task: asyncio.Task[Any], held_s: float) -> None:
        if task.cancelled() or task.exception() is not None or held_s <= 0:
            self._forget(key, task)
        else:
            task.get_loop().call_later(held_s, self._forget, key, task)

    def _forget(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._asked.get(key) is task:
            del self._asked[key]


async def _asked(question: Callable[[], Awaitable[T]]) -> T:
    return await question()
