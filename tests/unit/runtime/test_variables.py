"""Secrets from files: NAME_FILE holds what NAME would, wherever the configuration names a variable."""

from pathlib import Path

import pytest

from services._runtime import named_variables, variables
from services._runtime.settings import ConfigError, load
from services._runtime.settings_engines import Model
from services._runtime.settings_model import ApiKey, Settings
from services.alerts.settings import read as read_alerts
from services.inference.adapters.openai_engine import OpenAIEngine
from services.router.adapters.keys import load_keys
from services.router.adapters.nats_secrets import check_named
from services.router.control.config_view import masked
from services.router.domain.auth import Principal, Role

SECRET = "SECRETMARK-0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\r\n\n")
    return path


def test_a_file_stands_in_for_the_variable(file: Path) -> None:
    assert variables.value("K", {"K_FILE": str(file)}) == SECRET
    assert variables.value("K", {"K": "v"}) == "v"
    assert variables.value("K", {}) is None
    file.write_text(" with blanks \n")
    assert variables.value("K", {"K_FILE": str(file)}) == " with blanks "


def test_what_is_wrong_with_a_file_is_told_without_what_it_holds(file: Path, tmp_path: Path) -> None:
    binary, large = tmp_path / "binary", tmp_path / "large"
    binary.write_bytes(b"\xff" + SECRET.encode())
    large.write_bytes(SECRET.encode() * 100_000)
    for environ, said in (
        ({"K": SECRET, "K_FILE": str(file)}, "environment variables K and K_FILE are both set: unset one of them"),
        ({"K_FILE": str(tmp_path / "none")}, "K_FILE: .*none cannot be read .No such file or directory.: name a file"),
        ({"K_FILE": str(tmp_path)}, "cannot be read .Is a directory."),
        ({"K_FILE": ""}, "K_FILE is empty: give the path of a file, or unset it"),
        ({"K_FILE": str(binary)}, "is not UTF-8: save it as text"),
        ({"K_FILE": str(large)}, "is over 1048576 bytes: name a smaller file"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            variables.value("K", environ)
        assert SECRET not in str(caught.value)


def test_every_setting_may_come_from_a_file(file: Path, tmp_path: Path) -> None:
    dsn, models, keys = tmp_path / "dsn", tmp_path / "models", tmp_path / "port"
    dsn.write_text(f"clickhouse://u:{SECRET}@h/d\n")
    models.write_text("[{name: m, engine: openai, base_url: 'http://h/v1'}]\n")
    keys.write_text("8080\n")
    settings = load(None, {
        "CYPRIA_NATS__PASSWORD_FILE": str(file), "CYPRIA_CLICKHOUSE__DSN_FILE": str(dsn), "CYPRIA_MODELS_FILE": str(models),
        "CYPRIA_HTTP__PORT_FILE": str(keys), "CYPRIA_ADMIN_KEY_FILE": "/belongs/to/somebody",
        "CYPRIA_NATS__CREDENTIALS_FILE": "/a/setting/of/its/own", "CYPRIA_NATS__SERVERS": "['nats://h:1']",
        "CYPRIA_NATS__TLS__CA_FILE": "/another",
    })  # fmt: skip
    assert settings.nats.password is not None
    assert settings.nats.password.get_secret_value() == SECRET
    assert settings.clickhouse_dsn() == f"clickhouse://u:{SECRET}@h/d"
    assert [model.name for model in settings.models] == ["m"]
    assert settings.http.port == 8080
    assert settings.nats.credentials_file == Path("/a/setting/of/its/own")
    assert settings.nats.tls is not None
    assert settings.nats.tls.ca_file == Path("/another")
    for shown in (str(masked(settings)), repr(settings), settings.model_dump_json()):
        assert SECRET not in shown


def test_a_setting_given_twice_or_wrongly_is_refused_by_its_variable(file: Path) -> None:
    with pytest.raises(ConfigError, match="CYPRIA_NATS__PASSWORD and CYPRIA_NATS__PASSWORD_FILE are both set"):
        load(None, {"CYPRIA_NATS__PASSWORD": "x", "CYPRIA_NATS__PASSWORD_FILE": str(file)})
    with pytest.raises(ConfigError, match=r"environment variable CYPRIA_HTTP__PORT_FILE: http\.port") as caught:
        load(None, {"CYPRIA_HTTP__PORT_FILE": str(file)})
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match=r"there is no setting 'nats\.pasword_file'"):
        load(None, {"CYPRIA_NATS__PASWORD_FILE": str(file)})
    file.write_text(f"[{{secret: {SECRET}")
    with pytest.raises(ConfigError, match="CYPRIA_SECURITY__API_KEYS_FILE: its value is not YAML") as caught:
        load(None, {"CYPRIA_SECURITY__API_KEYS_FILE": str(file)})
    assert SECRET not in str(caught.value)


async def test_every_named_variable_may_be_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"NAMED_FILE": str(file)}
    keys = [ApiKey(name="a", role="admin", key_env="NAMED")]
    assert load_keys(keys, environ).principal(SECRET) == Principal("a", Role.ADMIN)
    hook = {"type": "webhook", "url": "http://h", "secret_env": "NAMED"}
    settings = Settings.model_validate({
        "alerts": {"destinations": [hook]}, "privacy": {"unit_salt_env": "NAMED"}, "security": {"signing_key_env": "NAMED"},
    })  # fmt: skip
    assert read_alerts(settings, environ).channels[0].secrets["secret"] == SECRET
    model = Model(name="m", engine="openai", base_url="http://127.0.0.1:9/v1", api_key_env="NAMED")
    with pytest.raises(ConfigError, match=r"privacy\.unit_salt_env: .* holds 0 bytes: set it .or NAMED_FILE to a file"):
        check_named(settings)
    with pytest.raises(ValueError, match="NAMED is not set: set it, or NAMED_FILE to a file that holds it"):
        await OpenAIEngine(model).load()
    monkeypatch.setenv("NAMED_FILE", str(file))
    check_named(settings)
    engine = OpenAIEngine(model)
    await engine.load()
    await engine.close()
    monkeypatch.setenv("NAMED", "x")
    for refuse in (lambda: check_named(settings), lambda: load_keys(keys, {"NAMED": "x", **environ}),
                   lambda: read_alerts(settings, {"NAMED": "x", **environ})):  # fmt: skip
        with pytest.raises(ConfigError, match="NAMED and NAMED_FILE are both set"):
            refuse()


def test_a_service_gets_no_secret_of_another() -> None:
    settings = Settings.model_validate({
        "models": [{"name": "m", "engine": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "UPSTREAM"}],
        "security": {"api_keys": [{"name": "ops", "role": "admin", "key_env": "OPS"}], "signing_key_env": "SHARED"},
        "privacy": {"unit_salt_env": "SALT"},
        "alerts": {"destinations": [{"type": "webhook", "url_env": "HOOK", "secret_env": "SHARED"}]},
        "integrations": [{"type": "subscriber", "entry_point": "aar", "environment": ["UPSTREAM"]}],
    })  # fmt: skip
    everybodys = {"PATH": "/bin", "HF_TOKEN": "t"}
    environ = everybodys | {"UPSTREAM": "u", "OPS_FILE": "/run/ops", "SHARED": "s", "SALT": "a", "HOOK": "h"}
    kept = {
        service: set(named_variables.without(environ, settings, service)) - set(everybodys)
        for service in ("router", "inference", "alerts", "metrics", "monitor", "nats-server")
    }
    assert kept == {
        "router": {"OPS_FILE", "SHARED", "SALT"}, "inference": {"UPSTREAM"}, "alerts": {"UPSTREAM", "SHARED", "HOOK"},
        "metrics": set(), "monitor": set(), "nats-server": set(),
    }  # fmt: skip
    assert set(everybodys) <= set(named_variables.without(environ, settings, "monitor"))
