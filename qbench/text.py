"""Words that any module may need: nothing here knows what they are about."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def one_line(text: str) -> str:
    """`text` with everything escaped that would break a line or move a cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggestion(word: str, valid: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest valid word, or nothing."""
    near = get_close_matches(word, list(valid), n=1)
    return f"; did you mean {near[0]}?" if near else ""
