"""Which backends work here: found out by importing each in a process of its own, as a worker would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from qbench.config import Backend, backend_kinds

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend's module can be imported, and what to do if not."""

    kind: str
    reason: str | None
    """None when it is available."""
    remedy: str


def probe(kinds: Sequence[str] | None = None) -> list[Availability]:
    """Try every kind, side by side."""
    classes = backend_kinds()
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(_probe, [classes[kind] for kind in kinds or classes]))


def _probe(config: type[Backend]) -> Availability:
    kind = config.model_fields["kind"].default
    command = [sys.executable, "-c", f"import qbench.backends.{kind}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Availability(kind, f"its import took longer than {TIMEOUT_S:.0f} s", config.install)
    if done.returncode == 0:
        return Availability(kind, None, "")
    lines = done.stderr.strip().splitlines() or [f"the interpreter ended with status {done.returncode}"]
    return Availability(kind, lines[-1], config.install)


def table(found: Sequence[Availability]) -> Table:
    """One line a kind."""
    out = Table()
    for column in ("backend", "here", "why not", "remedy"):
        out.add_column(column, overflow="fold")
    for one in found:
        here = "[red]no[/]" if one.reason else "[green]yes[/]"
        out.add_row(one.kind, here, escape(one.reason or ""), escape(one.remedy))
    return out
