"""Text out of tokens, one at a time: never half a character, never a piece of a stop string."""

from collections.abc import Callable, Sequence

_HALF = "\ufffd"
_HELD = 3

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Gives the text that each new token makes certain; all of it joined is the decoding of all tokens.

    A decoder shows the bytes of a character that is not complete yet as U+FFFD at the end (one, or one for
    each byte), so up to three of those are held back. Tokens are decoded together with the last ones before
    them, since some tokenizers write a token differently at the start of a text; what was decoded once is not
    decoded again for ever.
    """

    __slots__ = ("_anchor", "_decode", "_given", "_ids", "_read")

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._anchor = 0
        self._read = 0
        self._given = 0

    def push(self, token: int) -> str:
        """The text that ``token`` makes certain; may be empty."""
        self._ids.append(token)
        text = self._decode(self._ids[self._anchor :])
        certain = len(text) - min(len(text) - len(text.rstrip(_HALF)), _HELD)
        new = text[self._given : certain]
        if certain == len(text) and new:
            self._anchor, self._read = self._read, len(self._ids)
            self._given = len(self._decode(self._ids[self._anchor :]))
        else:
            self._given = max(self._given, certain)
        return new

    def flush(self) -> str:
        """What was held back, now that no token follows."""
        text = self._decode(self._ids[self._anchor :])
        new = text[self._given :]
        self._given = len(text)
        return new


class StopMatcher:
    """Ends a text before the first of some strings, holding back what may become one."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that is certain to be given; sets ``stopped`` at a stop string."""
        if not self._stops:
            return text
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
