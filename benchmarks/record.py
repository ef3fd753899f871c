"""Showing and keeping the tables of a benchmark."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from qbench.machine import environment
from qbench.run import fingerprint

Rows = Sequence[Mapping[str, Any]]


def keep(out: Path | None, tables: Mapping[str, Rows], *, script: str, show: bool = True) -> None:
    """Print tables and, given a folder, write each to <name>.csv, and to <script>.run.json where they were taken."""
    console = Console(width=150)
    for name, rows in tables.items() if show else ():
        columns = dict.fromkeys(column for row in rows for column in row)
        shown = Table(*columns, title=name)
        for row in rows:
            values = [row.get(column, "") for column in columns]
            shown.add_row(*(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values))
        console.print(shown)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(out / f"{name}.csv", index=False)
    command = shlex.join(["python", *sys.argv])
    machine = environment.detect().model_dump(mode="json")
    code = fingerprint.code_hash(fingerprint.MEASURING)
    facts = pd.Series({"command": command, fingerprint.CODE: code, "environment": machine})
    facts.to_json(out / f"{script}.run.json", indent=2)
    console.print(f"written to {out}")
