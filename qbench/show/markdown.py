"""Texts of others in Markdown: shown as they are, never read as markup."""

from __future__ import annotations

import html
import re

from qbench.text import one_line

SPECIAL = re.compile(r"[\\`*_{}\[\]!|~$:@^]|(?<=www)\.|^[#+=-]|(?<=^\d)[.)]")
"""What begins markup in CommonMark and in GitHub's and the hub's Markdown, mentions and bare addresses included."""


def inline(text: str) -> str:
    """A text within a line or a table's cell: HTML as entities, Markdown's characters behind a backslash."""
    return SPECIAL.sub(r"\\\g<0>", html.escape(one_line(" ".join(text.split())), quote=False))


def code(text: str) -> str:
    """A text in a code span of one line."""
    shown = one_line(" ".join(text.split())) or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def fenced(text: str, language: str = "") -> str:
    """Lines in a fence that is longer than any in them."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def preformatted(text: str) -> str:
    """Lines as HTML, in which nothing is markup."""
    lines = (one_line(line) for line in text.splitlines())
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"
