-- A page of audit_log reads what its time and event ids can be in, not all records: times rise with the order of the
-- table, so few parts of it hold those of a span. What a record's second row in the chain shows is the same in every
-- column, and so is shown once.

ALTER TABLE {database}.audit_chain ADD INDEX IF NOT EXISTS at_span at TYPE minmax GRANULARITY 1;

ALTER TABLE {database}.audit_chain ADD INDEX IF NOT EXISTS event_ids event_id TYPE bloom_filter GRANULARITY 1;

ALTER TABLE {database}.audit_chain MATERIALIZE INDEX at_span;

ALTER TABLE {database}.audit_chain MATERIALIZE INDEX event_ids;

CREATE OR REPLACE VIEW {database}.audit_log AS
SELECT DISTINCT at, actor, role, action, target, test_id, source, status, outcome, request_id, event_id, before, after, needs, changes
FROM {database}.audit_chain
WHERE sequence > 0 AND event_id != ''
UNION ALL
SELECT at, actor, role, action, target, test_id, source, status, outcome, request_id, event_id, '', '', '', false
FROM {database}.audit_events FINAL
WHERE NOT startsWith(event_id, '@')
    AND event_id NOT IN (SELECT event_id FROM {database}.audit_chain WHERE event_id IN (SELECT event_id FROM {database}.audit_events));
