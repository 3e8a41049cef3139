"""What may be named at run time: nothing that the operator has not named."""

from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model, is_address_allowed
from services.inference.adapters.registered import Rules

UPSTREAM = {"name": "own", "engine": "openai", "base_url": "https://api.example.com/v1", "api_key_env": "EXAMPLE_KEY"}


def hosted(**fields: Any) -> Model:
    return Model.model_validate({"name": "m", "engine": "openai", "base_url": "https://api.example.com/v1", **fields})


def rules(*files: dict[str, Any], allow: tuple[str, ...] = (), **more: Any) -> Rules:
    return Rules(lambda: [Model.model_validate(file) for file in files], allow, **more)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1", "https://api.example.com:8443/v1", "https://api.example.com/v2", "https://api.example.com/",
        "https://api.example.com/v1/../admin", "https://api.example.com/v1/%2e%2e/admin", "https://api.example.com/v10",
        "https://api.example.com@evil.example/v1", "https://api.example.com.evil.example/v1", "https://api.example.com/v1?to=x",
        "https://api.example.com\\@evil.example/v1", "https://evil.example/v1#https://api.example.com/v1", "http://169.254.169.254/",
    ],
)  # fmt: skip
def test_an_address_that_is_not_below_an_allowed_one(url: str) -> None:
    assert not is_address_allowed(url, ["https://api.example.com/v1/", "/models", "hf://org"])
    with pytest.raises(ValueError, match=r"base_url: is no address of this worker's configuration and below none"):
        rules(UPSTREAM, allow=("https://api.example.com/v1",)).check(hosted(base_url=url))


def test_an_address_that_is() -> None:
    for url in ("https://api.example.com/v1", "https://API.example.com:443/v1/x/", "https://api.example.com/v1/"):
        rules(allow=("https://api.example.com/v1/",)).check(hosted(base_url=url))
    rules(UPSTREAM).check(hosted(base_url="https://api.example.com/v1/"))


def test_a_secret_goes_only_where_the_file_has_it_sent() -> None:
    rules(UPSTREAM).check(hosted(api_key_env="EXAMPLE_KEY"))
    everywhere = rules(UPSTREAM, allow=("https://api.example.com/", "https://evil.example/"))
    for spec in ({"api_key_env": "CYPRIA_ADMIN_KEY"}, {"api_key_env": "EXAMPLE_KEY", "base_url": "https://evil.example/v1"}):
        with pytest.raises(ValueError, match=r"api_key_env: no model of this worker.s configuration .*preload: false"):
            everywhere.check(hosted(**spec))


def test_a_name_whose_code_may_run_keeps_its_directory(tmp_path: Path) -> None:
    own = {"name": "m", "engine": "vllm", "path": str(tmp_path / "own")}
    named = rules(own, allow=(str(tmp_path),), remote_code=frozenset({"m"}))
    named.check(Model.model_validate({**own, "max_concurrency": 2}))
    with pytest.raises(ValueError, match=r"path: model_sources\.remote_code names 'm'"):
        named.check(Model.model_validate({**own, "path": str(tmp_path / "other")}))


def test_media_come_only_from_allowed_hosts(tmp_path: Path) -> None:
    def spec(domains: Any) -> dict[str, Any]:
        return {"name": "m", "engine": "vllm", "path": str(tmp_path), "engine_args": {"allowed_media_domains": domains}}

    some = rules(allow=(str(tmp_path), "https://images.example.com/"))
    some.check(Model.model_validate(spec(["images.example.com"])))
    for domains in ([], ["169.254.169.254"], ["images.example.com", "localhost"], "images.example.com", None, [1]):
        with pytest.raises(ValueError, match=r"engine_args\.allowed_media_domains: "):
            some.check(Model.model_validate(spec(domains)))
        rules(spec(domains), allow=(str(tmp_path),)).check(Model.model_validate(spec(domains)))  # the file may


def test_addresses_in_the_list_say_nothing_of_directories(tmp_path: Path) -> None:
    own = {"name": "m", "engine": "vllm", "path": str(tmp_path)}
    only = rules(own, allow=("https://api.example.com/",))
    only.check(Model.model_validate({**own, "name": "n"}))
    with pytest.raises(ValueError, match=r"named by no model of this worker's configuration"):
        only.check(Model.model_validate({**own, "path": "/etc"}))
