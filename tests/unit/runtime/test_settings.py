"""Configuration: the spec's file works, the environment wins, anything wrong is refused by name."""

from pathlib import Path

import pytest

from services._runtime.settings import ConfigError, load
from services._runtime.settings_engines import Model, hub_source

HUB = "models: [{{name: m, engine: transformers, path: '{0}'}}]\nmodel_sources: {{allow: {1}}}"
SPEC = """
ab_testing:
  enabled: true
  default_traffic_split_percent: 10.0
  max_test_duration_minutes: 1440
  success_criteria:
    min_improvement_threshold: 5.0
    max_error_rate_increase_percent: 50.0
    max_latency_increase_percent: 20.0
    min_sample_size: 100
  failure_criteria:
    max_error_rate_percent: 5.0
    max_latency_ms: 5000.0
    max_consecutive_errors: 10
monitoring:
  enabled: true
  check_interval_seconds: 30
  thresholds:
    critical_error_rate: 10.0
    warning_error_rate: 5.0
    critical_latency_ms: 3000.0
    warning_latency_ms: 1500.0
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cypria.yaml"
    path.write_text(text)
    return path


def test_the_specs_file_loads_and_equals_the_defaults(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, SPEC), {})
    assert loaded.ab_testing == load(None, {}).ab_testing
    assert loaded.monitoring == load(None, {}).monitoring
    assert loaded.ab_testing.success_criteria.negligible_error_rate_percent == 0.1
    strict = "ab_testing: {failure_criteria: {max_error_rate_percent: 0.1}}"
    assert load(write(tmp_path, strict), {}).ab_testing.failure_criteria.max_error_rate_percent == 0.1


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        ("APHRODITE_AB_TESTING_ENABLED", "false", ("ab_testing", "enabled"), False),
        ("AB_TEST_DEFAULT_SPLIT_PERCENT", "12.5", ("ab_testing", "default_traffic_split_percent"), 12.5),
        ("AB_TEST_MAX_DURATION_MINUTES", "720", ("ab_testing", "max_test_duration_minutes"), 720.0),
        ("AB_TEST_MONITORING_INTERVAL", "5", ("monitoring", "check_interval_seconds"), 5.0),
        ("AB_TEST_ALERT_RETENTION", "77", ("alerts", "retention"), 77),
        ("APHRODITE_LOG_LEVEL", "debug", ("logging", "level"), "DEBUG"),
        ("AB_TEST_DEBUG", "true", ("logging", "debug"), True),
        ("AB_TEST_VERBOSE_METRICS", "true", ("logging", "verbose_metrics"), True),
        ("AB_TEST_DEBUG", "1", ("logging", "debug"), True),
        ("AB_TEST_LOG_FILE", "/tmp/ab_test.log", ("logging", "file"), Path("/tmp/ab_test.log")),
        ("CYPRIA_HTTP__PORT", "8080", ("http", "port"), 8080),
        ("CYPRIA_NATS__SERVERS", '["nats://h:1"]', ("nats", "servers"), ["nats://h:1"]),
        ("CYPRIA_POLICIES__ON_MONITOR_DOWN", "hold", ("policies", "on_monitor_down"), "hold"),
        ("CYPRIA_MONITORING", "{enabled: false}", ("monitoring", "enabled"), False),
        ("CYPRIA_ASSIGNMENT__UNIT", "[user]", ("assignment", "unit"), ["user"]),
    ],
)
def test_the_environment_wins_over_the_file(
    tmp_path: Path, variable: str, value: str, path: tuple[str, str], expected: object
) -> None:
    settings = load(write(tmp_path, SPEC), {variable: value})
    assert getattr(getattr(settings, path[0]), path[1]) == expected


def test_a_text_setting_stays_text_whatever_it_looks_like() -> None:
    settings = load(None, {"CYPRIA_NATS__PASSWORD": "0123"})
    assert settings.nats.password is not None
    assert settings.nats.password.get_secret_value() == "0123"


def test_the_path_variable_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "ab_testing: {default_traffic_split_percent: 3}")
    assert load(None, {"APHRODITE_AB_TESTING_CONFIG_PATH": str(path)}).ab_testing.default_traffic_split_percent == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ab_testing: {enabeld: true}", "ab_testing.enabeld"),
        ("ab_testing: {default_traffic_split_percent: much}", "ab_testing.default_traffic_split_percent"),
        ("ab_testing: {default_traffic_split_percent: 101}", "ab_testing.default_traffic_split_percent"),
        ("monitoring: {thresholds: {warning_error_rate: 50}}", "warning_error_rate is above critical_error_rate"),
        ("models: [{name: m, engine: openai}]", "needs base_url"),
        ("models: [{name: m, engine: transformers}]", "needs path"),
        ("models: [{name: m, engine: openai, base_url: 'ftp://x'}]", "base_url must start with"),
        ("models:\n- &m {name: m, engine: openai, base_url: 'http://x'}\n- *m", "two models are named 'm'"),
        ("security: {api_keys: [{name: a, role: root, key_env: K}]}", "security.api_keys.0.role"),
        ("security: {api_keys: [{name: a, role: admin}]}", "exactly one of key_env and key_sha256"),
        ("processes: {metrics: 2}", "one process holds"),
        ("a: 1\na: 2", "stands twice"),
        ("[1, 2]", "mapping of sections"),
        ("ab_testing: [", "not valid YAML"),
        ("unknown: {}", "unknown: unknown key"),
        ("ab_testing: {failure_criteria: {max_latency: 5}}", "ab_testing.failure_criteria.max_latency: unknown key"),
        ("monitoring: {check_interval_seconds: '30'}", "monitoring.check_interval_seconds: Input should be a number"),
        ("ab_testing: {max_test_duration_minutes: true}", "max_test_duration_minutes: Input should be a number"),
        ("ab_testing: {failure_criteria: {max_latency_ms: '5'}}", "max_latency_ms: Input should be a number"),
        ("ab_testing: {failure_criteria: {max_latency_ms: .inf}}", "ab_testing.failure_criteria.max_latency_ms"),
        ("ab_testing: {enabled: 'true'}", "ab_testing.enabled: Input should be true or false"),
        ("ab_testing: {enabled: []}", "ab_testing.enabled: Input should be true or false"),
        ("ab_testing: {default_traffic_split_percent: 10.005}", "finer than splits are"),
        ("models: [{name: m, engine: openai, base_url: 'http://x', timeout_seconds: .inf}]", "models.0.timeout_seconds"),
        ("models: [{name: m, engine: openai, base_url: 'http://'}]", "base_url must start with"),
        ("models: [{name: m, engine: openai, base_url: 'http://h:99999/v1'}]", "base_url must start with"),
        ("models: [{name: m, engine: openai, base_url: 'http://x', digest: 'sha256:" + 64 * "0" + "'}]", "takes no digest"),
        ("models: [{name: m, engine: openai, base_url: 'http://x', path: /m}]", "takes no path"),
        ("models: [{name: m, engine: transformers, path: /m, api_key_env: K}]", "takes no api_key_env"),
        ("models: [{name: m, engine: vllm}]", "engine vllm needs path"),
        ("model_sources: {allow: [/models/]}\nmodels: [{name: m, engine: transformers, path: /m}]", "models.0.path: /m is"),
        ("model_sources: {allow: ['s3://x/']}", "model_sources.allow: 's3://x/' is no source"),
        ("model_sources: {allow: ['https://']}", "model_sources.allow: 'https://' is no address"),
        ("model_sources: {allow: ['https://u:p@x/v1?a']}", "is no address: give one such as"),
        ("model_sources: {allow: ['']}", "model_sources.allow: '' is no source"),
        (HUB.format("hf://org/m@" + "a" * 40, "[]"), "models.0.path: hf://org/m@" + "a" * 40 + " is not among model_sources.allow"),
        (HUB.format("hf://org/m@" + "a" * 40, "['hf://or']"), "name it there, such as hf://org/"),
        (HUB.format("hf://org/m@main", "['hf://org/']"), "path names 'main', which can move"),
        (HUB.format("hf://org/m", "['hf://org/']"), "'hf://org/m' names no model of a hub: give hf://ORG/NAME@COMMIT"),
        (HUB.format("hf://org/../m@main", "['hf://org/']"), "names no model of a hub"),
        ("models: [{name: m, engine: openai, base_url: 'http://x', queue_timeout_seconds: 61}]", "queue_timeout_seconds is above timeout_seconds"),
        ("nats: {servers: ['http://u:SECRETMARK@x']}", "nats.servers: 'http://x' is no address"),
        ("nats: {servers: []}", "nats.servers"),
        ("clickhouse: {dsn: 'mysql://u:SECRETMARK@x/y'}", "clickhouse.dsn: give chdb:///DIRECTORY"),
        ("clickhouse: {dsn: 'chdb://'}", "clickhouse.dsn: give chdb:///DIRECTORY"),
        ("monitoring:", "monitoring: Input should be a section"),
        ("security: {ip_allow: 10.0.0.0/8}", "security.ip_allow: Input should be a list"),
        (
            "ab_testing: {success_criteria: {negligible_error_rate_percent: 5}}",
            "ab_testing: success_criteria.negligible_error_rate_percent (5) is not below failure_criteria.max_error_rate_percent (5)",
        ),
        ("ab_testing: {success_criteria: {negligible_error_rate_percent: 100}}", "success_criteria.negligible_error_rate_percent"),
    ],
)
def test_what_is_wrong_is_refused_by_file_key_and_reason(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert "SECRETMARK" not in str(caught.value)


def test_a_wrong_environment_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"environment variable CYPRIA_HTTP__PROT: there is no setting 'http.prot'"):
        load(None, {"CYPRIA_HTTP__PROT": "1"})
    with pytest.raises(ConfigError, match="environment variable AB_TEST_DEFAULT_SPLIT_PERCENT: ab_testing"):
        load(write(tmp_path, SPEC), {"AB_TEST_DEFAULT_SPLIT_PERCENT": "-1"})


def test_a_missing_file_and_bad_bytes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml", {})
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path, {})


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "models: [{name: m, engine: transformers, path: weights}]\ndata_dir: d")
    settings = load(path, {})
    assert settings.models[0].path == tmp_path / "weights"
    assert settings.data_dir == tmp_path / "d"


def test_secrets_do_not_show() -> None:
    settings = load(None, {"CYPRIA_NATS__PASSWORD": "hunter2", "CYPRIA_CLICKHOUSE__DSN": "clickhouse://u:hunter2@h/d"})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()


def test_a_list_is_given_whole(tmp_path: Path) -> None:
    models = "[{name: m, engine: openai, base_url: 'http://h/v1'}]"
    assert [model.name for model in load(write(tmp_path, SPEC), {"CYPRIA_MODELS": models}).models] == ["m"]
    with pytest.raises(ConfigError, match=r"CYPRIA_MODELS__0__NAME: models is a list: give it whole, as CYPRIA_MODELS="):
        load(None, {"CYPRIA_MODELS__0__NAME": "m"})


def test_what_names_no_section_is_left_to_whom_it_belongs() -> None:
    assert load(None, {"CYPRIA_ADMIN_KEY": "k", "CYPRIA_URL": "http://h"}) == load(None, {})


def test_yaml_may_merge_one_entry_into_another(tmp_path: Path) -> None:
    text = "models:\n- &m {name: m, engine: openai, base_url: 'http://x', timeout_seconds: 7}\n- {<<: *m, name: n}\n"
    settings = load(write(tmp_path, text), {})
    assert [(model.name, model.timeout_seconds) for model in settings.models] == [("m", 7), ("n", 7)]


def test_a_model_of_a_hub_is_taken_as_it_is_written(tmp_path: Path) -> None:
    for written, more in ((f"hf://org/m@{'a' * 40}", ""), ("hf://org/m@refs/pr/1", f"digest: 'sha256:{'0' * 64}', ")):
        settings = load(write(tmp_path, HUB.replace("path:", more + "path:").format(written, "[/models/, 'hf://org/']")), {})
        [model] = settings.models
        assert str(hub_source(model.path)) == written
        shown = model.model_dump(mode="json")
        assert shown["path"] == written
        assert Model.model_validate(shown) == model


def test_a_model_below_an_allowed_source_is_taken(tmp_path: Path) -> None:
    text = "model_sources: {allow: [weights]}\nmodels: [{name: m, engine: transformers, path: weights/m}]"
    assert load(write(tmp_path, text), {}).models[0].path == tmp_path / "weights" / "m"
