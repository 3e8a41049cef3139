"""A worker's side of the registry without engines: it follows the entries as a real one does, in no time, and says so.

A spec with ``engine_args: {"broken": REASON}`` does not load. ``hold`` keeps it from acting until `release`.
"""

import asyncio
import json
from typing import Any

from nats.aio.msg import Msg

from schemas import streams, subjects
from schemas.v1.inference import Heartbeat, encode
from schemas.v1.models import ModelEntry, ModelNeed, ModelPlan, ModelQuery
from services._runtime.bus import Bus
from services._runtime.kv import KvMirror

BEAT_S = 0.05


class ModelWorker:
    """``file`` is its own configuration: entries by name. ``need`` says what each model needs, in bytes."""

    def __init__(
        self, bus: Bus, worker: str, file: dict[str, dict[str, Any]] | None = None, *, pool: str = "default",
        max_models: int = 8, limit: int = 1000,
    ) -> None:  # fmt: skip
        self.bus = bus
        self.worker = worker
        self.file = file or {}
        self.pool = pool
        self.max_models = max_models
        self.limit = limit
        self.need = 10
        self.idle_s = 0.0
        self.idle: dict[str, float] = {}
        self.running: dict[str, int] = {}
        self.beats: dict[str, Heartbeat] = {}
        self.specs: dict[str, Any] = {}
        self.loads: list[tuple[str, int]] = []
        self.asked: list[dict[str, Any]] = []
        self._free = asyncio.Event()
        self._free.set()
        self._entries: dict[str, ModelEntry | None] = {}
        self._dirty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> "ModelWorker":
        for name, spec in self.file.items():
            self._say(name, "ready" if spec.get("preload", True) else "registered", engine=spec["engine"])
            self.specs[name] = None
        self._mirror = KvMirror(self.bus, streams.MODELS.name, self._took)
        await self._mirror.start()
        await self.bus.nc.subscribe(subjects.models("plan"), cb=self._plan)
        await self.bus.nc.flush()
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._follow())]
        return self

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._mirror.stop()

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def use(self, name: str) -> None:
        """A request for the model came now."""
        self.idle[name] = 0.0

    def _took(self, key: str, value: bytes | None, _revision: int) -> None:
        entry = ModelEntry.model_validate_json(value) if value else None
        self._entries[subjects.untoken(key)] = entry
        self._dirty.set()

    async def _follow(self) -> None:
        while True:
            await self._dirty.wait()
            await self._free.wait()
            self._dirty.clear()
            for name, entry in list(self._entries.items()):
                if entry is not None and entry.stage != "claimed":
                    self._act(name, entry)

    def _act(self, name: str, entry: ModelEntry) -> None:
        beat = self.beats.get(name)
        if beat is not None and beat.generation >= entry.generation:
            return
        if entry.desired == "unloaded":
            if beat is not None:
                self._say(name, "unloaded", entry.generation)
            return
        if entry.desired == "removed":
            if name in self.file:
                self.specs[name] = None
                self._say(name, "ready" if self.file[name].get("preload", True) else "registered", entry.generation)
            else:
                self.beats.pop(name, None)
            return
        if entry.spec is None and name not in self.file:
            return
        spec = entry.spec or self.file[name]
        if spec.get("pool") not in {None, self.pool}:
            return
        serves = beat is not None and beat.state == "ready"
        if serves and self.specs.get(name, 0) == entry.spec and not entry.reload:
            self._say(name, "ready", entry.generation)
            return
        if entry.strategy == "rolling" and serves and self.worker not in entry.turn:
            return
        self.loads.append((name, entry.generation))
        broken = spec.get("engine_args", {}).get("broken")
        if broken and serves and beat is not None:
            beat.next_state, beat.next_generation, beat.next_reason = "failed", entry.generation, broken
            return
        if broken:
            self._say(name, "failed", entry.generation, reason=broken)
            return
        self.specs[name] = entry.spec
        self._say(name, "ready", entry.generation, engine=spec["engine"])

    def _say(self, name: str, state: str, generation: int = 0, *, reason: str = "", engine: str = "") -> None:
        before = self.beats.get(name)
        self.beats[name] = Heartbeat(
            name, self.worker, state, digest=f"sha256:{generation}", engine=engine or (before.engine if before else "vllm"),
            capacity=8, free=8, reason=reason, pool=self.pool, generation=generation, memory_bytes=self.need,
        )  # fmt: skip

    async def _beat(self) -> None:
        while True:
            for name, beat in list(self.beats.items()):
                beat.running = self.running.get(name, 0)
                beat.idle_s = -1.0 if beat.running else self.idle.get(name, self.idle_s)
                await self.bus.nc.publish(subjects.heartbeat(name, self.worker), encode(beat))
            await asyncio.sleep(BEAT_S)

    async def _plan(self, msg: Msg) -> None:
        query = ModelQuery.model_validate_json(msg.data)
        self.asked += query.specs
        loaded = [name for name, beat in self.beats.items() if beat.state == "ready" and beat.engine != "openai"]
        needs = []
        for spec in query.specs:
            need = int(spec.get("engine_args", {}).get("bytes", self.need))
            left = self.limit - sum(self.need for _ in loaded)
            fits = need <= left and (len(loaded) < self.max_models or spec["name"] in loaded)
            message = "" if fits else f"model '{spec['name']}' needs {need} of {left} left, {len(loaded)} are loaded"
            needs.append(ModelNeed(model=spec["name"], fits=fits, message=message, total_bytes=need, available_bytes=left))
        plan = ModelPlan(
            worker=self.worker, pool=self.pool, loaded_models=len(loaded), max_models=self.max_models,
            fits=all(need.fits for need in needs), needs=needs,
        )  # fmt: skip
        await self.bus.nc.publish(msg.reply, json.dumps(plan.model_dump(mode="json")).encode())
