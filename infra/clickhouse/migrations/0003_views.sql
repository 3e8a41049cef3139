-- The stable names for Grafana and analysts. Quantiles are those of the log-bin sketch (schemas/sketch.py): a bin's
-- representative, about 1 % from any value in it.

CREATE OR REPLACE VIEW {database}.variant_metrics_1m AS
SELECT
    minute,
    test_id,
    variant,
    requests,
    errors,
    requests - errors - client_cancels AS successful_requests,
    if(requests = 0, NULL, 100 * errors / requests) AS error_rate_percent,
    if(requests = 0, NULL, 100 * (requests - errors - client_cancels) / requests) AS success_rate_percent,
    client_errors,
    client_cancels,
    admitted,
    overdue,
    fallbacks,
    new_units,
    if(latency_n = 0, NULL, latency_us / latency_n / 1000) AS avg_latency_ms,
    if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000 AS latency_p50_ms,
    if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000 AS latency_p95_ms,
    if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000 AS latency_p99_ms,
    if(ttft_n = 0, NULL, ttft_us / ttft_n / 1000) AS avg_ttft_ms,
    if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000 AS ttft_p50_ms,
    if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000 AS ttft_p95_ms,
    if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000 AS ttft_p99_ms,
    if(itl_n = 0, NULL, itl_us / itl_n / 1000) AS avg_inter_token_ms,
    prompt_tokens,
    completion_tokens,
    cached_tokens,
    gpu_us / 1000000 AS gpu_seconds,
    cost_nano / 1000000000 AS cost_dollars
FROM
(
    SELECT
        toStartOfMinute(slot) AS minute,
        test AS test_id,
        variant,
        sum(done) AS requests,
        sumMap(outcomes) AS by_outcome,
        by_outcome['error_before_first_token'] + by_outcome['error_mid_stream'] + by_outcome['timeout'] + by_outcome['rejected'] AS errors,
        by_outcome['client_error'] AS client_errors,
        by_outcome['client_cancel'] AS client_cancels,
        sum(window_cells.admitted) AS admitted,
        sum(window_cells.overdue) AS overdue,
        sum(window_cells.fallback) AS fallbacks,
        sum(units_new_test) AS new_units,
        sum(window_cells.latency_n) AS latency_n,
        toFloat64(sum(window_cells.latency_us)) AS latency_us,
        sumMap(window_cells.latency_bins) AS latency_bins,
        sum(window_cells.ttft_n) AS ttft_n,
        toFloat64(sum(window_cells.ttft_us)) AS ttft_us,
        sumMap(window_cells.ttft_bins) AS ttft_bins,
        sum(window_cells.itl_n) AS itl_n,
        toFloat64(sum(window_cells.itl_us)) AS itl_us,
        sum(window_cells.prompt_tokens) AS prompt_tokens,
        sum(window_cells.completion_tokens) AS completion_tokens,
        sum(window_cells.cached_tokens) AS cached_tokens,
        toFloat64(sum(window_cells.gpu_us)) AS gpu_us,
        toFloat64(sum(window_cells.cost_nano)) AS cost_nano
    FROM {database}.window_cells
    WHERE test != ''
    GROUP BY minute, test, variant
);

CREATE OR REPLACE VIEW {database}.variant_metrics_1h AS
SELECT
    hour,
    test_id,
    variant,
    requests,
    errors,
    requests - errors - client_cancels AS successful_requests,
    if(requests = 0, NULL, 100 * errors / requests) AS error_rate_percent,
    if(requests = 0, NULL, 100 * (requests - errors - client_cancels) / requests) AS success_rate_percent,
    client_errors,
    client_cancels,
    admitted,
    overdue,
    fallbacks,
    new_units,
    if(latency_n = 0, NULL, latency_us / latency_n / 1000) AS avg_latency_ms,
    if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000 AS latency_p50_ms,
    if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000 AS latency_p95_ms,
    if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000 AS latency_p99_ms,
    if(ttft_n = 0, NULL, ttft_us / ttft_n / 1000) AS avg_ttft_ms,
    if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000 AS ttft_p50_ms,
    if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000 AS ttft_p95_ms,
    if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000 AS ttft_p99_ms,
    if(itl_n = 0, NULL, itl_us / itl_n / 1000) AS avg_inter_token_ms,
    prompt_tokens,
    completion_tokens,
    cached_tokens,
    gpu_us / 1000000 AS gpu_seconds,
    cost_nano / 1000000000 AS cost_dollars
FROM
(
    SELECT
        toStartOfHour(slot) AS hour,
        test AS test_id,
        variant,
        sum(done) AS requests,
        sumMap(outcomes) AS by_outcome,
        by_outcome['error_before_first_token'] + by_outcome['error_mid_stream'] + by_outcome['timeout'] + by_outcome['rejected'] AS errors,
        by_outcome['client_error'] AS client_errors,
        by_outcome['client_cancel'] AS client_cancels,
        sum(window_cells.admitted) AS admitted,
        sum(window_cells.overdue) AS overdue,
        sum(window_cells.fallback) AS fallbacks,
        sum(units_new_test) AS new_units,
        sum(window_cells.latency_n) AS latency_n,
        toFloat64(sum(window_cells.latency_us)) AS latency_us,
        sumMap(window_cells.latency_bins) AS latency_bins,
        sum(window_cells.ttft_n) AS ttft_n,
        toFloat64(sum(window_cells.ttft_us)) AS ttft_us,
        sumMap(window_cells.ttft_bins) AS ttft_bins,
        sum(window_cells.itl_n) AS itl_n,
        toFloat64(sum(window_cells.itl_us)) AS itl_us,
        sum(window_cells.prompt_tokens) AS prompt_tokens,
        sum(window_cells.completion_tokens) AS completion_tokens,
        sum(window_cells.cached_tokens) AS cached_tokens,
        toFloat64(sum(window_cells.gpu_us)) AS gpu_us,
        toFloat64(sum(window_cells.cost_nano)) AS cost_nano
    FROM {database}.window_cells
    WHERE test != ''
    GROUP BY hour, test, variant
);

CREATE OR REPLACE VIEW {database}.tests AS
SELECT
    test_id,
    argMax(e.status, (e.version, e.sequence)) AS status,
    argMax(e.model_a, (e.version, e.sequence)) AS model_a,
    argMax(e.model_b, (e.version, e.sequence)) AS model_b,
    argMax(e.share_bp, (e.version, e.sequence)) / 100 AS traffic_split_percent,
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

CREATE OR REPLACE VIEW {database}.alerts AS
SELECT at, level, incident, title, message, test_id, rule, resolved, value, bound, threshold, n, event_id
FROM {database}.alert_events FINAL
WHERE NOT startsWith(event_id, '@');

CREATE OR REPLACE VIEW {database}.audit_log AS
SELECT at, actor, role, action, target, test_id, source, status, outcome, request_id, event_id
FROM {database}.audit_events FINAL
WHERE NOT startsWith(event_id, '@');
