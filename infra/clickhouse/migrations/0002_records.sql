-- What happened: one row for each event id, whatever number of times it is inserted. The row whose
-- event_id is '@' and the stream's creation time is the archive's position in that stream; it never expires.

CREATE TABLE IF NOT EXISTS {database}.test_events
(
    test_id String,
    event_id String,
    stream_created String,
    sequence UInt64,
    at DateTime64(3, 'UTC'),
    type LowCardinality(String),
    version UInt64,
    status LowCardinality(String),
    model_a String,
    model_b String,
    share_bp UInt16,
    actor String,
    reason String,
    config_hash String,
    result String
)
ENGINE = ReplacingMergeTree(sequence)
ORDER BY (test_id, event_id)
TTL toDateTime(at) + toIntervalDay({retention_days}) DELETE WHERE NOT startsWith(event_id, '@');

CREATE TABLE IF NOT EXISTS {database}.alert_events
(
    event_id String,
    stream_created String,
    sequence UInt64,
    at DateTime64(3, 'UTC'),
    level LowCardinality(String),
    incident String,
    title String,
    message String,
    test_id String,
    rule String,
    resolved Bool,
    value Nullable(Float64),
    bound Nullable(Float64),
    threshold Nullable(Float64),
    n Nullable(UInt64)
)
ENGINE = ReplacingMergeTree(sequence)
ORDER BY event_id
TTL toDateTime(at) + toIntervalDay({retention_days}) DELETE WHERE NOT startsWith(event_id, '@');

CREATE TABLE IF NOT EXISTS {database}.audit_events
(
    event_id String,
    stream_created String,
    sequence UInt64,
    at DateTime64(3, 'UTC'),
    actor String,
    role LowCardinality(String),
    action LowCardinality(String),
    target String,
    test_id String,
    source String,
    status UInt16,
    outcome LowCardinality(String),
    request_id String
)
ENGINE = ReplacingMergeTree(sequence)
ORDER BY event_id
TTL toDateTime(at) + toIntervalDay({retention_days}) DELETE WHERE NOT startsWith(event_id, '@');
