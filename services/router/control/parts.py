"""What the control side is made of, in one place for handlers and timers."""

from dataclasses import dataclass, field

from schemas.v1.experiment import OutboxEvent
from services._runtime.settings_model import Settings
from services.router.adapters.nats_audit import AuditLog
from services.router.adapters.nats_erasures import NatsErasures
from services.router.adapters.nats_experiments import NatsExperiments
from services.router.adapters.nats_feed import Feed
from services.router.adapters.nats_keys import NatsKeys
from services.router.adapters.nats_models import NatsModels
from services.router.adapters.nats_monitoring import NatsMonitoring
from services.router.adapters.nats_outbox import Outbox
from services.router.adapters.nats_queries import Queries
from services.router.adapters.nats_rollbacks import Rollbacks
from services.router.adapters.nats_salts import UnitSalts
from services.router.control.sharing import Shared
from services.router.domain.models import Seen, standing
from services.router.ports import ModelInfo, RequestPath


class NotAttached(RuntimeError):  # noqa: N818 - a wiring mistake, named as such
    """`Control.attach` was not called before `Control.start`."""


@dataclass(slots=True)
class Late:
    """The request path, which is built after the control side because it reads the experiments."""

    value: RequestPath | None = None

    def __call__(self) -> RequestPath:
        """The request path; raises NotAttached before it is known."""
        if self.value is None:
            raise NotAttached("call Control.attach(request_path) before Control.start()")
        return self.value


@dataclass(slots=True)
class Parts:
    """Everything a handler may use."""

    settings: Settings
    experiments: NatsExperiments
    outbox: Outbox[OutboxEvent]
    rollbacks: Rollbacks
    queries: Queries
    monitoring: NatsMonitoring
    audit: AuditLog
    feed: Feed
    models: NatsModels
    keys: NatsKeys
    salts: UnitSalts
    erasures: NatsErasures
    path: Late
    shared: Shared = field(default_factory=Shared)

    def known_models(self) -> list[ModelInfo]:
        """Every model that there is, by name: for a configuration, a worker or the registry."""
        infos = {info.name: info for info in self.path().models()}
        for name, claimed in self.models.entries().items():
            entry = standing(claimed)
            if entry is not None and entry.desired != "removed":
                infos.setdefault(name, ModelInfo(name=name, state="unavailable", workers=0, ready_workers=0))
            elif entry is not None and name in infos:
                beats = [beat for beat in self.path().beats() if beat.model == name]
                if not Seen(beats, self.settings.model(name) is not None).there(entry):
                    del infos[name]
        return [infos[name] for name in sorted(infos)]
