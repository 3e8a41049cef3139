"""The control side of the router: experiments, their commands over HTTP and the bus, and their timers.

Wiring (in `app.py`)::

    control = build_control(settings, bus, ring, root_salt=salt)
    path = ...  # built with control.experiments, which implements ports.Experiments
    control.attach(path)  # before start: handlers and rollback orders need the request path
    control.subscribe(broker)  # before the broker starts: cypria.control.<verb>
    await control.start()  # needs a connected bus; raises TimeoutError when the KV cannot be read
    ...  # route everything that is not inference to control.app (ASGI)
    await control.stop()  # before the bus closes
"""

from services.router.control.build import Control, build_control

__all__ = ["Control", "build_control"]
