"""A reply's bytes on their way out: held back while there is no credit, joined when there is again."""

from collections import deque


class Outflow:
    """Blocks put in come out in order as pieces of at most ``limit`` bytes, one credit each.

    Blocks (whole server-sent events) are joined but cut only when one alone is over the limit.
    """

    __slots__ = ("_blocks", "buffered", "credit", "limit")

    def __init__(self, credit: int, limit: int) -> None:
        self.credit = credit
        self.limit = limit
        self.buffered = 0
        self._blocks: deque[bytes] = deque()

    def put(self, block: bytes) -> None:
        """Add bytes at the end."""
        if block:
            self._blocks.append(block)
            self.buffered += len(block)

    def grant(self, credit: int) -> None:
        """More pieces may go out."""
        self.credit += credit

    @property
    def full(self) -> bool:
        """Whether a piece's worth waits for credit, so that the engine should be read no further."""
        return self.buffered >= self.limit and self.credit <= 0

    def take(self) -> bytes | None:
        """The next piece for one credit; None without credit or bytes."""
        if self.credit <= 0 or not self._blocks:
            return None
        self.credit -= 1
        return self._piece()

    def last(self) -> bytes | None:
        """All that is left, when it fits one piece, for the final frame, which needs no credit; else None."""
        if self.buffered > self.limit:
            return None
        return self._piece() if self._blocks else b""

    def drop(self) -> None:
        """Forget what nobody waits for any more."""
        self._blocks.clear()
        self.buffered = 0

    def _piece(self) -> bytes:
        block = self._blocks.popleft()
        if len(block) > self.limit:
            self._blocks.appendleft(block[self.limit :])
            block = block[: self.limit]
        elif self._blocks and len(block) + len(self._blocks[0]) <= self.limit:
            parts, size = [block], len(block)
            while self._blocks and size + len(self._blocks[0]) <= self.limit:
                parts.append(self._blocks.popleft())
                size += len(parts[-1])
            block = b"".join(parts)
        self.buffered -= len(block)
        return block
