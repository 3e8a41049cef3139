"""A command on a terminal of its own, and what its screen shows."""

import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from typing import Any, Self

from tests.e2e.product import KEYS, Product
from tests.harness import environment
from tests.system import ROOT

_HOME = "\x1b[H"
_BACK = "\x1b[?1049l"
"""What ends the other screen, so that what was there before comes back."""


def plain(text: str) -> str:
    """Without what moves the cursor and gives colour."""
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).replace("\r", "")


class Terminal:
    """`cypria` on a pseudo-terminal; ended, where it has not, with the block."""

    def __init__(self, product: Product, *arguments: str, rows: int, columns: int, **variables: str) -> None:
        known = {"CYPRIA_URL": product.system.url, "CYPRIA_API_KEY": KEYS["admin"], "TERM": "xterm-256color", **variables}
        self._command = [sys.executable, "-m", "services.cli", *arguments]
        self._env = environment(PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8", **known)
        self._file, self._side = pty.openpty()
        self._enough, self._say_enough = os.pipe()
        self._size(rows, columns)
        self.raw = ""
        self.closed = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=self._side, stdout=self._side, stderr=self._side, env=self._env, cwd=ROOT,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(self._side)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._say_enough)
        os.close(self._enough)
        if not self.closed:
            os.close(self._file)

    def _read(self) -> None:
        found = bytearray()
        while self._enough not in select.select([self._file, self._enough], [], [])[0]:
            try:
                data = os.read(self._file, 65_536)
            except OSError:  # what a terminal says when nobody is left on it
                return
            if not data:
                return
            found += data
            self.raw = found.decode("utf-8", "replace")

    @property
    def text(self) -> str:
        """The last whole screen; every one is drawn from the upper left corner."""
        whole = self.raw.split(_HOME)[1:-1]
        return plain(whole[-1]) if whole else ""

    @property
    def after(self) -> str:
        """What stands on the terminal when the screen is gone."""
        before, back, after = self.raw.rpartition(_BACK)
        assert back, before[-500:]
        return plain(after)

    def _size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self._size(rows, columns)
        self._process.send_signal(signal.SIGWINCH)

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def hang_up(self) -> None:
        """Close the terminal."""
        os.write(self._say_enough, b".")
        self._reader.join()
        os.close(self._file)
        self.closed = True

    async def left(self) -> Any:
        """The exit status."""
        status = await asyncio.to_thread(self._process.wait, 60)
        await asyncio.to_thread(self._reader.join, 10)
        return status
