"""Which backends work here: found out by importing each in a process of its own, as a worker would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from qbench.config import kind_names
from qbench.config.kinds import registered
from qbench.errors import QbenchError

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
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(_probe, kinds or kind_names()))


def _probe(kind: str) -> Availability:
    command = [sys.executable, "-c", _attempt(kind)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Availability(kind, f"its import took longer than {TIMEOUT_S:.0f} s", _remedy(kind))
    if done.returncode == 0:
        return Availability(kind, None, "")
    lines = done.stderr.strip().splitlines() or [f"the interpreter ended with status {done.returncode}"]
    return Availability(kind, lines[-1], _remedy(kind))


def _attempt(kind: str) -> str:
    """A program that fails where a kind does not work."""
    # The module of a kind imports its libraries when it loads a model, so it is asked which they are.
    return (
        "from importlib import import_module, metadata; from qbench.config import Backend, backend_class; "
        f"kind = backend_class({kind!r}); "
        "[metadata.version(name) for name in kind.libraries if name not in Backend.libraries]; "
        "[import_module(name) for name in kind.modules]"
    )


def _remedy(kind: str) -> str:
    """What installs it."""
    found = registered(kind)
    assert found is not None, f"{kind} is none of `kind_names()`"
    try:
        return found.load_config().install
    except QbenchError:
        return found.remedy


def table(found: Sequence[Availability]) -> Table:
    """One line a kind: what it is, where it runs, what installs it, and whether it works here."""
    out = Table()
    out.add_column("backend", no_wrap=True)
    for column in ("what it is", "runs on", "here", "installed by"):
        out.add_column(column, overflow="fold")
    for one in found:
        here = "[red]no[/]" if one.reason else "[green]yes[/]"
        what, where, installed_by = facts(one.kind)
        remedy = f"{one.remedy}\n{one.reason}" if one.reason else installed_by
        out.add_row(one.kind, escape(what), escape(where), here, escape(remedy))
    return out


def facts(kind: str) -> tuple[str, str, str]:
    """What a kind is, where it runs, and what installs it; empty where its options cannot be imported."""
    found = registered(kind)
    try:
        config = found.load_config() if found else None
    except QbenchError:
        config = None
    return (config.title, config.devices, config.install) if config else ("", "", "")
