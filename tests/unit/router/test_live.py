"""How everything stands, made once for all who watch."""

import asyncio

from services.router.control.live import Live, Watcher


async def test_a_new_watcher_need_not_wait_for_a_slow_picture() -> None:
    made, slow = 0, asyncio.Event()

    async def picture() -> bytes:
        nonlocal made
        made += 1
        if made == 2:
            await slow.wait()
        if made == 3:
            raise RuntimeError("no picture")
        return str(made).encode()

    async def seen(queue: Watcher) -> bytes:
        happening = await queue.get()
        assert happening is not None
        return happening.data

    live = Live(picture, every_s=0.01)
    first, second, third = Watcher(), Watcher(), Watcher()
    with live.watched_by(first):
        assert await seen(first) == b"1"
        while made < 2:
            await asyncio.sleep(0)
        with live.watched_by(second):
            assert await seen(second) == b"1"
            slow.set()
            assert (await seen(first), await seen(second)) == (b"2", b"2")
            while made < 3:
                await asyncio.sleep(0)
            # What may be old by now is shown to nobody.
            with live.watched_by(third):
                assert await seen(third) == b"4"
    await live.stop()
