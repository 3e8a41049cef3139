"""The engine that fails on demand is an engine like any other until then."""

from collections.abc import Awaitable, Callable

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters.engines import make_engine
from tests.contract.engines import test_every_engine as every
from tests.contract.engines.conftest import Subject
from tests.fakes.engines import BadEngine
from tests.fakes.openai_server import FakeOpenAI


@pytest.mark.parametrize(
    "promise",
    [
        every.test_stream_tells_its_usage_without_being_asked, every.test_stop_string_ends_and_is_not_shown, every.test_same_seed_same_text,
        every.test_several_choices, every.test_closing_the_answer_stops_the_generation, every.test_embeddings,
        every.test_many_at_once_each_get_their_own,
        every.test_an_engine_that_dies_mid_stream_ends_every_stream_and_says_later_that_nothing_was_sent,
    ],
)  # fmt: skip
async def test_it_keeps_what_every_engine_promises(promise: Callable[[Subject], Awaitable[None]]) -> None:
    async with FakeOpenAI() as fake:
        fake.behaviour.chunk_delay_s = 0.002
        model = Model(name="m", engine="openai", base_url=fake.base_url, timeout_seconds=20)
        engine = BadEngine(model, make_engine(model))
        await engine.load()
        await engine.warm()
        await promise(Subject(engine, lambda: fake.seen.running, fake, fake.stop))
        await engine.close()
