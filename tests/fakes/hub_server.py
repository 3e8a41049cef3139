"""A small hub: the endpoints that fetching a model needs, over plain HTTP on loopback, and ways of failing."""

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """``files`` by path; ``branches`` to commits; ``token``: needed to read it; ``gated``: its terms are not accepted."""

    files: dict[str, bytes]
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str = ""
    gated: bool = False


class FakeHub:
    """Use as an async context manager; ``url`` is what HF_ENDPOINT takes.

    ``cut``: bytes after which the body of a file breaks off, once; ``stall``: bytes after which it waits for ever.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.cut: int | None = None
        self.stall: int | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api/models/{org}/{name}", self._info)
        app.router.add_get("/api/models/{org}/{name}/revision/{revision:.+}", self._info)
        app.router.add_get("/api/models/{org}/{name}/tree/{revision}", self._tree)
        app.router.add_route("*", "/{org}/{name}/resolve/{revision}/{path:.+}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def fetched(self) -> list[str]:
        """Files whose content was asked for."""
        return sorted(path.split("/", 5)[5] for method, path in self.requests if method == "GET" and "/resolve/" in path)

    def _find(self, request: web.Request) -> tuple[Repository, str]:
        self.requests.append((request.method, request.path))
        found = self.repositories.get(f"{request.match_info['org']}/{request.match_info['name']}")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if found is None or (found.token and not given):
            raise _refused(401, "RepoNotFound", "Repository Not Found")
        if found.gated or (found.token and given != found.token):
            raise _refused(403, "GatedRepo", "Access to model is restricted")
        revision = request.match_info.get("revision", "main")
        commit = found.branches.get(revision, revision)
        if commit not in found.branches.values():
            raise _refused(404, "RevisionNotFound", "Invalid rev id")
        return found, commit

    async def _info(self, request: web.Request) -> web.Response:
        found, commit = self._find(request)
        name = f"{request.match_info['org']}/{request.match_info['name']}"
        siblings = [{"rfilename": path} for path in found.files]
        return web.json_response({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False, "downloads": 0, "likes": 0})

    async def _tree(self, request: web.Request) -> web.Response:
        found, _ = self._find(request)
        entries: list[dict[str, Any]] = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest()}
            for path, content in found.files.items()
        ]
        return web.json_response([*entries, {"type": "directory", "path": "original", "oid": "0" * 40}])

    async def _file(self, request: web.Request) -> web.StreamResponse:
        found, commit = self._find(request)
        content = found.files.get(request.match_info["path"])
        if content is None:
            raise _refused(404, "EntryNotFound", "Entry not found")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(content))})
        start, status = 0, 200
        if given := request.headers.get("Range"):
            self.ranges.append(given)
            start, status = int(given.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(content) - start
        await response.prepare(request)
        limit = self.cut if self.cut is not None else self.stall
        if limit is not None and len(content) - start > limit:
            await response.write(content[start : start + limit])
            if self.cut is None:
                await asyncio.Event().wait()
            self.cut = None
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(content[start:])
        return response


def _refused(status: int, code: str, message: str) -> web.HTTPException:
    kinds = {401: web.HTTPUnauthorized, 403: web.HTTPForbidden, 404: web.HTTPNotFound}
    return kinds[status](headers={"X-Error-Code": code, "X-Error-Message": message})
