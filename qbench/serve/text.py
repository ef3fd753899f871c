"""Tokens as text while they come: whole characters, and nothing that may yet turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qbench.engine.base import Tokens

BEFORE = 6
"""Tokens of the prompt that are decoded with the first of the answer: a space may belong to the token before it."""

CHARACTER = 4
"""Bytes, and so tokens, of the longest character in UTF-8."""

INCOMPLETE = "\ufffd"
"""What decoding puts in place of bytes that are no character."""


class Detokenizer:
    """The text that each token adds to those before it.

    A token is decoded together with its neighbours, because what it adds depends on them; bytes of a character that is
    not yet complete are held back.

    Args:
        decode: the text of token ids.
        prompt: what stands before the first token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Tokens = ()) -> None:
        self._decode = decode
        self._ids = list(prompt[-BEFORE:])
        self._known = len(self._ids)
        """Tokens whose text has been given."""

    def add(self, token: int) -> str:
        """The text that is new with this token; empty while a character is incomplete."""
        self._ids.append(token)
        return self._new(final=len(self._ids) - self._known >= CHARACTER)

    def finish(self) -> str:
        """What was held back, complete or not."""
        return self._new(final=True)

    def _new(self, *, final: bool) -> str:
        before, now = self._decode(self._ids[: self._known]), self._decode(self._ids)
        if now.endswith(INCOMPLETE) and not final:
            return ""
        del self._ids[: max(self._known - BEFORE, 0)]
        self._known = len(self._ids)
        return now[len(before) :]


class Stops:
    """Looks for stop strings in a text that comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What is certain to stand before any stop string; nothing after one was `found`."""
        held = self._held + text
        ends = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return held[: min(ends)]
        kept = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept]

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
