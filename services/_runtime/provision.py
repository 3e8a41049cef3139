"""Makes or updates streams and buckets as `schemas.streams` declares them; idempotent."""

from collections.abc import Collection
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, StorageType, StreamConfig
from nats.js.errors import BucketNotFoundError, NotFoundError

from schemas import streams
from services._runtime.reader import LIFE, life_of


async def provision_bus(js: JetStreamContext, replicas: int, retention_days: int) -> list[str]:
    """Create what is missing and bring what exists to its declaration; returns what was done, in words."""
    done = []
    for stream in streams.STREAMS:
        max_age = min(stream.max_age_s, retention_days * streams.DAY)
        config = StreamConfig(
            name=stream.name,
            subjects=list(stream.subjects),
            max_age=max_age,
            max_bytes=stream.max_bytes,
            duplicate_window=stream.duplicate_window_s,
            storage=StorageType.FILE,
            num_replicas=replicas,
            allow_direct=True,
        )
        done.append(await _stream(js, config))
    return done + [await _bucket(js, bucket, replicas, retention_days) for bucket in streams.BUCKETS]


async def missing_streams(js: JetStreamContext, names: Collection[str]) -> list[str]:
    """Those of the named streams that the server does not have."""
    missing = []
    for name in sorted(names):
        try:
            await js.stream_info(name)
        except NotFoundError:
            missing.append(name)
    return missing


async def _stream(js: JetStreamContext, config: StreamConfig) -> str:
    name, done = str(config.name), "up to date"
    try:
        info = await js.stream_info(name)
    except NotFoundError:
        info, done = await js.add_stream(config), "created"
    await js.update_stream(config.evolve(metadata={LIFE: life_of(info)}))
    return f"stream {name}: {done}"


async def _erasable(js: JetStreamContext, bucket: streams.Bucket, replicas: int) -> None:
    """A bucket whose messages may be deleted, which the client's own way of making one refuses to everybody."""
    await js.add_stream(
        StreamConfig(
            name=f"KV_{bucket.name}",
            subjects=[f"$KV.{bucket.name}.>"],
            max_msgs_per_subject=bucket.history,
            max_bytes=bucket.max_bytes,
            discard=DiscardPolicy.NEW,
            allow_rollup_hdrs=True,
            allow_direct=True,
            deny_delete=False,
            num_replicas=replicas,
            storage=StorageType.FILE,
        )
    )


async def _bucket(js: JetStreamContext, bucket: streams.Bucket, replicas: int, retention_days: int) -> str:
    ttl = min(bucket.ttl_s, retention_days * streams.DAY)
    try:
        await js.key_value(bucket.name)
    except (BucketNotFoundError, NotFoundError):
        if bucket.erasable:
            await _erasable(js, bucket, replicas)
            return f"bucket {bucket.name}: created"
        options: dict[str, Any] = {"ttl": ttl} if ttl else {}
        await js.create_key_value(
            KeyValueConfig(
                bucket=bucket.name,
                history=bucket.history,
                max_bytes=bucket.max_bytes,
                replicas=replicas,
                direct=True,
                storage=StorageType.FILE,
                **options,
            )
        )
        return f"bucket {bucket.name}: created"
    config = (await js.stream_info(f"KV_{bucket.name}")).config
    wanted = config.evolve(num_replicas=replicas, **({"max_age": ttl} if ttl else {}))
    if (config.num_replicas, config.max_age) != (wanted.num_replicas, wanted.max_age):
        await js.update_stream(wanted)
    return f"bucket {bucket.name}: up to date"
