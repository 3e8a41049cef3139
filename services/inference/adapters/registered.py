"""What a model may name that was registered or planned at run time, and is not of the worker's configuration file.

Whoever may register a model may not thereby read the machine's files, have its secrets sent somewhere, reach addresses
that only the machine reaches, or run code: what the operator has not named in `model_sources` or in a model of the
file is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services._runtime.settings_engines import (
    Model,
    hub_source,
    is_address_allowed,
    is_allowed,
    is_host_allowed,
    not_allowed,
)


@dataclass(frozen=True)
class Rules:
    """`model_sources`, and the models of this worker's configuration file as they are at the moment."""

    files: Callable[[], Sequence[Model]]
    allow: Sequence[str] = ()
    remote_code: frozenset[str] = frozenset()

    def check(self, model: Model) -> None:
        """Raises ValueError naming the field and the remedy. What the file has itself, it may have."""
        given = model.model_dump()
        if any(given == own.model_dump() for own in self.files()):
            return
        for field, path in (("path", model.path), ("adapter", model.adapter)):
            if path is not None:
                self._check_path(field, path)
        if model.name in self.remote_code and model.path is not None:
            self._check_code(model, model.path)
        if model.base_url is not None:
            self._check_address(model, model.base_url)
        if "allowed_media_domains" in model.engine_args:
            self._check_domains(model.engine_args["allowed_media_domains"])

    def _check_path(self, field: str, path: Path) -> None:
        if not path.is_absolute() and hub_source(path) is None:
            raise ValueError(f"{field}: {path} is relative: give the whole path, workers run in many directories")
        places = [text for text in self.allow if not text.startswith(("http://", "https://"))]
        if places or hub_source(path) is not None:
            if not is_allowed(path, places):
                raise ValueError(f"{field}: {not_allowed(path)}")
            return
        # An empty list allows what the configuration names, and a registered spec is not the configuration.
        named = [own for model in self.files() for own in (model.path, model.adapter) if own is not None]
        if not any(path.resolve() == own.resolve() for own in named):
            raise ValueError(
                f"{field}: {path} is named by no model of this worker's configuration, and model_sources.allow is "
                "empty: add the directory to model_sources.allow"
            )

    def _check_code(self, model: Model, path: Path) -> None:
        own = next((own for own in self.files() if own.name == model.name), None)
        if own is None or own.path is None or own.path.resolve() != path.resolve():
            raise ValueError(
                f"path: model_sources.remote_code names '{model.name}', whose code may run, so its path is the "
                "configuration file's to say: register it under another name, or change it there"
            )

    def _check_address(self, model: Model, url: str) -> None:
        same = [own for own in self.files() if own.base_url is not None and own.base_url.rstrip("/") == url.rstrip("/")]
        if not same and not is_address_allowed(url, self.allow):
            raise ValueError(
                "base_url: is no address of this worker's configuration and below none of model_sources.allow: add "
                "https://HOST/ of it to model_sources.allow"
            )
        if model.api_key_env is not None and all(own.api_key_env != model.api_key_env for own in same):
            raise ValueError(
                f"api_key_env: no model of this worker's configuration with that base_url names {model.api_key_env}, "
                "and a registered one may not have other variables sent: give such a model in the file (preload: "
                "false will do)"
            )

    def _check_domains(self, domains: object) -> None:
        if not isinstance(domains, list) or not domains or any(not isinstance(name, str) for name in domains):
            raise ValueError("engine_args.allowed_media_domains: give a list of hosts; an empty one would allow all")
        for name in domains:
            if not is_host_allowed(name, self.allow):
                raise ValueError(
                    f"engine_args.allowed_media_domains: '{name}' is the host of no address in model_sources.allow: "
                    f"add https://{name}/ to it"
                )
