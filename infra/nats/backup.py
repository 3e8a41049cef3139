"""Copies the streams and buckets of a bus into a folder, and back: `python -m infra.nats.backup save|restore FOLDER`.

For servers of your own (`nats.servers`), as the user `provision`. Nobody has to stop while it saves: what is copied
later may be newer, so whatever holds a position is copied before what the position is in, and events before what is
told of them. What is restored then knows too little at most, and catches up. Each stream is a folder with what the
server says of it (`backup.json`) and its files (`stream.tar.s2`), as the server hands them out.
"""

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NoAnswerError

from infra.nats.users import PROVISION
from schemas import streams
from services._runtime.bus import Bus
from services._runtime.data_dir import StartError
from services._runtime.server import EXIT_CONFIG, load_or_exit
from services._runtime.settings_model import Settings
from services._runtime.up import connect

ORDER = (
    *(f"KV_{bucket.name}" for bucket in streams.BUCKETS),
    *(stream.name for stream in (streams.EVENTS, streams.ALERTS, streams.INTEGRATIONS, streams.DLQ, streams.AUDIT)),
    # windows hold how far facts were read
    *(stream.name for stream in (streams.WINDOWS, streams.METRICS)),
)
CHUNK_BYTES = 256 << 10
PATIENCE_S = 60.0
"""For one answer of the server: it checks a stream's blocks before it sends the first one."""
_ABOUT, _CONTENT = "backup.json", "stream.tar.s2"


class BackupError(Exception):
    """Why nothing, or not everything, was copied, and what to do."""


async def save(nc: Client, folder: Path) -> list[str]:
    """Copy every stream into ``folder``, which is made; what was copied, in words.

    A copy that was cut off has another name, FOLDER.part. Raises BackupError, and NatsError where the server does not
    answer.
    """
    part = _begun(folder)
    told = [await _save_stream(nc, name, part / name) for name in ORDER]
    part.rename(folder)
    return told


async def restore(nc: Client, folder: Path, replicas: int) -> list[str]:
    """Make every stream of a copy on a server that has none of them; what was made, in words.

    Raises BackupError, and NatsError where the server does not answer.
    """
    lacking = [name for name in ORDER if not (folder / name / _ABOUT).is_file()]
    if lacking:
        raise BackupError(f"{folder} is no whole copy: it lacks {', '.join(lacking)}")
    there = set((await _ask(nc, "$JS.API.STREAM.NAMES", {}))["streams"] or ()) & set(ORDER)
    if there:
        raise BackupError(
            f"the server has {', '.join(sorted(there))} already: stop it, move its store_dir away and start it again"
        )
    return [await _restore_stream(nc, name, folder / name, replicas) for name in ORDER]


def _begun(folder: Path) -> Path:
    if folder.exists():
        raise BackupError(f"{folder} is there already: name a new folder")
    part = folder.with_name(f"{folder.name}.part")
    try:
        part.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise BackupError(f"{part} is what is left of a copy that was cut off: remove it") from None
    for name in ORDER:
        (part / name).mkdir(mode=0o700)
    return part


async def _save_stream(nc: Client, name: str, folder: Path) -> str:
    inbox = nc.new_inbox()
    chunks = await nc.subscribe(inbox)
    # jsck has the server check every block first: a copy of damaged files is none
    order = {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES, "jsck": True}
    about = await _ask(nc, f"$JS.API.STREAM.SNAPSHOT.{name}", order)
    with os.fdopen(os.open(folder / _CONTENT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while (chunk := await chunks.next_msg(timeout=PATIENCE_S)).data:
            file.write(chunk.data)
            if chunk.reply:  # the server waits for a word now and then
                await nc.publish(chunk.reply)
        file.flush()
        os.fsync(file.fileno())
    await chunks.unsubscribe()
    said = dict(chunk.headers or {})
    if said.get("Status", "204") != "204":
        raise BackupError(f"{name}: the server gave up: {said}")
    told = {"config": about["config"], "state": about["state"]}
    with os.fdopen(os.open(folder / _ABOUT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(told, file, indent=1)
    return f"{name}: {about['state']['messages']} messages"


async def _restore_stream(nc: Client, name: str, folder: Path, replicas: int) -> str:
    about = json.loads((folder / _ABOUT).read_text())
    about["config"]["num_replicas"] = replicas
    place = (await _ask(nc, f"$JS.API.STREAM.RESTORE.{name}", about))["deliver_subject"]
    with (folder / _CONTENT).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            await nc.request(place, chunk, timeout=PATIENCE_S)
    made = _answer(name, (await nc.request(place, b"", timeout=PATIENCE_S)).data)
    if made["state"]["messages"] != about["state"]["messages"]:
        raise BackupError(f"{name} has {made['state']['messages']} of {about['state']['messages']} messages")
    return f"{name}: {made['state']['messages']} messages"


async def _ask(nc: Client, subject: str, order: dict[str, Any]) -> dict[str, Any]:
    return _answer(subject, (await nc.request(subject, json.dumps(order).encode(), timeout=PATIENCE_S)).data)


def _answer(what: str, data: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(data)
    if error := answer.get("error"):
        raise BackupError(f"{what}: {error.get('description', error)}")
    return answer


async def _carry_out(verb: str, folder: Path, settings: Settings) -> list[str]:
    bus = Bus(settings, PROVISION)
    try:
        await connect(bus)
        return await (save(bus.nc, folder) if verb == "save" else restore(bus.nc, folder, settings.nats.replicas))
    finally:
        await bus.close()


def main(arguments: list[str]) -> int:
    """Save or restore; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.nats.backup", description="Copies the bus, and back.")
    parser.add_argument("verb", choices=("save", "restore"))
    parser.add_argument("folder", type=Path, help="save makes it")
    parser.add_argument("--config", type=Path, help="cypria.yaml; else variables alone, as for `cypria provision`")
    chosen = parser.parse_args(arguments)
    settings = load_or_exit(chosen.config)
    if not settings.nats.servers:
        sys.stderr.write("nats.servers is not set: an embedded server is in the data dir, stop it and copy that\n")
        return EXIT_CONFIG
    try:
        for line in asyncio.run(_carry_out(chosen.verb, chosen.folder, settings)):
            sys.stdout.write(f"{line}\n")
    except NoAnswerError:
        sys.stderr.write(
            "the server does not answer: see its log; if it refuses $JS.SNAPSHOT to the user provision, render its "
            "configuration anew (infra/nats/README.md)\n"
        )
        return 1
    except (BackupError, StartError, NatsError, OSError) as exc:
        sys.stderr.write(f"{str(exc) or repr(exc)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
