"""The pipe between a runner and its worker: one line with the job, and then nothing for as long as the runner lives.

The worker reads it from standard input. Its end means that the runner is gone, killed perhaps, and then the worker and
all that it has started go, too: an orphan would hold its memory and disturb whatever is measured next.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import IO

BLOCK_BYTES = 1 << 16


def send(line: str, pipe: IO[bytes]) -> None:
    """Write a line, and leave the pipe open.

    In a thread: a worker that does not read must not keep its runner from seeing that it takes too long.
    """
    threading.Thread(target=_write, args=(pipe, line.encode() + b"\n"), name="job", daemon=True).start()


def _write(pipe: IO[bytes], data: bytes) -> None:
    # A worker that has ended before it read its job is told of by how it ended.
    with contextlib.suppress(OSError, ValueError):
        while data:
            data = data[pipe.write(data) :]


def receive() -> bytes:
    """The line on standard input; from then on this process group ends when the pipe does.

    Standard input is empty afterwards, for libraries and for what they start. Ends the process if there is no line.
    """
    pipe = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(pipe, BLOCK_BYTES)
        if not data:
            sys.exit("qbench.run.worker: no job on standard input; `qbench run` starts workers")
        line += data
    threading.Thread(target=_end_with, args=(pipe,), name="lifeline", daemon=True).start()
    return line


def _end_with(pipe: int) -> None:
    while os.read(pipe, BLOCK_BYTES):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)
