-- One table, no PARTITION BY, one block for each insert: that is what survives kill -9 whole (shared/delivery.md).
-- No row is one request: a row holds the sums of one test x variant x share x digest x unit epoch in a slot of
-- ten seconds of the broker's time, of all partitions together; rows of one key merge.
--
-- The row with test = '' is the feeder's position in WINDOWS: its digest is the stream's creation time, wm the last
-- sequence whose sums are in this table, wm_time_ms its broker time, messages how many were taken in. It travels in the same INSERT as the sums
-- that it covers, and never expires.

CREATE TABLE IF NOT EXISTS {database}.window_cells
(
    test LowCardinality(String),
    slot DateTime('UTC'),
    variant LowCardinality(String),
    share_bp UInt16,
    epoch UInt32,
    digest LowCardinality(String),
    admitted SimpleAggregateFunction(sum, UInt64),
    done SimpleAggregateFunction(sum, UInt64),
    overdue SimpleAggregateFunction(sum, UInt64),
    overdue_done SimpleAggregateFunction(sum, UInt64),
    fallback SimpleAggregateFunction(sum, UInt64),
    outcomes SimpleAggregateFunction(sumMap, Map(String, UInt64)),
    latency_n SimpleAggregateFunction(sum, UInt64),
    latency_us SimpleAggregateFunction(sum, UInt128),
    latency_us_squares SimpleAggregateFunction(sum, UInt128),
    latency_ln SimpleAggregateFunction(sum, Int64),
    latency_ln_squares SimpleAggregateFunction(sum, Int64),
    latency_bins SimpleAggregateFunction(sumMap, Map(Int16, UInt64)),
    ttft_n SimpleAggregateFunction(sum, UInt64),
    ttft_us SimpleAggregateFunction(sum, UInt128),
    ttft_us_squares SimpleAggregateFunction(sum, UInt128),
    ttft_ln SimpleAggregateFunction(sum, Int64),
    ttft_ln_squares SimpleAggregateFunction(sum, Int64),
    ttft_bins SimpleAggregateFunction(sumMap, Map(Int16, UInt64)),
    itl_n SimpleAggregateFunction(sum, UInt64),
    itl_us SimpleAggregateFunction(sum, UInt128),
    itl_us_squares SimpleAggregateFunction(sum, UInt128),
    itl_ln SimpleAggregateFunction(sum, Int64),
    itl_ln_squares SimpleAggregateFunction(sum, Int64),
    itl_bins SimpleAggregateFunction(sumMap, Map(Int16, UInt64)),
    cost_n SimpleAggregateFunction(sum, UInt64),
    cost_nano SimpleAggregateFunction(sum, UInt128),
    cost_nano_squares SimpleAggregateFunction(sum, UInt128),
    cost_ln SimpleAggregateFunction(sum, Int64),
    cost_ln_squares SimpleAggregateFunction(sum, Int64),
    cost_bins SimpleAggregateFunction(sumMap, Map(Int16, UInt64)),
    prompt_tokens SimpleAggregateFunction(sum, UInt128),
    completion_tokens SimpleAggregateFunction(sum, UInt128),
    cached_tokens SimpleAggregateFunction(sum, UInt128),
    gpu_us SimpleAggregateFunction(sum, UInt128),
    strata SimpleAggregateFunction(sumMap, Map(UInt8, UInt64)),
    feedback SimpleAggregateFunction(sumMap, Map(String, Int64)),
    units_new SimpleAggregateFunction(sum, UInt64),
    units_first_errors SimpleAggregateFunction(sum, UInt64),
    units_first_client_errors SimpleAggregateFunction(sum, UInt64),
    units_first_overdue SimpleAggregateFunction(sum, UInt64),
    units_new_test SimpleAggregateFunction(sum, UInt64),
    units_first_errors_test SimpleAggregateFunction(sum, UInt64),
    wm SimpleAggregateFunction(max, UInt64),
    wm_time_ms SimpleAggregateFunction(max, UInt64),
    messages SimpleAggregateFunction(sum, UInt64)
)
ENGINE = AggregatingMergeTree
ORDER BY (test, slot, variant, share_bp, epoch, digest)
TTL slot + toIntervalDay({retention_days}) DELETE WHERE test != ''
SETTINGS non_replicated_deduplication_window = 1000;
