"""The subscriber `echo_self`: an Echo.Self evolution engine learns of every promotion.

Options: ``target``, the engine (or what makes one) as ``package.module:attribute``; ``arguments`` for making it.
"""

from typing import Any

from schemas.v1.common import Decision
from schemas.v1.integrations import Decided
from services.alerts.subscribers.target import settled, target_of


class EchoSelfSubscriber:
    """Told of nothing but promotions."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._engine = target_of(options, ("evolve_architecture",), "echo_self.core:evolution_engine")

    async def on_decided(self, event: Decided) -> None:
        """The gain is in percent of the primary metric, positive where B is better."""
        if event.decision is not Decision.PROMOTE_B:
            return
        await settled(
            self._engine.evolve_architecture(
                base_model=event.model_a, improved_model=event.model_b,
                performance_gain=event.performance_gain_percent,
            )
        )  # fmt: skip
