"""What routers tell each other: that they live."""

from schemas.v1.common import Message


class RouterBeat(Message):
    """On `cypria.peer.<router>`, every second and once when a new one is heard; ``leaving`` with the last one."""

    router: str
    leaving: bool = False
