"""Which backends work here: found out by importing each in a process of its own, as a worker would.

Most of what a kind imports is torch and transformers, which takes seconds. One process imports them once, and each kind
is tried in a fork of it. What fails there is tried again in a fresh interpreter, whose word counts: so a fork only ever
saves time.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module, metadata

from rich.markup import escape
from rich.table import Table

from qbench.config import Backend, kind_names
from qbench.config.kinds import registered
from qbench.config.target import DeviceType
from qbench.errors import QbenchError
from qbench.machine import environment

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend can be measured on this machine, and what to do if not."""

    kind: str
    reason: str | None
    """None when it is available."""
    remedy: str
    """The command that installs what is missing; empty where none does."""


def probe(kinds: Sequence[str] | None = None) -> Iterator[Availability]:
    """Try every kind, side by side, those that import the same once; yields each as soon as it is known."""
    # Asked for by its driver's library, a GPU can still be used in a fork.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    here: set[DeviceType] = {"cpu", "cuda"} if environment.detect().gpus else {"cpu"}
    tried: dict[object, Future[str | None]] = {}
    waiting: dict[Future[str | None], list[str]] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for kind in kinds or kind_names():
            config = _options(kind)
            needs = kind if config is None else (config.libraries, config.modules)
            if needs not in tried:
                tried[needs] = pool.submit(_fault, kind, config)
            waiting.setdefault(tried[needs], []).append(kind)
        for done in as_completed(waiting):
            reason = done.result()
            for kind in waiting[done]:
                if reason:
                    yield Availability(kind, reason, _remedy(kind))
                else:
                    yield Availability(kind, _lacks_device(kind, here), "")


def _options(kind: str) -> type[Backend] | None:
    """None where they cannot be imported."""
    found = registered(kind)
    try:
        return found.load_config() if found else None
    except QbenchError:
        return None


def _lacks_device(kind: str, here: set[DeviceType]) -> str | None:
    """Why no device of this machine can measure it; None if one can."""
    config = _options(kind)
    if config is None or here.intersection(config.device_types):
        return None
    return f"it needs device: {' or '.join(config.device_types)}, which is not here"


def _fault(kind: str, config: type[Backend] | None) -> str | None:
    """Why a kind does not work; None if it does."""
    if config and set(Backend.modules) <= set(config.modules) and _works_in_a_fork(config):
        return None
    try:
        command = [sys.executable, "-c", _attempt(kind)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"its import took longer than {TIMEOUT_S:.0f} s"
    lines = done.stderr.strip().splitlines() or [f"the interpreter ended with status {done.returncode}"]
    return lines[-1] if done.returncode else None


def _works_in_a_fork(config: type[Backend]) -> bool:
    """Whether its imports succeed in a fork of a process that has made those of all kinds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qbench.plan.preloaded", __name__])
    process = context.Process(target=import_all, args=(config.libraries, config.modules))
    try:
        process.start()
    except (OSError, EOFError):  # what is common to all kinds ended the process that would be forked
        return False
    process.join(TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def import_all(libraries: Sequence[str], modules: Sequence[str]) -> None:
    """Fail where a kind with these does not work."""
    # The module of a kind imports its libraries when it loads a model, so it is asked which they are.
    for name in libraries:
        if name not in Backend.libraries:
            metadata.version(name)
    for name in modules:
        import_module(name)


def _attempt(kind: str) -> str:
    """A program that fails where a kind does not work."""
    return (
        "from qbench.config import backend_class; from qbench.plan.backends import import_all; "
        f"kind = backend_class({kind!r}); import_all(kind.libraries, kind.modules)"
    )


def _remedy(kind: str) -> str:
    """What installs it."""
    found = registered(kind)
    assert found is not None, f"{kind} is none of `kind_names()`"
    config = _options(kind)
    return config.install if config else found.remedy


def table(found: Sequence[Availability]) -> Table:
    """One line a kind: what it is, where it runs, what installs it, and whether it works here."""
    out = Table()
    out.add_column("backend", no_wrap=True)
    for column in ("what it is", "runs on", "here", "installed by"):
        out.add_column(column, overflow="fold")
    for one in found:
        here = "[red]no[/]" if one.reason else "[green]yes[/]"
        what, where, installed_by = facts(one.kind)
        remedy = "\n".join(filter(None, (one.remedy, one.reason))) or installed_by
        out.add_row(one.kind, escape(what), escape(where), here, escape(remedy))
    return out


def facts(kind: str) -> tuple[str, str, str]:
    """What a kind is, where it runs, and what installs it; empty where its options cannot be imported."""
    config = _options(kind)
    return (config.title, config.devices, config.install) if config else ("", "", "")
