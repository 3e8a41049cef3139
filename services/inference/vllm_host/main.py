"""`PYTHON -I main.py FD PARENT`: loads vLLM and serves requests from the socket FD until it closes.

FD is one end of a stream socket pair; PARENT the process id of the worker at the other end. The processes that vLLM
starts run this file as well, as their `__mp_main__`, before they do anything else.
"""

import contextlib
import ctypes
import importlib.util
import os
import signal
import socket
import sys
import threading
from pathlib import Path

_PACKAGE = "vllm_host"
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies, however it dies (Linux).

    Every process of the engine does so, each with the one above it: a stopped or hanging one goes like any other.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _bind_forked(descriptor: int) -> None:
    """Have forked processes die with this one too, and not hold on to its socket."""
    by_main = False

    def before() -> None:
        nonlocal by_main
        # The kernel takes the end of the thread that forked for the end of the parent.
        by_main = threading.current_thread() is threading.main_thread()

    def in_child() -> None:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        if by_main:
            _die_with_parent()
            if os.getpgid(os.getppid()) != os.getpgrp():
                os._exit(1)

    os.register_at_fork(before=before, after_in_child=in_child)


def _make_package() -> None:
    """Make this folder importable, and nothing that lies beside it."""
    here = Path(__file__).parent
    places = [str(here)]
    spec = importlib.util.spec_from_file_location(_PACKAGE, here / "__init__.py", submodule_search_locations=places)
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)


def main(descriptor: int, parent: int) -> None:
    """Load and serve; returns when the engine is closed."""
    _die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    _bind_forked(descriptor)
    _make_package()
    from vllm_host.host import run  # type: ignore[import-not-found]

    run(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
elif __name__ == "__mp_main__":
    _die_with_parent()
    if os.getpgid(os.getppid()) != os.getpgrp():  # it died before: this process was handed to another
        os._exit(1)
    _make_package()
