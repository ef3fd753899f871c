"""CSV that spreadsheets show and do not calculate, and that reads back as it was.

A text that begins with `=`, `+`, `-`, `@` or a tab is a formula to a spreadsheet, which may fetch or run what it names
(OWASP, «CSV Injection»); it is written with an apostrophe before it. Numbers stay as they are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""How a text begins that gets an apostrophe, also one that begins with apostrophes already: so each can be undone."""

GUARDED = re.compile(r"'+[=+\-@\t\r\n]")


def guard(value: T) -> T | str:
    """A text as it stands in a CSV; anything else as it is."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def unguard(text: str) -> str:
    """The inverse of `guard`."""
    return text[1:] if GUARDED.match(text) else text


def to_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A header and a line a row; None is an empty field."""
    lines = _Lines()
    # With this terminator csv quotes fields in which a line ends in any of the ways that readers know.
    writer = csv.DictWriter(lines, fieldnames=list(columns), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({key: guard(value) for key, value in row.items()} for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines.written)


class _Lines:
    """What csv writes, a line at a time."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        self.written.append(line)
