"""Between a worker and the server that it starts: `python -m qbench.engine.server.guard COMMAND…`.

Runs the command in a session of its own, and ends it with everything that it has started when a byte comes on standard
input, when standard input ends because whoever started it is gone, killed perhaps, or when the command itself ends.
Nothing that a server leaves behind holds memory, a GPU or a port while the next cell is measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

import psutil

GRACE_S = 10.0
"""Seconds between asking the processes to end and ending them; none where nobody waits for it any more."""

POLL_S = 0.2

ROUNDS = 5
"""A process may start another one while it is looked at."""

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans among the descendants become our children, and do not escape."""


def main(command: list[str]) -> int:
    """Run `command`; its exit status as a shell gives it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        return 127
    polite = False
    while server.poll() is None:
        if select.select([0], [], [], POLL_S)[0]:
            polite = bool(os.read(0, 1))
            break
    end(server.pid, GRACE_S if polite else 0.0)
    code = server.wait()
    return code if code >= 0 else 128 - code


def end(group: int, grace_s: float) -> None:
    """End every descendant of this process, and what is left of a process group."""
    for _ in range(ROUNDS):
        left = psutil.Process().children(recursive=True)
        if not left:
            break
        if grace_s:
            _each(left, signal.SIGTERM)
            _, left = psutil.wait_procs(left, grace_s)
        _each(left, signal.SIGKILL)
        psutil.wait_procs(left, GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _each(processes: list[psutil.Process], what: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
