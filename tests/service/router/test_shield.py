"""What browsers are told with every answer, and what nobody is told: traces, files, other people's markup."""

import httpx
import pytest

from services.router.edge.head import MAX_HEADERS
from tests.service.router.rig import HEAD, Rig, bearer, chat, raw

SAID = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def shielded(headers: httpx.Headers, what: str) -> None:
    for name, value in SAID.items():
        assert headers.get_list(name) == [value], (what, name)
    (policy,) = headers.get_list("content-security-policy")
    assert "frame-ancestors 'none'" in policy, what
    assert "default-src 'none'" in policy, what
    assert "script-src 'self' 'unsafe" not in policy, what


async def test_every_answer_that_a_browser_may_show_is_shielded(rig: Rig) -> None:
    await rig.worker("stable")
    test_id = await rig.start_test()
    for method, path, role in (
        ("GET", "/", None), ("GET", "/nothing<script>", None), ("GET", "/health", None), ("HEAD", "/health", None),
        ("POST", "/health", None), ("GET", "/ready", None), ("GET", "/metrics", None), ("GET", "/docs", None),
        ("GET", "/docs/assets/swagger-ui.css", None), ("GET", "/docs/assets/nothing", None), ("GET", "/openapi.json", None),
        ("GET", "/asyncapi.yaml", None), ("GET", "/v1/models", None), ("GET", "/v1/models", "client"),
        ("GET", "/v1/chat/completions", None), ("POST", "/v1/chat/completions", None), ("PUT", "/v1/ab-testing/status", None),
        ("GET", "/v1/ab-testing/status", None), ("GET", "/v1/ab-testing/status", "admin"), ("GET", "/v1/ab-testing/keys", "admin"),
        ("GET", f"/v1/ab-testing/status?test_id={test_id}", "viewer"), ("GET", "/v1/ab-testing/status?x=<script>", "admin"),
    ):  # fmt: skip
        headers = bearer(role) if role else {"Authorization": ""}
        reply = await rig.client.request(method, path, headers=headers)
        shielded(reply.headers, f"{method} {path}")
    for request in (HEAD + b"Content-Length: x\r\n\r\n", HEAD + b"X: 1\r\n" * MAX_HEADERS + b"\r\n"):
        async with raw(rig) as client:
            await client.send(request)
            status, found, _ = await client.answer()
            assert status in {400, 431}
            shielded(httpx.Headers(found), str(status))


async def test_the_docs_page_runs_its_own_scripts_only(rig: Rig) -> None:
    page = await rig.client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert policy.count("'sha256-") == page.text.count("<script>") == 1
    for foreign in ("?url=https://evil.example/x.json", "?configUrl=//evil.example"):
        assert (await rig.client.get(f"/docs{foreign}")).content == page.content


@pytest.mark.parametrize(
    "path",
    [b"../../../../../../etc/passwd", b"%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", b"..%2f..%2f..%2fetc%2fpasswd",
     b"..%5c..%5cetc", b"/etc/passwd", b"%00", b"a%00.css", b"\xff\xfe", b"a" * 5000, b".", b"%2e%2e"],
)  # fmt: skip
async def test_no_path_leads_out_of_the_docs_own_files(rig: Rig, path: bytes) -> None:
    async with raw(rig) as client:
        await client.send(b"GET /docs/assets/" + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        status, _, content = await client.answer()
        assert status in {400, 404}
        assert "root:" not in str(content)
    assert (await rig.client.get("/health")).status_code == 200


async def test_what_goes_wrong_inside_is_told_without_a_trace(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("SECRETMARK at /srv/cypria")

    assert rig.router.control is not None
    monkeypatch.setitem(rig.router.control.dispatcher._handlers, "status", broken)
    monkeypatch.setattr(rig.router.control.dispatcher, "refuse", broken)
    await rig.worker("stable")
    inside = await rig.client.get("/v1/ab-testing/status", headers=bearer("admin"))
    outside = await rig.client.post("/v1/ab-testing/stop", headers={**bearer("admin"), "Content-Encoding": "gzip"}, content=b"x")
    monkeypatch.setattr(rig.path.gate, "models", broken)
    edge = await rig.client.get("/v1/models")
    for reply in (inside, outside, edge):
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        shielded(reply.headers, "500")
        for told in ("SECRETMARK", "Traceback", ".py", "RuntimeError"):
            assert told not in reply.text, reply.text
    assert (await rig.client.post("/v1/chat/completions", json=chat())).status_code == 200
