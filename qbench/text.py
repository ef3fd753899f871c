"""Words that any module may need: nothing here knows what they are about."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MISSING = "–"
"""Stands for a value that there is not."""


def one_line(text: str) -> str:
    """`text` with everything escaped that would break a line or move a cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggestion(word: str, valid: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest valid word, or nothing."""
    near = get_close_matches(word, list(valid), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def signed(value: float, decimals: int) -> str:
    """With a minus as long as a plus, and no sign before zero."""
    rounded = round(value, decimals)
    sign = "−" if rounded < 0 else "+" if rounded > 0 else ""
    return f"{sign}{abs(rounded):.{decimals}f}"


def human_bytes(value: float | None) -> str:
    """Bytes to a hundredth of a MiB or GiB, without its space what `--max-memory` takes; a dash for a missing value."""
    if value is None:
        return MISSING
    return f"{value / 2**20:.2f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"
