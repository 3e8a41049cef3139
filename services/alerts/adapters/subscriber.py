"""The integration `subscriber`: foreign Python, found by entry point, in a process of its own."""

import re
import sys
from importlib.metadata import entry_points
from typing import Any

from schemas.v1.integrations import GROUP
from services._runtime.settings import ConfigError
from services.alerts.adapters.child import Child, ChildError
from services.alerts.domain.interest import matches
from services.alerts.domain.outcome import Outcome, Refused, Retry, Sent
from services.alerts.ports import Told
from services.alerts.settings import Link

HOST = "services.alerts.subscribers.host"
OWN = {
    "aar": "services.alerts.subscribers.aar:AarSubscriber",
    "echo_self": "services.alerts.subscribers.echo_self:EchoSelfSubscriber",
}
"""Those that this package brings, as pyproject.toml declares them: an older installation has no record of that."""
MEMORY_MB = 2048
_SECRET = re.compile(r"secret|password|token|(^|_)key$", re.IGNORECASE)
_SHORT = 6
"""What is shorter than this is no secret, and would take words apart."""


def entry_of(name: str) -> str:
    """``package.module:attribute`` of an entry point. Raises ConfigError for one that is not installed, or is twice."""
    found = {entry.value for entry in entry_points(group=GROUP, name=name)}
    if name in OWN:
        found.add(OWN[name])
    if not found:
        known = sorted({*OWN, *(entry.name for entry in entry_points(group=GROUP))})
        raise ConfigError(
            f"integrations: no entry point of the group {GROUP} is named '{name}': install the package that has it; "
            f"there are {', '.join(known)}"
        )
    if len(found) > 1:
        raise ConfigError(
            f"integrations: two packages have an entry point '{name}' ({', '.join(sorted(found))}): uninstall one"
        )
    return found.pop()


class SubscriberIntegration:
    """Secrets among its options, and what its environment holds, are taken out of everything that it says."""

    def __init__(self, link: Link) -> None:
        self.name = link.name
        self._link = link
        options = link.options.options or {}
        hello = {
            "entry": entry_of(link.options.entry_point or link.name), "options": options,
            "path": [path for path in sys.path if path],
        }  # fmt: skip
        hidden = {text for text in (*_secrets(options), *link.environment.values()) if len(text) >= _SHORT}
        self._hidden = sorted(hidden, key=len, reverse=True)
        self._child = Child(
            link.name, HOST, hello, memory_mb=link.options.memory_limit_mb or MEMORY_MB,
            environment=link.environment, hide=self._hide,
        )  # fmt: skip

    def wants(self, told: Told) -> bool:
        """Its events of its tests; of windows only those of its length come here."""
        return (
            told.data is not None and told.kind in self._link.events and matches(self._link.options.tests, told.test_id)
        )

    async def tell(self, told: Told) -> Outcome:
        """One call. What the subscriber has no method for is done."""
        assert told.data is not None
        call = {"call": told.kind, "event": told.data.model_dump(mode="json")}
        try:
            answer = await self._child.ask(call, self._link.options.timeout_seconds)
        except ChildError as exc:
            return Retry(str(exc))
        reason = self._hide(str(answer.get("reason", "")))
        if answer.get("outcome") == "gave_up":
            return Refused(reason)
        return Retry(reason) if answer.get("outcome") == "raised" else Sent()

    async def probe(self) -> Outcome:
        """Whether it can be made; no call is."""
        try:
            await self._child.ensure()
        except ChildError as exc:
            return Retry(str(exc))
        if not self._child.calls:
            return Refused("it has none of the methods")
        return Sent(f"has {', '.join(self._child.calls)}")

    async def close(self) -> None:
        """End its process."""
        await self._child.close()

    def _hide(self, text: str) -> str:
        for hidden in self._hidden:
            text = text.replace(hidden, "****")
        return text


def _secrets(value: Any, name: str = "") -> list[str]:
    """Texts among options that stand under a name such as ``token``."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in _secrets(item, str(key))]
    if isinstance(value, list):
        return [text for item in value for text in _secrets(item, name)]
    return [value] if isinstance(value, str) and _SECRET.search(name) else []
