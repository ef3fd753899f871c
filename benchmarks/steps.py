"""Steps of a benchmark one after another, each a process with a limit of its own; what is done is not repeated.

A step that fails or takes too long leaves what it has written, and the next one runs. `<step>.step.json` says what each
came to and what it depends on: with the same code, device and command, and its tables still there, it is passed over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Ending = Literal["done", "kept", "failed", "too long"]

GRACE_S = 15.0
"""From the interrupt, at which a run writes what it has, to the end of a step that goes on."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it leaves."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    tables: tuple[str, ...]
    """Files in the folder of results that it writes, as they are named there."""


def take(steps: Iterable[Step], out: Path, facts: Mapping[str, str], say: Callable[[str], None]) -> dict[str, Ending]:
    """Run the steps in their order.

    Args:
        out: folder of results.
        facts: what figures depend on, such as a hash of the code and the name of the device.
        say: told in one line what a step came to.
    """
    out.mkdir(parents=True, exist_ok=True)
    endings: dict[str, Ending] = {}
    for step in steps:
        record = out / f"{step.name}.step.json"
        depends = {"command": list(step.command), **facts}
        if _is_done(step, record, depends, out):
            endings[step.name] = "kept"
            say(f"{step.name}: done before")
            continue
        record.unlink(missing_ok=True)
        say(f"{step.name}: at most {step.limit_s:.0f} s")
        started = time.monotonic()
        ending = _run(step)
        seconds = time.monotonic() - started
        endings[step.name] = ending
        content = {"ending": ending, "seconds": round(seconds, 1), "depends": depends}
        record.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        say(f"{step.name}: {ending}, {seconds:.0f} s")
    return endings


def _is_done(step: Step, record: Path, depends: Mapping[str, object], out: Path) -> bool:
    if not record.is_file() or not all((out / table).is_file() for table in step.tables):
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    return bool(found["ending"] == "done" and found["depends"] == depends)


def _run(step: Step) -> Ending:
    # A session of its own: the limit ends workers, too, and Ctrl-C reaches the steps through `_end`.
    process = subprocess.Popen(step.command, start_new_session=True)
    try:
        return "done" if process.wait(timeout=step.limit_s) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "too long"
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
