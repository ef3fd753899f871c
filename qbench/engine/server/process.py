"""A server that a command starts: its port, its log, and its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from qbench.engine.server import guard
from qbench.errors import QbenchError, UnavailableError

LAST_LINES, LINE_CHARACTERS = 6, 300
"""Of a server's output that an error shows."""

LINE_BYTES = 1 << 13
"""A longer line is passed on in pieces."""


class ServerProcess:
    """A command, its processes, and the last lines of its output.

    Args:
        command: the program and its arguments, `{…}` filled in.
        what: whose it is, for errors: `backends.vllm.command`.
        hide: takes secrets out of a line before anyone sees it.

    Raises:
        UnavailableError: there is no such program.
    """

    def __init__(self, command: Sequence[str], what: str, hide: Callable[[str], str] = str) -> None:
        self._what, self._hide = what, hide
        environment = _environment()
        if shutil.which(command[0], path=environment["PATH"]) is None:
            raise UnavailableError(f"{what}: no program {command[0]} is here; docs/servers.md says what installs one")
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._guard = subprocess.Popen(
            [sys.executable, "-m", guard.__name__, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()

    def processes(self) -> list[psutil.Process]:
        """Those of the command that live."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self._guard.pid).children(recursive=True)
        return []

    def check(self) -> None:
        """Refuse a server that is gone.

        Raises:
            QbenchError: the command has ended; its last lines say why.
        """
        code = self._guard.poll()
        if code is None:
            return
        self._reader.join(guard.POLL_S * 10)
        said = " | ".join(line[:LINE_CHARACTERS] for line in self._lines if line) or "none"
        raise QbenchError(f"{self._what}: ended by itself with status {code}; its last lines: {said}")

    def close(self) -> None:
        """End the command and all that it started; nothing of it lives when this returns."""
        assert self._guard.stdin is not None
        if self._guard.stdin.closed:
            return
        with contextlib.suppress(OSError):
            self._guard.stdin.write(b".")
            self._guard.stdin.flush()
        try:
            self._guard.wait(3 * guard.GRACE_S)
        except subprocess.TimeoutExpired:  # the end of the pipe is the order to be quick
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
            self._guard.wait()
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        self._reader.join(guard.GRACE_S)

    def _read(self) -> None:
        """Pass the output on to ours, which the run keeps as the cell's log."""
        assert self._guard.stdout is not None
        with self._guard.stdout as pipe:
            while data := pipe.readline(LINE_BYTES):
                line = self._hide(data.decode(errors="replace").rstrip())
                self._lines.append(line)
                print(f"server: {line}", file=sys.stderr, flush=True)


def _environment() -> dict[str, str]:
    """Ours, in which the programs beside this interpreter come first: those of its virtual environment."""
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def fill_in(command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The command with `{name}` replaced by its value; other braces, of JSON for instance, stay."""
    filled = []
    for part in command:
        for name, value in values.items():
            part = part.replace(f"{{{name}}}", value)
        filled.append(part)
    return filled


def listening_on(port: int) -> list[psutil.Process]:
    """The processes that listen on a TCP port of this machine, and their descendants; none where we may not know."""
    try:
        pids = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid
        }
    except psutil.Error:
        return []
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return list(found.values())
