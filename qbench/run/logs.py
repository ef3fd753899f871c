"""A worker's output as a file with a bound: its beginning, its end, and how much was between them."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from qbench.records.redact import MARGIN_BYTES, Redactor

HEAD_BYTES = 8 << 20
TAIL_BYTES = 8 << 20
"""Kept of a log's beginning and end, give or take a line."""

BLOCK_BYTES = 1 << 20
"""Read from a pipe at once, at most."""

LAST_WORDS_S = 2.0
"""Seconds that a pipe is read on after its worker has ended: somebody else may hold it open for ever."""


class BoundedLog:
    """A log file without secrets. The beginning is on disk at once; the end is kept in memory and written by `close`.

    What is left out in between is not even looked at, so that a flood costs the worker no more than a pipe.
    """

    def __init__(
        self, path: Path, redactor: Redactor, *, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES
    ) -> None:
        path.unlink(missing_ok=True)  # were it a link, the file that it leads to would be overwritten
        self._file = path.open("xb", buffering=0)
        self._redactor = redactor
        self._head_left, self._tail_bytes = head_bytes, tail_bytes
        self._line = b""
        """The beginning's last line, which is not complete yet."""
        self._tail: deque[bytes] = deque()
        self._in_tail = self._dropped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A full disk shows where it matters, in the rows, which do not fit either.
        with contextlib.suppress(OSError):
            self.close()

    def write(self, data: bytes) -> None:
        """Append to the log.

        Raises:
            OSError: the disk is full.
        """
        if self._head_left > 0:
            data = self._line + data
            size = self._redactor.complete(data)
            self._head_left -= size
            beginning, data = data[:size], data[size:]
            self._line = data if self._head_left > 0 else b""
            self._file.write(self._redactor.encoded(beginning))
        if self._head_left <= 0 and data:
            self._tail.append(data)
            self._in_tail += len(data)
            while self._in_tail - len(self._tail[0]) >= self._tail_bytes:
                dropped = len(self._tail.popleft())
                self._in_tail -= dropped
                self._dropped += dropped

    def close(self) -> None:
        """Write what is kept of the end.

        Raises:
            OSError: the disk is full.
        """
        with self._file:
            rest = self._redactor.encoded(self._line + b"".join(self._tail))
            if self._dropped:
                # The first line is cut, perhaps in the middle of a secret.
                cut = rest.find(b"\n", 0, MARGIN_BYTES) + 1 or MARGIN_BYTES
                rest = rest[cut:]
                self._file.write(f"\n[qbench left out {self._dropped + cut:,} bytes here]\n".encode())
            self._file.write(rest)


class PipeReader:
    """Reads a pipe in a thread of its own until it ends or `finish` is called; it sleeps while nothing comes."""

    def __init__(self, pipe: IO[bytes], write: Callable[[bytes], None]) -> None:
        self._pipe, self._write = pipe, write
        self._enough, self._say_enough = os.pipe()
        self._thread = threading.Thread(target=self._read, name="log", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Read the pipe to its end, which must be near, and close it."""
        self._thread.join(LAST_WORDS_S)
        os.close(self._say_enough)
        self._thread.join()
        os.close(self._enough)
        self._pipe.close()

    def _read(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._pipe, selectors.EVENT_READ)
            ready.register(self._enough, selectors.EVENT_READ)
            while all(key.fileobj is self._pipe for key, _ in ready.select()):
                data = os.read(self._pipe.fileno(), BLOCK_BYTES)
                if not data:
                    return
                # A full disk must not stop the worker, which would wait for ever to be read.
                with contextlib.suppress(OSError):
                    self._write(data)
