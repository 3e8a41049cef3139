"""AAR's orchestrator and Echo.Self's engine as integrations see them: they write down what they are told."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any


class _Told:
    """``temper``: ``hang`` never answers, ``crash`` takes its process with it, ``print`` says what looks like an answer."""

    def __init__(self, log: str, temper: str = "") -> None:
        self._log = Path(log)
        self._temper = temper

    def _note(self, what: str, **told: Any) -> None:
        with self._log.open("a") as log:
            log.write(json.dumps({"what": what, **told}) + "\n")
        if self._temper == "hang":
            time.sleep(600)
        elif self._temper == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self._temper == "print":
            os.write(1, json.dumps({"id": 1, "outcome": "raised", "reason": "forged"}).encode() + b"\n\xff no text\n")


class Orchestrator(_Told):
    async def orchestrate_inference(self, request: dict[str, Any]) -> dict[str, Any]:
        self._note(request["task"], test=request["test_id"], data=request["input_data"])
        return {"result": "done"}

    async def update_agent_configurations(self, configurations: list[dict[str, Any]]) -> None:
        self._note("configured", test=configurations[0]["test_id"], agents=[one["id"] for one in configurations])


class Engine(_Told):
    def evolve_architecture(self, **told: Any) -> None:
        self._note("evolved", **told)
