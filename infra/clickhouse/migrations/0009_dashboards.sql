-- What dashboards draw. The views that take parameters, `variant_series(since = ..., until = ..., step = ...)` and the like, sum up
-- in steps of so many seconds, so that a quantile is one of all requests of a step and not a mean of quantiles, and a
-- quiet minute is shown as part of a longer step. Groups of fewer than privacy.min_group_size requests have counts
-- only, as in 0007.

CREATE OR REPLACE VIEW {database}.variant_series AS
SELECT
    at,
    test_id,
    variant,
    share_bp / 100 AS share_percent,
    requests,
    requests / seconds AS requests_per_second,
    errors,
    requests - errors - client_cancels AS successful_requests,
    client_errors,
    client_cancels,
    admitted,
    overdue,
    fallbacks,
    new_units,
    if(requests < min_group_size, NULL, 100 * errors / requests) AS error_rate_percent,
    if(requests < min_group_size, NULL, if(latency_n = 0, NULL, latency_us / latency_n / 1000)) AS avg_latency_ms,
    if(requests < min_group_size, NULL, if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000) AS latency_p50_ms,
    if(requests < min_group_size, NULL, if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000) AS latency_p95_ms,
    if(requests < min_group_size, NULL, if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000) AS latency_p99_ms,
    if(requests < min_group_size, NULL, if(ttft_n = 0, NULL, ttft_us / ttft_n / 1000)) AS avg_ttft_ms,
    if(requests < min_group_size, NULL, if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000) AS ttft_p50_ms,
    if(requests < min_group_size, NULL, if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000) AS ttft_p95_ms,
    if(requests < min_group_size, NULL, if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000) AS ttft_p99_ms,
    if(requests < min_group_size, NULL, if(itl_n = 0, NULL, itl_us / itl_n / 1000)) AS avg_inter_token_ms,
    if(requests < min_group_size, NULL, if(empty(itl_bins), NULL, 2 * pow(1.02, mapKeys(itl_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(itl_bins)) - 1), arrayCumSum(mapValues(itl_bins)))]) / 2.02) / 1000) AS inter_token_p50_ms,
    if(requests < min_group_size, NULL, if(empty(itl_bins), NULL, 2 * pow(1.02, mapKeys(itl_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(itl_bins)) - 1), arrayCumSum(mapValues(itl_bins)))]) / 2.02) / 1000) AS inter_token_p95_ms,
    if(requests < min_group_size, NULL, if(empty(itl_bins), NULL, 2 * pow(1.02, mapKeys(itl_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(itl_bins)) - 1), arrayCumSum(mapValues(itl_bins)))]) / 2.02) / 1000) AS inter_token_p99_ms,
    if(requests < min_group_size, NULL, sums.prompt_tokens) AS prompt_tokens,
    if(requests < min_group_size, NULL, sums.completion_tokens) AS completion_tokens,
    if(requests < min_group_size, NULL, sums.cached_tokens) AS cached_tokens,
    if(requests < min_group_size, NULL, sums.completion_tokens / seconds) AS completion_tokens_per_second,
    if(requests < min_group_size, NULL, gpu_us / 1000000) AS gpu_seconds,
    if(requests < min_group_size, NULL, cost_nano / 1000000000) AS cost_dollars,
    if(requests < min_group_size, NULL, cost_nano / 1000000000 / requests) AS cost_per_request_dollars,
    if(requests < min_group_size, NULL, if(gpu_us = 0, NULL, sums.completion_tokens * 1000000 / gpu_us)) AS tokens_per_gpu_second,
    thumbs_up,
    thumbs_down,
    if(requests < min_group_size, NULL, if(thumbs_up + thumbs_down = 0, NULL, 100 * thumbs_up / (thumbs_up + thumbs_down))) AS thumbs_up_percent,
    scores,
    if(requests < min_group_size, NULL, if(scores = 0, NULL, score_micro / scores / 1000000)) AS satisfaction_score,
    requests < min_group_size AS withheld
FROM
(
    SELECT
        toStartOfInterval(slot, toIntervalSecond(greatest({step:UInt32}, 10))) AS at,
        test AS test_id,
        variant,
        max(window_cells.share_bp) AS share_bp,
        greatest({step:UInt32}, 10) AS seconds,
        {min_group_size} AS min_group_size,
        sum(done) AS requests,
        sum(outcomes['error_before_first_token'] + outcomes['error_mid_stream'] + outcomes['timeout'] + outcomes['rejected']) AS errors,
        sum(outcomes['client_error']) AS client_errors,
        sum(outcomes['client_cancel']) AS client_cancels,
        sum(window_cells.admitted) AS admitted,
        sum(window_cells.overdue) AS overdue,
        sum(fallback) AS fallbacks,
        sum(units_new_test) AS new_units,
        sum(window_cells.latency_n) AS latency_n,
        toFloat64(sum(window_cells.latency_us)) AS latency_us,
        sumMap(window_cells.latency_bins) AS latency_bins,
        sum(window_cells.ttft_n) AS ttft_n,
        toFloat64(sum(window_cells.ttft_us)) AS ttft_us,
        sumMap(window_cells.ttft_bins) AS ttft_bins,
        sum(window_cells.itl_n) AS itl_n,
        toFloat64(sum(window_cells.itl_us)) AS itl_us,
        sumMap(window_cells.itl_bins) AS itl_bins,
        toFloat64(sum(window_cells.prompt_tokens)) AS prompt_tokens,
        toFloat64(sum(window_cells.completion_tokens)) AS completion_tokens,
        toFloat64(sum(window_cells.cached_tokens)) AS cached_tokens,
        toFloat64(sum(window_cells.gpu_us)) AS gpu_us,
        toFloat64(sum(window_cells.cost_nano)) AS cost_nano,
        sum(feedback['thumbs_up']) AS thumbs_up,
        sum(feedback['thumbs_down']) AS thumbs_down,
        sum(feedback['score_n']) AS scores,
        sum(feedback['score_micro']) AS score_micro
    FROM {database}.window_cells
    WHERE test != '' AND slot >= {since:DateTime} AND slot <= {until:DateTime}
    GROUP BY at, test, variant
) AS sums;

CREATE OR REPLACE VIEW {database}.variant_totals AS
SELECT
    test_id,
    variant,
    first_at,
    last_at,
    requests,
    errors,
    requests - errors - client_cancels AS successful_requests,
    client_errors,
    client_cancels,
    admitted,
    overdue,
    fallbacks,
    new_units,
    if(requests < min_group_size, NULL, 100 * errors / requests) AS error_rate_percent,
    if(requests < min_group_size, NULL, if(latency_n = 0, NULL, latency_us / latency_n / 1000)) AS avg_latency_ms,
    if(requests < min_group_size, NULL, if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000) AS latency_p50_ms,
    if(requests < min_group_size, NULL, if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000) AS latency_p95_ms,
    if(requests < min_group_size, NULL, if(empty(latency_bins), NULL, 2 * pow(1.02, mapKeys(latency_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(latency_bins)) - 1), arrayCumSum(mapValues(latency_bins)))]) / 2.02) / 1000) AS latency_p99_ms,
    if(requests < min_group_size, NULL, if(ttft_n = 0, NULL, ttft_us / ttft_n / 1000)) AS avg_ttft_ms,
    if(requests < min_group_size, NULL, if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000) AS ttft_p50_ms,
    if(requests < min_group_size, NULL, if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000) AS ttft_p95_ms,
    if(requests < min_group_size, NULL, if(empty(ttft_bins), NULL, 2 * pow(1.02, mapKeys(ttft_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(ttft_bins)) - 1), arrayCumSum(mapValues(ttft_bins)))]) / 2.02) / 1000) AS ttft_p99_ms,
    if(requests < min_group_size, NULL, if(itl_n = 0, NULL, itl_us / itl_n / 1000)) AS avg_inter_token_ms,
    if(requests < min_group_size, NULL, if(empty(itl_bins), NULL, 2 * pow(1.02, mapKeys(itl_bins)[arrayFirstIndex(c -> c > 0.5 * (arraySum(mapValues(itl_bins)) - 1), arrayCumSum(mapValues(itl_bins)))]) / 2.02) / 1000) AS inter_token_p50_ms,
    if(requests < min_group_size, NULL, if(empty(itl_bins), NULL, 2 * pow(1.02, mapKeys(itl_bins)[arrayFirstIndex(c -> c > 0.95 * (arraySum(mapValues(itl_bins)) - 1), arrayCumSum(mapValues(itl_bins)))]) / 2.02) / 1000) AS inter_token_p95_ms,
    if(requests < min_group_size, NULL, if(empty(itl_bins), NULL, 2 * pow(1.02, mapKeys(itl_bins)[arrayFirstIndex(c -> c > 0.99 * (arraySum(mapValues(itl_bins)) - 1), arrayCumSum(mapValues(itl_bins)))]) / 2.02) / 1000) AS inter_token_p99_ms,
    if(requests < min_group_size, NULL, sums.prompt_tokens) AS prompt_tokens,
    if(requests < min_group_size, NULL, sums.completion_tokens) AS completion_tokens,
    if(requests < min_group_size, NULL, sums.cached_tokens) AS cached_tokens,
    if(requests < min_group_size, NULL, gpu_us / 1000000) AS gpu_seconds,
    if(requests < min_group_size, NULL, cost_nano / 1000000000) AS cost_dollars,
    if(requests < min_group_size, NULL, cost_nano / 1000000000 / requests) AS cost_per_request_dollars,
    if(requests < min_group_size, NULL, if(gpu_us = 0, NULL, sums.completion_tokens * 1000000 / gpu_us)) AS tokens_per_gpu_second,
    thumbs_up,
    thumbs_down,
    if(requests < min_group_size, NULL, if(thumbs_up + thumbs_down = 0, NULL, 100 * thumbs_up / (thumbs_up + thumbs_down))) AS thumbs_up_percent,
    scores,
    if(requests < min_group_size, NULL, if(scores = 0, NULL, score_micro / scores / 1000000)) AS satisfaction_score,
    requests < min_group_size AS withheld
FROM
(
    SELECT
        test AS test_id,
        variant,
        min(slot) AS first_at,
        max(slot) AS last_at,
        {min_group_size} AS min_group_size,
        sum(done) AS requests,
        sum(outcomes['error_before_first_token'] + outcomes['error_mid_stream'] + outcomes['timeout'] + outcomes['rejected']) AS errors,
        sum(outcomes['client_error']) AS client_errors,
        sum(outcomes['client_cancel']) AS client_cancels,
        sum(window_cells.admitted) AS admitted,
        sum(window_cells.overdue) AS overdue,
        sum(fallback) AS fallbacks,
        sum(units_new_test) AS new_units,
        sum(window_cells.latency_n) AS latency_n,
        toFloat64(sum(window_cells.latency_us)) AS latency_us,
        sumMap(window_cells.latency_bins) AS latency_bins,
        sum(window_cells.ttft_n) AS ttft_n,
        toFloat64(sum(window_cells.ttft_us)) AS ttft_us,
        sumMap(window_cells.ttft_bins) AS ttft_bins,
        sum(window_cells.itl_n) AS itl_n,
        toFloat64(sum(window_cells.itl_us)) AS itl_us,
        sumMap(window_cells.itl_bins) AS itl_bins,
        toFloat64(sum(window_cells.prompt_tokens)) AS prompt_tokens,
        toFloat64(sum(window_cells.completion_tokens)) AS completion_tokens,
        toFloat64(sum(window_cells.cached_tokens)) AS cached_tokens,
        toFloat64(sum(window_cells.gpu_us)) AS gpu_us,
        toFloat64(sum(window_cells.cost_nano)) AS cost_nano,
        sum(feedback['thumbs_up']) AS thumbs_up,
        sum(feedback['thumbs_down']) AS thumbs_down,
        sum(feedback['score_n']) AS scores,
        sum(feedback['score_micro']) AS score_micro
    FROM {database}.window_cells
    WHERE test != ''
    GROUP BY test, variant
) AS sums;

-- By model: what the variants of all tests asked for. Where a canary fell back, the stable model served it (fallbacks).

CREATE OR REPLACE VIEW {database}.model_series AS
SELECT
    at,
    model,
    requests,
    requests / seconds AS requests_per_second,
    errors,
    requests - errors - client_cancels AS successful_requests,
    client_errors,
    client_cancels,
    admitted,
    overdue,
    fallbacks,
    if(requests < min_group_size, NULL, 100 * errors / requests) AS error_rate_percent,
    if(requests < min_group_size, NULL, if(latency_n = 0, NULL, latency_us / latency_n / 1000)) AS avg_latency_ms,
    if(requests < min_group_size, NULL, if(ttft_n = 0, NULL, ttft_us / ttft_n / 1000)) AS avg_ttft_ms,
    if(requests < min_group_size, NULL, if(itl_n = 0, NULL, itl_us / itl_n / 1000)) AS avg_inter_token_ms,
    if(requests < min_group_size, NULL, sums.prompt_tokens) AS prompt_tokens,
    if(requests < min_group_size, NULL, sums.completion_tokens) AS completion_tokens,
    if(requests < min_group_size, NULL, sums.cached_tokens) AS cached_tokens,
    if(requests < min_group_size, NULL, sums.completion_tokens / seconds) AS completion_tokens_per_second,
    if(requests < min_group_size, NULL, gpu_us / 1000000) AS gpu_seconds,
    if(requests < min_group_size, NULL, cost_nano / 1000000000) AS cost_dollars,
    if(requests < min_group_size, NULL, cost_nano / 1000000000 / requests) AS cost_per_request_dollars,
    if(requests < min_group_size, NULL, if(gpu_us = 0, NULL, sums.completion_tokens * 1000000 / gpu_us)) AS tokens_per_gpu_second,
    thumbs_up,
    thumbs_down,
    if(requests < min_group_size, NULL, if(thumbs_up + thumbs_down = 0, NULL, 100 * thumbs_up / (thumbs_up + thumbs_down))) AS thumbs_up_percent,
    scores,
    if(requests < min_group_size, NULL, if(scores = 0, NULL, score_micro / scores / 1000000)) AS satisfaction_score,
    requests < min_group_size AS withheld
FROM
(
    SELECT
        toStartOfInterval(slot, toIntervalSecond(greatest({step:UInt32}, 10))) AS at,
        if(variant = 'a', model_a, model_b) AS model,
        greatest({step:UInt32}, 10) AS seconds,
        {min_group_size} AS min_group_size,
        sum(done) AS requests,
        sum(outcomes['error_before_first_token'] + outcomes['error_mid_stream'] + outcomes['timeout'] + outcomes['rejected']) AS errors,
        sum(outcomes['client_error']) AS client_errors,
        sum(outcomes['client_cancel']) AS client_cancels,
        sum(cells.admitted) AS admitted,
        sum(cells.overdue) AS overdue,
        sum(fallback) AS fallbacks,
        sum(cells.latency_n) AS latency_n,
        toFloat64(sum(cells.latency_us)) AS latency_us,
        sum(cells.ttft_n) AS ttft_n,
        toFloat64(sum(cells.ttft_us)) AS ttft_us,
        sum(cells.itl_n) AS itl_n,
        toFloat64(sum(cells.itl_us)) AS itl_us,
        toFloat64(sum(cells.prompt_tokens)) AS prompt_tokens,
        toFloat64(sum(cells.completion_tokens)) AS completion_tokens,
        toFloat64(sum(cells.cached_tokens)) AS cached_tokens,
        toFloat64(sum(cells.gpu_us)) AS gpu_us,
        toFloat64(sum(cells.cost_nano)) AS cost_nano,
        sum(feedback['thumbs_up']) AS thumbs_up,
        sum(feedback['thumbs_down']) AS thumbs_down,
        sum(feedback['score_n']) AS scores,
        sum(feedback['score_micro']) AS score_micro
    FROM {database}.window_cells AS cells
    INNER JOIN {database}.tests AS known ON known.test_id = cells.test
    WHERE cells.test != '' AND slot >= {since:DateTime} AND slot <= {until:DateTime}
    GROUP BY at, model
) AS sums;

CREATE OR REPLACE VIEW {database}.outcome_series AS
SELECT at, test_id, variant, pair.1 AS outcome, pair.2 AS requests
FROM
(
    SELECT
        toStartOfInterval(slot, toIntervalSecond(greatest({step:UInt32}, 10))) AS at,
        test AS test_id,
        variant,
        sumMap(outcomes) AS by_outcome
    FROM {database}.window_cells
    WHERE test != '' AND slot >= {since:DateTime} AND slot <= {until:DateTime}
    GROUP BY at, test, variant
)
ARRAY JOIN CAST(by_outcome, 'Array(Tuple(String, UInt64))') AS pair
WHERE requests > 0;

CREATE OR REPLACE VIEW {database}.outcome_totals AS
SELECT
    test_id,
    variant,
    pair.1 AS outcome,
    pair.2 AS requests,
    if(done < min_group_size, NULL, 100 * requests / done) AS percent
FROM
(
    SELECT test AS test_id, variant, {min_group_size} AS min_group_size, sum(window_cells.done) AS done, sumMap(outcomes) AS by_outcome
    FROM {database}.window_cells
    WHERE test != ''
    GROUP BY test, variant
)
ARRAY JOIN CAST(by_outcome, 'Array(Tuple(String, UInt64))') AS pair
WHERE requests > 0;

-- Which files answered: the digests of each variant, where the engine tells one.

CREATE OR REPLACE VIEW {database}.model_versions AS
SELECT
    known.test_id AS test_id,
    variant,
    if(variant = 'a', model_a, model_b) AS model,
    toString(cells.digest) AS digest,
    sum(done) AS requests,
    min(slot) AS first_at,
    max(slot) AS last_at
FROM {database}.window_cells AS cells
INNER JOIN {database}.tests AS known ON known.test_id = cells.test
WHERE cells.test != '' AND cells.digest != ''
GROUP BY known.test_id, variant, model, cells.digest
HAVING requests > 0;

-- Every change of a test's state, for the time line and for annotations.

CREATE OR REPLACE VIEW {database}.test_changes AS
SELECT
    at,
    test_id,
    substring(type, length('cypria.test.') + 1) AS change,
    status,
    model_a,
    model_b,
    share_bp / 100 AS traffic_split_percent,
    actor,
    reason,
    version,
    event_id
FROM {database}.test_events FINAL
WHERE NOT startsWith(event_id, '@');

-- Why ended tests ended: the number that decided, its bound and limit, and ln E against what it had to reach.

CREATE OR REPLACE VIEW {database}.verdicts AS
SELECT
    test_id,
    last_event_at AS at,
    status,
    model_a,
    model_b,
    decision,
    reason,
    JSONExtractString(result, 'verdict', 'rule') AS rule,
    JSONExtract(result, 'verdict', 'value', 'Nullable(Float64)') AS value,
    JSONExtract(result, 'verdict', 'bound', 'Nullable(Float64)') AS bound,
    JSONExtract(result, 'verdict', 'threshold', 'Nullable(Float64)') AS threshold,
    JSONExtractString(result, 'verdict', 'details', 'unit') AS unit,
    JSONExtract(result, 'verdict', 'details', 'value_a', 'Nullable(Float64)') AS value_a,
    JSONExtract(result, 'verdict', 'details', 'value_b', 'Nullable(Float64)') AS value_b,
    JSONExtract(result, 'verdict', 'log_e', 'Nullable(Float64)') AS log_e,
    JSONExtract(result, 'verdict', 'details', 'limit', 'Nullable(Float64)') AS log_e_limit,
    JSONExtractUInt(result, 'verdict', 'n_a') AS n_a,
    JSONExtractUInt(result, 'verdict', 'n_b') AS n_b
FROM {database}.tests
WHERE JSONHas(result, 'verdict', 'rule');

-- How far the tables have come in the streams; `at` is the broker's time of the last message taken in.

CREATE OR REPLACE VIEW {database}.pipeline_positions AS
SELECT 'WINDOWS' AS stream, toString(digest) AS stream_created, max(wm) AS sequence, fromUnixTimestamp64Milli(toInt64(max(wm_time_ms)), 'UTC') AS at
FROM {database}.window_cells
WHERE test = ''
GROUP BY digest
UNION ALL
SELECT 'EVENTS', any(p.stream_created), max(p.sequence), argMax(p.at, p.sequence)
FROM {database}.test_events AS p
WHERE p.test_id = '' AND startsWith(p.event_id, '@')
GROUP BY p.event_id
UNION ALL
SELECT 'ALERTS', any(p.stream_created), max(p.sequence), argMax(p.at, p.sequence)
FROM {database}.alert_events AS p
WHERE startsWith(p.event_id, '@')
GROUP BY p.event_id
UNION ALL
SELECT 'AUDIT', p.stream_created, max(p.position), argMax(p.stored_at, p.position)
FROM {database}.audit_chain AS p
WHERE p.sequence = 0
GROUP BY p.stream_created;
