"""What the configuration says of models: the entries themselves, where they may come from, and how many fit."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, field_serializer, field_validator, model_validator

from schemas.v1.common import ModelName
from services._runtime.settings_base import Positive, Section, is_url

EngineName = Literal["openai", "transformers", "vllm"]
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_WEB = ("http://", "https://")


class HubSource(NamedTuple):
    """A model of a hub: `hf://ORG/NAME@REVISION`."""

    repo: str
    revision: str

    @property
    def is_commit(self) -> bool:
        """Whether the revision is the hash of a commit, which always means the same files."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}"


def hub_source(path: Path | None) -> HubSource | None:
    """The model of a hub that a ``path`` of the configuration names; None when it is a directory's."""
    # A Path has no double slash: what was written hf://org/name@revision reads hf:/org/name@revision.
    found = re.fullmatch(r"hf:/([\w.-]+/[\w.-]+)@([\w.-]+(?:/[\w.-]+)*)", str(path), re.ASCII)
    return HubSource(found[1], found[2]) if found and ".." not in Path(str(path)).parts else None


def is_allowed(path: Path, allow: Sequence[str]) -> bool:
    """Whether ``path`` is below one of ``allow``, links on both sides resolved; with none given, every directory is.

    A model of a hub has to be named: by its organization, its name, or with its revision.
    """
    if (source := hub_source(path)) is not None:
        wanted = [text.rstrip("/") for text in allow if text.startswith("hf://")]
        return any(str(source).startswith((f"{text}/", f"{text}@")) or str(source) == text for text in wanted)
    real, places = path.resolve(), [text for text in allow if not text.startswith(_WEB)]
    return not places or any("://" not in text and real.is_relative_to(Path(text).resolve()) for text in places)


def is_address_allowed(url: str, allow: Sequence[str]) -> bool:
    """Whether an upstream's address is below one of the addresses in ``allow``: same scheme, host and port, and its
    path at or below theirs.
    """
    wanted = _address(url)
    return wanted is not None and any(
        (base := _address(text)) is not None and wanted[:3] == base[:3] and wanted[3][: len(base[3])] == base[3]
        for text in allow
    )


def is_host_allowed(host: str, allow: Sequence[str]) -> bool:
    """Whether an address in ``allow`` is of that host."""
    return any((base := _address(text)) is not None and base[1] == host.lower() for text in allow)


def _address(url: str) -> tuple[str, str, int, tuple[str, ...]] | None:
    """(scheme, host, port, parts of the path); None for what is no address, or may mean another than it shows."""
    if not url.startswith(_WEB) or not is_url(url, {"http", "https"}):
        return None
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[\\%\s]", url):
        return None
    steps = tuple(part for part in parts.path.split("/") if part)
    if "." in steps or ".." in steps:
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").rstrip("."), port, steps


def not_allowed(path: Path) -> str:
    """What to say of a path that `is_allowed` refuses."""
    if (source := hub_source(path)) is not None:
        return f"{source} is not among model_sources.allow: name it there, such as hf://{source.repo.split('/')[0]}/"
    return f"{path} is below none of model_sources.allow: move the model there or extend the list"


def size_bytes(text: str) -> int:
    """Bytes of a size such as ``8GB`` (10^9), ``8GiB`` (2^30) or a bare number. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is no size: give one such as 8GB or 512MiB")
    unit: int = (1024 if match[3] else 1000) ** _POWERS[match[2].upper()]
    return round(float(match[1]) * unit)


class Cost(Section):
    """Prices in dollars."""

    prompt_per_1k: float = Field(default=0, ge=0)
    completion_per_1k: float = Field(default=0, ge=0)
    gpu_second: float = Field(default=0, ge=0)


_FILES = ("path", "digest")
_REMOTE = ("base_url", "upstream_model", "api_key_env")
_ADAPTER = ("adapter", "adapter_digest")
_OF_OTHERS: dict[str, tuple[str, ...]] = {
    "openai": (*_FILES, *_ADAPTER, "batch_size"),
    "transformers": (*_REMOTE, *_ADAPTER),
    "vllm": _REMOTE,
}


class Model(Section):
    """One entry of `models`."""

    name: ModelName
    engine: EngineName
    base_url: str | None = None
    upstream_model: str | None = None
    api_key_env: str | None = None
    path: Path | None = None
    digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    adapter: Path | None = None
    adapter_digest: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")
    engine_args: dict[str, Any] = {}
    batch_size: int | None = Field(default=None, ge=1, le=100_000)
    timeout_seconds: Positive = 60
    total_timeout_seconds: Positive = 600
    queue_timeout_seconds: Positive | None = None
    preload: bool = True
    pool: str | None = Field(default=None, min_length=1, max_length=128)
    max_concurrency: int = Field(default=256, ge=1, le=100_000)
    max_queue: int = Field(default=1024, ge=0, le=1_000_000)
    cost: Cost = Cost()

    @field_validator("path", "adapter", mode="after")
    @classmethod
    def _is_whole(cls, path: Path | None) -> Path | None:
        if path is not None and path.parts[:1] == ("hf:",) and hub_source(path) is None:
            written = str(path).replace("hf:", "hf:/", 1)
            raise ValueError(f"'{written}' names no model of a hub: give hf://ORG/NAME@COMMIT, with 40 hex digits")
        return path

    @field_serializer("path", "adapter", when_used="json")
    def _as_written(self, path: Path | None) -> str | None:
        return str(hub_source(path) or path) if path is not None else None

    @model_validator(mode="after")
    def _fits_engine(self) -> "Model":
        if self.engine == "openai":
            if not self.base_url:
                raise ValueError(f"model '{self.name}': engine openai needs base_url, such as http://127.0.0.1:8000/v1")
            if not is_url(self.base_url, {"http", "https"}):
                raise ValueError(
                    f"model '{self.name}': base_url must start with http:// or https:// and name a host, such as "
                    "http://127.0.0.1:8000/v1"
                )
        elif not self.path:
            raise ValueError(f"model '{self.name}': engine {self.engine} needs path, the model's directory")
        # What an engine does not look at would be a promise that nobody keeps, a digest most of all.
        for field in _OF_OTHERS[self.engine]:
            if getattr(self, field) is not None:
                raise ValueError(
                    f"model '{self.name}': engine {self.engine} takes no {field}: remove it, or name another engine"
                )
        if self.adapter_digest and not self.adapter:
            raise ValueError(f"model '{self.name}': adapter_digest without adapter: give the adapter's directory too")
        if self.queue_timeout_seconds is not None and self.queue_timeout_seconds > self.timeout_seconds:
            raise ValueError(
                f"model '{self.name}': queue_timeout_seconds is above timeout_seconds, within which the first byte "
                "is to come: lower it"
            )
        if self.timeout_seconds > self.total_timeout_seconds:
            raise ValueError(f"model '{self.name}': timeout_seconds is above total_timeout_seconds: lower one of them")
        return self

    @model_validator(mode="after")
    def _stays_what_it_is(self) -> "Model":
        for field, path, digest in (("path", self.path, self.digest), ("adapter", self.adapter, self.adapter_digest)):
            source = hub_source(path)
            if source is not None and not source.is_commit and digest is None:
                raise ValueError(
                    f"model '{self.name}': {field} names '{source.revision}', which can move: give the 40 hex digits "
                    f"of a commit, or pin its {'digest' if field == 'path' else 'adapter_digest'}"
                )
        return self

    def resolve_paths(self, base: Path) -> None:
        """Make relative paths relative to ``base``."""
        if self.path and not self.path.is_absolute() and not hub_source(self.path):
            self.path = base / self.path
        if self.adapter and not self.adapter.is_absolute() and not hub_source(self.adapter):
            self.adapter = base / self.adapter


class ModelSources(Section):
    """`model_sources`. An empty ``allow`` allows what the configuration names; addresses in it are those that models
    registered at run time may name. ``remote_code`` names the models that may bring Python code of their own.
    ``verify``: whether files that have not changed since they were last read are read again before a model is loaded.
    """

    allow: list[str] = []
    remote_code: list[str] = []
    verify: Literal["cached", "always"] = "cached"

    @field_validator("allow")
    @classmethod
    def _are_paths(cls, allow: list[str]) -> list[str]:
        for text in allow:
            if text.startswith(_WEB) and _address(text) is None:
                raise ValueError(f"'{text}' is no address: give one such as https://api.example.com/v1, with no query")
            if not text.strip() or ("://" in text and not text.startswith(("hf://", *_WEB))):
                raise ValueError(f"'{text}' is no source: give a directory such as /models/")
        return allow


class Loading(Section):
    """`model_management.loading`: of one try, and how many more follow one that failed."""

    timeout_seconds: Positive = 900
    retry_attempts: int = Field(default=2, ge=0, le=20)


class ModelManagement(Section):
    """`model_management`: bounds of one worker. ``auto_unload_unused_minutes`` 0: never."""

    max_concurrent_models: int = Field(default=8, ge=1, le=1000)
    auto_unload_unused_minutes: float = Field(default=0, ge=0, le=525_600)
    memory_threshold_percent: float = Field(default=90, gt=0, le=100)
    loading: Loading = Loading()


class ResourcePlanning(Section):
    """`resource_planning`: an operator's own figures, which count where they ask for more than a model's files do.

    Sizes such as ``8GB``. A model of less than 3 thousand million parameters is of no class.
    """

    gpu_memory_per_7b_model: str | None = None
    gpu_memory_per_13b_model: str | None = None
    gpu_memory_per_70b_model: str | None = None
    cpu_cores_per_model: float | None = Field(default=None, gt=0)
    ram_per_model: str | None = None
    max_concurrent_7b_models: int | None = Field(default=None, ge=0)
    max_concurrent_13b_models: int | None = Field(default=None, ge=0)
    max_concurrent_70b_models: int | None = Field(default=None, ge=0)

    @field_validator("gpu_memory_per_7b_model", "gpu_memory_per_13b_model", "gpu_memory_per_70b_model", "ram_per_model")
    @classmethod
    def _is_a_size(cls, text: str | None) -> str | None:
        if text is not None:
            size_bytes(text)
        return text


class InferenceProcess(Section):
    """`inference`: of a worker process. It serves the models of its ``pool`` and those that name none.

    ``vllm_python``: the interpreter of vLLM's environment; by default `.venv-vllm` beside the package where
    `make install-vllm` has made one, else the worker's own. ``join_ms``: pieces of one of vLLM's streams that come
    within so many milliseconds go out as one, but for the first ones; 0: each by itself.
    """

    pool: str = Field(default="default", min_length=1, max_length=128)
    vllm_python: Path | None = None
    join_ms: float = Field(default=25, ge=0, le=1000)
