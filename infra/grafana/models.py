"""The dashboard of models and GPUs: what they serve, from ClickHouse, and what they use, from Prometheus."""

from typing import Any

from infra.grafana.fleet import CHANGES
from infra.grafana.parts import board, choice, label, line, marks, rows, watched

_CHOSEN = "$__conditionalAll(model IN (${model:singlequote}), $model)"


def _models(title: str, unit: str, column: str, text: str = "") -> Any:
    return line(
        title, unit,
        f"SELECT at AS time, model, {column} AS figure FROM model_series(STEPS) WHERE {_CHOSEN} ORDER BY at",
        text, name=label("model"),
    )  # fmt: skip


def _workers(title: str, unit: str, figure: str, text: str = "") -> Any:
    return watched(title, unit, {"{{model}}": f"sum by (model) ({figure})"}, text)


def dashboard() -> Any:
    """The dashboard's builder."""
    return (
        board(
            "cypria-models", "Cypria: models and GPUs", "What models serve in tests, and what they use.", "now-24h",
            [
                "What they serve in tests",
                _models("Requests", "reqps", "requests_per_second"),
                _models("Errors", "percent", "error_rate_percent", "In percent of the model's requests."),
                _models("Fallbacks", "short", "fallbacks", "Requests that the stable model took over from a canary."),
                _models("Mean latency", "ms", "avg_latency_ms"),
                _models("Mean time to first token", "ms", "avg_ttft_ms"),
                _models("Mean time between tokens", "ms", "avg_inter_token_ms", "After the first token (TPOT)."),
                _models("Generated tokens per second", "short", "completion_tokens_per_second"),
                _models("Tokens per GPU second", "short", "tokens_per_gpu_second"),
                _models("GPUs in use", "short", "gpu_seconds / $__interval_s", "GPU seconds per second."),
                _models("Cost", "currencyUSD", "cost_dollars * 3600 / $__interval_s", "Dollars per hour.") ,
                rows(
                    "Versions",
                    "SELECT model, digest, sum(requests) AS requests, min(first_at) AS first, max(last_at) AS last, "
                    "arrayStringConcat(arraySort(groupUniqArray(10)(test_id)), ', ') AS tests FROM model_versions "
                    f"WHERE {_CHOSEN} GROUP BY model, digest ORDER BY last DESC LIMIT 100",
                    text="Which files answered; two digests of one model are two versions.", span=16,
                ),
                "What they use on the workers",
                watched("States", "short", {"{{model}} {{state}}": "sum by (model, state) (cypria_inference_model_state) > 0"},
                        "Workers by the state that the model is in there."),
                _workers("Requests on the engine", "short", "cypria_inference_running"),
                _workers("Requests waiting for a slot", "short", "cypria_inference_queued"),
                _workers("Memory", "bytes", "cypria_inference_memory_bytes"),
                _workers("GPU memory", "bytes", "cypria_inference_gpu_memory_bytes"),
                watched("GPU utilization", "percentunit", {"{{model}}": "max by (model) (cypria_inference_gpu_utilization_ratio)"}),
                watched("KV cache in use", "percentunit", {"{{model}}": "max by (model) (cypria_inference_kv_cache_usage_ratio)"}),
                _workers("Processor cores", "short", "cypria_inference_cpu_cores"),
                _workers("Free slots", "short", "cypria_inference_free_slots"),
            ],
        )
        .with_variable(
            choice(
                "model", "Model",
                "SELECT DISTINCT arrayJoin([model_a, model_b]) AS model FROM tests ORDER BY model", several=True,
            )
        )
        .annotation(marks("State changes", "blue", CHANGES))
    )  # fmt: skip
