"""The console, and what tables need without pandas: commands that show no run start without it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qbench.text import human_bytes

if TYPE_CHECKING:
    from qbench.run.checkpoints import Entry

NON_TERMINAL_WIDTH = 120
"""Columns of lines and tables in a file or a pipe, which has no width of its own."""


def make_console() -> Console:
    """Standard output; in a pipe, plain and wide enough for the table."""
    console = Console()
    return console if console.is_terminal else Console(width=NON_TERMINAL_WIDTH)


def is_attended() -> bool:
    """Whether somebody is there to answer a question."""
    return sys.stdin.isatty()


def cache_table(entries: Sequence[Entry], folder: Path) -> Table:
    """The cached checkpoints; below them, how many there are and what they take."""
    whole = human_bytes(sum(entry.bytes for entry in entries))
    table = Table(
        min_width=60, caption=escape(f"{len(entries)} checkpoints, {whole}, in {folder}"), caption_justify="left"
    )
    for heading in ("key", "backend", "model", "made"):
        table.add_column(heading)
    table.add_column("size", justify="right")
    for entry in entries:
        made = entry.manifest
        when = f"{made.created:%Y-%m-%d %H:%M}, in {made.quantize_s:.1f} s"
        table.add_row(
            made.key[:12],
            escape(str(made.facts["kind"])),
            escape(made.model),
            when,
            human_bytes(entry.bytes),
        )
    return table
