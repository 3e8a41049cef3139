"""The subscriber `aar`: an AAR orchestrator coordinates its agents around a test.

Options: ``target``, the orchestrator (or what makes one) as ``package.module:attribute``; ``arguments`` for making it.
"""

from typing import Any

from schemas.v1.common import Message
from schemas.v1.integrations import Decided, MetricWindow, Occasion, RolledBack, Started
from services.alerts.subscribers.target import settled, target_of

AGENTS = ("monitoring_agent", "rollback_agent", "metrics_agent")
_METHODS = ("orchestrate_inference", "update_agent_configurations")


class AarSubscriber:
    """Agents are configured for a test when it starts, and told of what concerns them afterwards."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._orchestrator = target_of(options, _METHODS, "aar_core.orchestration:orchestrator")

    async def on_started(self, event: Started) -> None:
        """All agents for this test, then the task of watching it."""
        await self._configure(event, *AGENTS, create=True)
        await self._orchestrate("ab_test_started", event)

    async def on_metric_window(self, event: MetricWindow) -> None:
        """The figures, to the metrics agent."""
        await self._configure(event, "metrics_agent")

    async def on_rolled_back(self, event: RolledBack) -> None:
        """The reason, to the rollback agent."""
        await self._configure(event, "rollback_agent")

    async def on_decided(self, event: Decided) -> None:
        """The decision, to the monitoring agent and as a task."""
        await self._configure(event, "monitoring_agent")
        await self._orchestrate("ab_test_decided", event)

    async def _configure(self, event: Occasion, *agents: str, create: bool = False) -> None:
        """Once it runs, an agent that an orchestrator has dropped meanwhile is not made again."""
        configurations = [
            {
                "id": agent, "role": agent, "test_id": event.test_id, "event_id": event.event_id,
                "temporary_agent": not create,
                "capabilities": {"domains": ["ab_testing", agent.removesuffix("_agent")]},
                "targets": _plain(event),
            }
            for agent in agents
        ]  # fmt: skip
        await settled(self._orchestrator.update_agent_configurations(configurations))

    async def _orchestrate(self, task: str, event: Occasion) -> None:
        request = {
            "request_id": event.event_id, "task": task, "test_id": event.test_id, "agents": list(AGENTS),
            "features": ["ab_testing", "monitoring"], "context": {"test_id": event.test_id},
            "input_data": _plain(event),
        }  # fmt: skip
        await settled(self._orchestrator.orchestrate_inference(request))


def _plain(event: Message) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude_none=True)
