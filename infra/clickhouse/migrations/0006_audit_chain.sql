-- Audit records as a chain: each row holds the hash of the record before it and its own, over that and all of its
-- columns, so that a row that is changed or removed shows. The row of sequence 0 is the chain's head and the archive's
-- place in the stream: position and hash of the last record taken in; it is inserted with the records and never expires.
-- Rows expire by the broker's time, which rises with the sequence, so that what has expired is always the front.

CREATE TABLE IF NOT EXISTS {database}.audit_chain
(
    stream_created String,
    sequence UInt64,
    position UInt64,
    stored_at DateTime64(3, 'UTC'),
    previous_at DateTime64(3, 'UTC'),
    previous String,
    hash String,
    event_id String,
    at DateTime64(3, 'UTC'),
    actor String,
    role LowCardinality(String),
    action LowCardinality(String),
    target String,
    test_id String,
    source String,
    status UInt16,
    outcome LowCardinality(String),
    request_id String,
    before String,
    after String,
    needs LowCardinality(String),
    changes Bool
)
ENGINE = ReplacingMergeTree(position)
ORDER BY (stream_created, sequence)
TTL toDateTime(stored_at) + toIntervalDay({retention_days}) DELETE WHERE sequence > 0;

-- A record may be in the stream twice, and so in the chain, under one event id: it is shown once. What the table of
-- version 0002 took in, and the stream has not kept, goes on being shown until it expires.

CREATE OR REPLACE VIEW {database}.audit_log AS
SELECT at, actor, role, action, target, test_id, source, status, outcome, request_id, event_id, before, after, needs, changes
FROM
(
    SELECT *
    FROM {database}.audit_chain FINAL
    WHERE sequence > 0 AND event_id != ''
    ORDER BY stream_created, sequence
    LIMIT 1 BY event_id
)
UNION ALL
SELECT at, actor, role, action, target, test_id, source, status, outcome, request_id, event_id, '', '', '', false
FROM {database}.audit_events FINAL
WHERE NOT startsWith(event_id, '@') AND event_id NOT IN (SELECT event_id FROM {database}.audit_chain);
