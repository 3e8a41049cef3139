-- The split that an ended test ran at, as its result tells it, and not the 0 that ended it.

CREATE OR REPLACE VIEW {database}.tests AS
SELECT
    test_id,
    argMax(e.status, (e.version, e.sequence)) AS status,
    argMax(e.model_a, (e.version, e.sequence)) AS model_a,
    argMax(e.model_b, (e.version, e.sequence)) AS model_b,
    if(
        JSONHas(result, 'traffic_split_percent'),
        JSONExtractFloat(result, 'traffic_split_percent'),
        argMax(e.share_bp, (e.version, e.sequence)) / 100
    ) AS traffic_split_percent,
    argMax(e.reason, (e.version, e.sequence)) AS reason,
    argMax(e.actor, (e.version, e.sequence)) AS actor,
    argMax(e.config_hash, (e.version, e.sequence)) AS config_hash,
    argMaxIf(e.result, (e.version, e.sequence), e.result != '') AS result,
    JSONExtractString(result, 'decision') AS decision,
    min(e.at) AS first_event_at,
    max(e.at) AS last_event_at,
    max(e.version) AS version
FROM {database}.test_events AS e
WHERE NOT startsWith(e.event_id, '@')
GROUP BY test_id;
