"""Answers of the batches that are done, so that an evaluation of hours goes on where its worker was ended."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qbench.records.files import end_last_line


class Journal:
    """A line of JSON for each batch, found again by the tokens of the batch.

    The same batches in the same order give the same figures, bit for bit: what is read back is what would be computed.
    """

    def __init__(self, path: Path | None) -> None:
        self._started = time.perf_counter()
        self._known: dict[str, list[tuple[Any, ...]]] = {}
        self._before_s = 0.0
        self._file = None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            end_last_line(path)
            self._read(path)
            self._file = path.open("a", encoding="utf-8")

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError):  # a line that its writer was cut off in
                kept = json.loads(line)
                self._known[kept["batch"]] = [tuple(answer) for answer in kept["answers"]]
                self._before_s = kept["elapsed_s"]

    @property
    def elapsed_s(self) -> float:
        """Wall time since this was made, and that of the workers before until their last batch."""
        return self._before_s + time.perf_counter() - self._started

    def get(self, batch: str) -> list[Any] | None:
        """The answers of a batch, if they are known."""
        return self._known.get(batch)

    def put(self, batch: str, answers: Sequence[tuple[Any, ...]]) -> None:
        """Keep the answers of a batch; one that was kept survives the end of this process."""
        if self._file:
            line = {"batch": batch, "answers": answers, "elapsed_s": self.elapsed_s}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
