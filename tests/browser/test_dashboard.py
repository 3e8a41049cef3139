"""The live page in a real browser, on a running system: what people read there, do there, and what happens meanwhile."""

import asyncio
import contextlib
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.browser.chromium import WAIT_MS, Tab, browser, tab
from tests.e2e.product import KEYS, UNICODE, Product, running_product
from tests.fakes.openai_server import Behaviour
from tests.harness import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = {"traffic_split_percent": 50, "test_duration_minutes": 60}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Product]:
    async with running_product(tmp_path_factory.mktemp("dashboard")) as product:
        yield product


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as started:
        yield started


@contextlib.asynccontextmanager
async def looking(chromium: Browser, product: Product, role: str = "operator", path: str = "", **options: Any) -> AsyncIterator[Tab]:
    async with tab(chromium, product.system.url, **options) as found:
        await found.sign_in(KEYS[role], path)
        yield found


@contextlib.asynccontextmanager
async def traffic(product: Product, per_second: float = 20) -> AsyncIterator[None]:
    """Requests of ever new users while the block runs."""

    async def send() -> None:
        tasks: set[asyncio.Task[Any]] = set()
        for number in itertools.count():
            task = asyncio.create_task(product.chat(user=f"user-{id(tasks)}-{number}"))
            tasks.add(task)
            task.add_done_callback(lambda done: (tasks.discard(done), done.cancelled() or done.exception()))
            await asyncio.sleep(1 / per_second)

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.wait({sending})


@contextlib.asynccontextmanager
async def started(product: Product, **fields: Any) -> AsyncIterator[str]:
    async with product.test(**{**LONG, **fields}) as test_id:
        yield test_id


async def test_only_a_good_key_lets_in_and_it_is_forgotten(product: Product, chromium: Browser) -> None:
    async with looking(chromium, product, "viewer") as seen:
        await expect(seen.page.get_by_text("No test is running.")).to_be_visible()
        await expect(seen.page.get_by_text("Starting one takes an operator's key")).to_be_visible()
        await expect(seen.button("Start a test")).to_have_count(0)
        await seen.page.route("**/whoami", lambda route: route.abort())
        await seen.page.reload()  # the tab remembers, and waits for a server that is away
        await expect(seen.page.get_by_text("The server cannot be reached. It is being tried again")).to_be_visible()
        assert await seen.violations() == []
        await seen.page.unroute_all(behavior="wait")
        await expect(seen.page.get_by_text("No test is running.")).to_be_visible()
        assert await seen.violations() == []
        await seen.button("Sign out").click()
        await expect(seen.heading("Sign in to Cypria")).to_be_visible()
        held = "JSON.stringify([Object.values(sessionStorage), Object.values(localStorage), document.cookie, location.href])"
        assert "SECRETMARK" not in await seen.page.evaluate(held)
        await seen.page.reload()
        await seen.sign_in("“cyp-wrong”")
        await expect(seen.page.get_by_role("alert")).to_contain_text("A key has no blanks")
        await seen.sign_in("cyp-wrong")
        await expect(seen.page.get_by_role("alert")).to_contain_text("This key is not known here.")
        assert await seen.violations() == []
        await seen.sign_in(KEYS["client"])
        await expect(seen.heading("This key may not look at tests")).to_be_visible()
        assert await seen.violations() == []
    async with tab(chromium, product.system.url) as behind:  # a proxy that has put something before the path
        await behind.page.route("**/cypria/**", lambda route: route.continue_(url=route.request.url.replace("/cypria/", "/", 1)))
        await behind.sign_in(KEYS["viewer"], at="/cypria/dashboard")
        await expect(behind.page.get_by_text("No test is running.")).to_be_visible()
        # Events are read as the Python client reads them.
        blocks = ['event: alert\ndata:{"a":\ndata: 1}', "event: alert\ndata: [1]", "data: {", ": keep-alive", 'data: {"b": 2}']
        read = await behind.page.evaluate("async (blocks) => { const { parse } = await import('./dashboard/static/api.js'); return blocks.map(parse); }", blocks)
        assert read == [{"name": "alert", "data": {"a": 1}}, None, None, None, {"name": "message", "data": {"b": 2}}]


async def test_one_page_says_what_runs_whether_it_is_safe_and_what_is_missing(product: Product, chromium: Browser) -> None:
    async with started(product) as test_id:
        async with looking(chromium, product, "viewer") as seen, traffic(product, 10):
            await expect(seen.heading("canary is being served 50 % of stable's traffic.")).to_be_visible()
            safe = seen.page.locator(".answer", has_text="Is it safe?")
            await expect(safe).to_contain_text("No evidence of harm: none of 8 guardrails has fired or is close to it")
            await expect(safe).to_contain_text(re.compile(r"Errors of the canary: 0\s% so far, at most [\d.]+\s% \(limit 5\s%\)"))
            needs = seen.page.locator(".answer", has_text="What would a promotion still need?")
            await expect(needs).to_contain_text(re.compile(r"Not yet: \d of 7 conditions are met."))
            rows = seen.page.locator(".guardrails tbody tr")
            await expect(rows).to_have_count(8)
            await expect(rows.filter(has_text="Time to first token")).to_contain_text("of 1.6K")
            await expect(seen.page.locator(".charts canvas").first).to_be_attached()
            await expect(seen.page.get_by_text("Your key (viewer) has the role viewer: it may look.")).to_be_visible()
            for command in ("Start a test", "Pause", "Change split", "Stop", "Roll back"):
                await expect(seen.button(command)).to_have_count(0)
            table = seen.page.locator("details", has_text="Traffic as a table")
            await table.locator("summary").press("Enter")
            await expect(table.locator("tbody tr").first).to_be_visible()
            await seen.button("Last 10 minutes").press("Enter")
            await expect(seen.button("Last 10 minutes")).to_have_attribute("aria-pressed", "true")
            await expect(table.locator("tbody tr").first).to_be_visible()
            timeline = seen.page.get_by_role("region", name="Time line")
            await expect(timeline).to_contain_text(re.compile(r"Started · split 50\s% · by admin"))
            assert await seen.violations() == []
            await seen.button("Dark colours").click()
            await expect(seen.button("Light colours")).to_be_visible()
            assert await seen.violations("color-contrast") == []
        async with looking(chromium, product, "viewer", f"#/tests/{test_id}", viewport={"width": 360, "height": 780}, color_scheme="dark") as phone:
            await expect(phone.page.locator(".charts canvas").first).to_be_attached()
            await expect(phone.page.get_by_role("link", name="← All tests")).to_be_visible()
            assert await phone.fits()
            assert await phone.violations() == []


async def test_a_canary_that_goes_bad_is_seen_rolled_back(product: Product, chromium: Browser) -> None:
    async with looking(chromium, product, "viewer") as seen:
        await expect(seen.page.get_by_text("No test is running.")).to_be_visible()
        await seen.page.evaluate("window.untouched = true")
        with product.behaving(canary=Behaviour(error_rate=0.6)):
            async with started(product, auto_rollback=True) as test_id, traffic(product):
                await expect(seen.heading("canary was rolled back: stable serves everything again.")).to_be_visible()
        why = seen.page.locator(".answer", has_text="Why was it rolled back?")
        # Whichever comes first, the evidence or the breaker.
        await expect(why).to_contain_text(re.compile(r"passed its limit\. |errors in a row"))
        await expect(seen.page.locator("#announce")).to_contain_text("Rolled back: canary was rolled back")
        await expect(seen.page.get_by_role("region", name="Time line")).to_contain_text("Rolled back")
        assert await seen.page.evaluate("window.untouched"), "it was loaded again"
        listed = seen.page.locator(".history tbody tr").first
        await expect(listed).to_contain_text("Rolled back")
        await listed.get_by_role("link").click()
        await expect(seen.page).to_have_url(f"{seen.url}/dashboard#/tests/{test_id}")
        await expect(seen.page.locator(".guardrails tbody tr")).to_have_count(8)
        assert await seen.violations() == []
        async with seen.page.context.expect_page() as opened:
            await seen.button("Open the report").click()
        report = await opened.value
        await expect(report.get_by_role("heading", name="canary (B) against stable (A)")).to_be_visible()
        assert await report.evaluate("getComputedStyle(document.querySelector('.badge')).borderRadius") == "16px", "it has lost its style"


async def confirmed(seen: Tab, command: str, says: str, answer: str, *, verb: str | None = None, fields: dict[str, str] | None = None) -> None:
    """Give a command: its dialog says what will happen, then what the server answered."""
    await seen.page.get_by_role("group", name="Commands").get_by_role("button", name=command, exact=True).click()
    dialog = seen.page.get_by_role("dialog")
    await expect(dialog).to_contain_text(says)
    for label, value in (fields or {}).items():
        await dialog.get_by_label(label).fill(value)
    await dialog.get_by_role("button", name=verb or command, exact=True).click()
    await expect(dialog.locator(".note.good")).to_contain_text(answer)
    await dialog.get_by_role("button", name="Close").press("Enter")
    await expect(dialog).to_have_count(0)


async def test_an_operator_does_everything_from_the_page(product: Product, chromium: Browser) -> None:
    async with looking(chromium, product) as seen, traffic(product, 8):
        await seen.button("Start a test").click()
        dialog = seen.page.get_by_role("dialog")
        await expect(dialog.get_by_label("Stable model (A)")).to_have_value("stable")
        await expect(dialog.get_by_label("Canary (B)")).to_have_value("canary")
        assert await seen.violations() == []
        await dialog.get_by_role("button", name="Start").click()
        await expect(seen.page.locator("#banner")).to_contain_text("Started: canary gets 10")
        await expect(seen.heading("canary is being served 10 % of stable's traffic.")).to_be_visible()
        (test_id,) = (await product.call("GET", "status")).json()["running_tests"]

        await confirmed(seen, "Pause", "The split stays at 10", "The test is paused.")
        await expect(seen.heading("canary stays at 10 % of stable's traffic")).to_be_visible()
        await confirmed(seen, "Resume", "The test goes on at 10", "The test goes on.")
        await seen.button("Change split").click()
        await dialog.get_by_label("Canary's share of the traffic, in percent").fill("25")
        await expect(dialog).to_contain_text("15 of every 100 users move from stable to canary; canary then has 25")
        await seen.page.keyboard.press("Escape")
        await expect(seen.button("Change split")).to_be_focused()
        share = {"Canary's share of the traffic, in percent": "25"}
        await confirmed(seen, "Change split", "canary has 10", "canary gets 25", fields=share)
        await expect(seen.heading("canary is being served 25 % of stable's traffic.")).to_be_visible()
        await confirmed(seen, "Stop", "stable serves everything again", "The test has ended.", verb="Stop the test", fields={"Reason": "enough seen"})
        await expect(seen.heading("The test of canary against stable ended without a decision.")).to_be_visible()
        assert (await product.call("GET", f"tests/{test_id}")).json()["status"] == "completed"

        ramp = {"steps": [10, 40], "gate": "manual", "soak_minutes": 0, "min_requests": 0}
        async with product.test(ramp=ramp, test_duration_minutes=60) as test_id:
            await confirmed(seen, "Approve next step", "The gate of step 1 of 2 opens: from 10", "The step is approved.", verb="Approve")
            await expect(seen.heading("canary is being served 40 % of stable's traffic.")).to_be_visible()
            await seen.button("Roll back").click()
            await expect(dialog).to_contain_text("canary gets nothing more: its 40")
            await product.call("POST", "stop", json={"test_id": test_id})  # somebody else is faster
            await dialog.get_by_role("button", name="Roll back").click()
            await expect(dialog.get_by_role("alert")).to_contain_text(f"test '{test_id}' is not running")
            await dialog.get_by_role("button", name="Cancel").click()
        async with started(product):
            await confirmed(seen, "Roll back", "canary gets nothing more: its 50", "canary is out: stable serves everything.", fields={"Reason": "looks odd"})
            await expect(seen.heading("canary was rolled back: stable serves everything again.")).to_be_visible()
            await expect(seen.page.locator(".answer", has_text="Why was it rolled back?")).to_contain_text("Looks odd.")


async def test_the_page_outlives_a_router(product: Product, chromium: Browser) -> None:
    async with started(product), looking(chromium, product) as seen:
        await expect(seen.page.get_by_text("Live", exact=True)).to_be_visible()
        await seen.page.evaluate("window.untouched = true")
        product.system.signal("router", signal.SIGKILL)
        banner = seen.page.locator("#banner")
        await expect(banner).to_contain_text("What you see is as of")
        await expect(seen.page.get_by_text("Offline", exact=True)).to_be_visible()
        assert await seen.violations() == []
        async with seen.page.expect_response(lambda answer: "/history?" in answer.url and answer.ok, timeout=WAIT_MS):  # what it may have missed
            await expect(banner).to_be_empty()
        await expect(seen.page.get_by_text("Live", exact=True)).to_be_visible()
        await expect(seen.heading("canary is being served 50 % of stable's traffic.")).to_be_visible()
        assert await seen.page.evaluate("window.untouched"), "it was loaded again"
    await eventually(product.system.ready, 60, 0.1)


async def test_names_are_text_whatever_is_in_them(product: Product, chromium: Browser) -> None:
    async with started(product, model_a=UNICODE, model_b="canary", tags={"note": "<img src=x onerror=alert(1)>"}), looking(chromium, product) as seen:
        await expect(seen.heading(f"canary is being served 50 % of {UNICODE}'s traffic.")).to_be_visible()
        await expect(seen.page.get_by_role("row", name=UNICODE).last).to_contain_text("A of the test of canary")


async def test_a_key_that_is_revoked_ends_the_page_at_once(product: Product, chromium: Browser) -> None:
    made = (await product.call("POST", "keys", json={"name": "looker", "role": "operator"})).json()
    async with started(product), tab(chromium, product.system.url) as seen:
        await seen.sign_in(made["key"])
        await seen.button("Stop").click()  # even while a question is open
        assert (await product.call("POST", "keys/looker/revoke")).status_code == 200
        await expect(seen.page.get_by_role("alert")).to_contain_text("This key is not good any more")
        await expect(seen.heading("Sign in to Cypria")).to_be_visible()
        assert await seen.page.evaluate("sessionStorage.length") == 0


async def picture(product: Product) -> dict[str, Any]:
    """How everything stands, as the page gets it."""
    headers = {"Authorization": f"Bearer {KEYS['viewer']}"}
    async with product.system.client.stream("GET", "/v1/ab-testing/events?live=true", headers=headers) as reply:
        async for line in reply.aiter_lines():
            if line.startswith('data: {"at_ms"'):
                return dict(json.loads(line.removeprefix("data: ")))
    raise AssertionError("no picture")


ONE_PICTURE = """
const asked = window.fetch;
window.fetch = (address, options) => {
  if (!String(address).includes("/events?live")) return asked(address, options);
  const write = (stream, text) => stream.enqueue(new TextEncoder().encode(text));
  const body = new ReadableStream({ start(stream) {
    write(stream, `event: live\\ndata: ${PICTURE}\\n\\n`);
    setInterval(() => write(stream, ": keep-alive\\n\\n"), 250);
  } });
  return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
};
"""


async def test_names_of_any_kind_fit_and_what_stands_still_is_said_to(product: Product, chromium: Browser) -> None:
    names = {"model_a": "L" * 300, "model_b": "نموذج \u202e<b>جديد</b>"}
    async with started(product):
        now = await picture(product)
        (test,) = now["tests"]
        told = [one.replace(test["model_a"], names["model_a"]).replace(test["model_b"], names["model_b"]) for one in (test["headline"], test["subline"])]
        shown = {**test, **names, "headline": told[0], "subline": told[1]}
        others = [{**shown, "test_id": f"other-{number}"} for number in range(20)]
        for tests in ([shown], [shown, *others]):
            now = {**now, "tests": tests, "models": [{**model, "name": names["model_a"] + model["name"]} for model in now["models"]]}
            script = f"const PICTURE = {json.dumps(json.dumps(now))};{ONE_PICTURE}"
            async with tab(chromium, product.system.url, viewport={"width": 360, "height": 780}) as seen:
                await seen.page.add_init_script(script)
                await seen.page.clock.install()
                await seen.sign_in(KEYS["operator"])
                await expect(seen.page.locator(".split")).to_have_count(len(tests))
                await expect(seen.page.locator(".test .headline").first).to_contain_text("نموذج \ufffd<b>جديد</b> is being served")
                assert await seen.fits()
                await seen.page.set_viewport_size({"width": 1280, "height": 900})
                assert await seen.fits()
                await expect(seen.page.get_by_text("Live", exact=True)).to_be_visible()
                await seen.page.clock.fast_forward(16_000)
                await expect(seen.page.locator("#banner")).to_contain_text("The server says nothing new. What you see is as of")
                await expect(seen.page.get_by_text("Old", exact=True)).to_be_visible()


FETCHED = """async () => {
  const { Fetched } = await import("./dashboard/static/fetched.js");
  const { ApiError } = await import("./dashboard/static/api.js");
  const asked = [];  // questions that wait for their answer
  const api = { json: (path) => new Promise((good, bad) => asked.push({ path, good, bad })) };
  const answer = async (what, found, error) => {
    const at = asked.findIndex(({ path }) => path.includes(what));
    const [one] = asked.splice(at, 1);
    if (error) one.bad(error); else one.good(found);
    await new Promise((next) => setTimeout(next));
  };
  const refused = [];
  const fetched = new Fetched(api, { live: () => null, away: () => false, changed: () => {}, refused: (error) => refused.push(error.status) });
  const summary = (text, more = {}) => ({ live: true, notes: [], reading: null, timeline: [text], ...more });
  const found = {};
  fetched.follow("t1");
  found.asked = asked.map(({ path }) => path);
  await answer("/series", { state: "complete" });
  fetched.loadSummary("t1");
  const older = asked.shift();
  await answer("/summary", summary("new"));
  older.good(summary("old"));
  await new Promise((next) => setTimeout(next));
  found.newest = fetched.view("t1").summary.timeline;
  fetched.loadSummary("t1");
  await answer("/summary", summary("lost", { notes: ["time line: monitor is not there"], subline: "later" }));
  found.kept = [fetched.view("t1").summary.timeline, fetched.view("t1").summary.subline];
  fetched.loadSummary("t1");
  await answer("/summary", null, new ApiError(429, "slower", { retryAfter: 1 }));
  found.patient = [fetched.view("t1").summaryError, fetched.pending.has("again t1")];
  fetched.loadHistory();
  await answer("/history", { tests: [1], total_tests: 1, why: {} });
  fetched.loadHistory();
  await answer("/history", null, new ApiError(503, "metrics is not there"));
  found.history = [fetched.history.tests, fetched.historyError.message];
  for (let number = 0; number < 200; number += 1) fetched.moreHistory();
  found.most = asked.at(-1).path;
  for (let number = 0; number < 50; number += 1) fetched.view(`other ${number}`);
  found.held = [fetched.views.size, fetched.views.has("t1")];
  asked.length = 0;
  fetched.loadSummary("t1");
  fetched.stop();
  await answer("/summary", null, new ApiError(401, "whose key?"));  // of a session that is over
  found.refused = refused;
  return found;
}"""


async def test_an_old_answer_takes_no_place_and_a_page_that_is_open_for_long_holds_little(product: Product, chromium: Browser) -> None:
    async with tab(chromium, product.system.url) as seen:
        await seen.page.goto(f"{seen.url}/dashboard")
        found = await seen.page.evaluate(FETCHED)
    assert found == {
        "asked": ["/tests/t1/summary", "/tests/t1/series?span=whole"],
        "newest": ["new"], "kept": [["new"], "later"], "patient": [None, True],
        "history": [[1], "metrics is not there"], "most": "/history?limit=1000&words=true",
        "held": [6, True], "refused": [],
    }  # fmt: skip
