"""What an answer is good for next: links of the OpenAPI document, by verb."""

from typing import Any

_TEST = {"test_id": "$response.body#/test_id"}
_MODEL = {"name": "$response.body#/model"}
_KEY = {"name": "$response.body#/name"}
_ABOUT_A_TEST = ("pause", "resume", "approve", "rollback", "stop", "traffic-split")
_OF_A_TEST = ("tests", "summary", "series", "report", "evidence", "replay")


def _tests() -> dict[str, Any]:
    commands: dict[str, Any] = {verb: {"requestBody": _TEST} for verb in _ABOUT_A_TEST}
    return commands | {verb: {"parameters": _TEST} for verb in ("status", *_OF_A_TEST)}


_LINKS: dict[str, dict[str, Any]] = {
    "start": _tests(),
    "status": _tests(),
    "stop": {verb: {"parameters": _TEST} for verb in ("status", *_OF_A_TEST)},
    "keys-create": {verb: {"parameters": _KEY} for verb in ("keys-rotate", "keys-revoke")},
    "keys-rotate": {"keys-revoke": {"parameters": _KEY}},
    "models-register": {
        verb: {"parameters": _MODEL} for verb in ("model", "models-load", "models-unload", "models-remove")
    },
    "models-load": {"models-unload": {"parameters": _MODEL}},
    "models-unload": {"models-load": {"parameters": _MODEL}},
}


def links(verb: str) -> dict[str, Any]:
    """The links of a verb's good answer: operation, and where its parameters or the fields of its body come from."""
    return {
        name.replace("-", "_"): {"operationId": name.replace("-", "_"), **how}
        for name, how in _LINKS.get(verb, {}).items()
    }
