"""An endpoint as a method: written once, called as it is by `Client`, awaited by `AsyncClient`."""

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote

from cypria.errors import SettingsError

if TYPE_CHECKING:
    from cypria._asynchronous import AsyncClient
    from cypria._blocking import Client

P = ParamSpec("P")
T = TypeVar("T")
PREFIX = "/v1/ab-testing"


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """What is to be sent. ``repeatable``: asking twice cannot do another thing than asking once; ``refusable``: once it
    was refused for now (503, 429 with `Retry-After`), asking again means the same.
    """

    method: str
    path: str
    make: Callable[[Any], T]
    params: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None
    accept: str = "application/json"
    repeatable: bool = False
    refusable: bool = True


class Operation(Generic[P, T]):
    """One endpoint: the function's parameters are its fields, and its text what it does."""

    def __init__(
        self, method: str, path: str, make: Callable[[Any], T], told: Callable[Concatenate[Any, P], None], *,
        accept: str = "application/json", spread: str = "", asks: bool = False,
    ) -> None:  # fmt: skip
        self.method = method
        self.path = path
        self.spread = spread
        self._make = make
        self._accept = accept
        self._repeatable = asks or method == "GET"
        self.__doc__ = told.__doc__
        self.__name__ = told.__name__
        self.__wrapped__ = told
        self._signature = inspect.signature(told)

    def request(self, *args: P.args, **kwargs: P.kwargs) -> Request[T]:
        """Raises TypeError for arguments that it does not have, SettingsError for a time without an offset."""
        signature = self._signature
        bound = signature.bind(None, *args, **kwargs).arguments
        fields = {name: _plain(name, value) for name, value in list(bound.items())[1:] if value is not None}
        fields |= fields.pop(self.spread, {}) if self.spread else {}
        in_path = {name: str(fields.pop(name)) for name in list(fields) if f"{{{name}}}" in self.path}
        # Slashes of models too: a name may end in /load.
        kept = "/" if self.path.startswith("/models/") else ""
        path = self.path.format(**{name: quote(value, safe=kept) for name, value in in_path.items()})
        asked = self.method == "GET"
        # Without an id a test that ended meanwhile is another one.
        named = "test_id" not in signature.parameters or "test_id" in fields or bool(in_path)
        return Request(
            self.method, path if path.startswith("/ready") else PREFIX + path, self._make,
            params=fields if asked else None, body=fields if not asked and self.method != "DELETE" else None,
            accept=self._accept, repeatable=self._repeatable, refusable=self._repeatable or named,
        )  # fmt: skip

    @overload
    def __get__(self, client: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(self, client: "Client", owner: Any = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: Any = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: Any = None) -> Any:
        """The method of a client."""
        if client is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._send(self.request(*args, **kwargs))  # noqa: SLF001 - the two belong together

        method.__name__, method.__doc__ = self.__name__, self.__doc__
        method.__signature__ = self._signature.replace(  # type: ignore[attr-defined]
            parameters=list(self._signature.parameters.values())[1:], return_annotation=inspect.Signature.empty
        )
        return method

    def __call__(self, client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        """As a function of the class: ``Client.stop(client)``."""
        return self.__get__(client)(*args, **kwargs)


def operation(
    method: str, path: str, make: Callable[[Any], T], *, accept: str = "application/json", spread: str = "",
    asks: bool = False,
) -> Callable[[Callable[Concatenate[Any, P], None]], Operation[P, T]]:  # fmt: skip
    """Make an endpoint of a function without a body.

    ``make`` makes the result of the answer. What is None is left out. ``spread`` names a parameter whose fields are
    the body's own; what ``asks`` changes nothing, though its question comes in a body.
    """

    def made(told: Callable[Concatenate[Any, P], None]) -> Operation[P, T]:
        return Operation(method, path, make, told, accept=accept, spread=spread, asks=asks)

    return made


def _plain(name: str, value: Any) -> Any:
    """As JSON has it. Raises SettingsError for a time without an offset."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise SettingsError(f"{name} is a time without an offset: give one with tzinfo, such as datetime.now(UTC)")
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _plain(name, one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, one) for one in value]
    return value
