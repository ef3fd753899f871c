"""What a level's requests have left on disk while it runs: a line of JSON each, as they end.

A level that is interrupted is measured again, since its load cannot be taken up in the middle; its lines stay until the
measure is whole, for whoever wants to know what happened. A search goes on after the last of its levels that was whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qbench.records.files import end_last_line
from qbench.records.rows import LoadRow, RequestRow


class Whole(NamedTuple):
    """A level that has ended, with its requests."""

    level: LoadRow
    requests: list[RequestRow]


class Journal:
    """The file of one unit; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._file = None
        self.levels: dict[str, Whole] = {}
        """Those that were whole when the file was opened, by name."""
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            end_last_line(path)
            self.levels = {one.level.level: one for one in _read(path)}
            self._file = path.open("a", encoding="utf-8")

    def put(self, row: RequestRow | LoadRow) -> None:
        """Keep a row; it survives the end of this process."""
        if self._file:
            kind = "request" if isinstance(row, RequestRow) else "level"
            self._file.write(json.dumps({kind: row.model_dump(mode="json")}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def _read(path: Path) -> Iterator[Whole]:
    requests: dict[str, dict[int, RequestRow]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError, KeyError):  # a line that its writer was cut off in, or of another version's columns
            kept = json.loads(line)
            if "request" in kept:
                row = RequestRow.model_validate(kept["request"])
                # What another process had begun of the same level is replaced, number by number.
                requests.setdefault(row.level, {})[row.number] = row
            else:
                level = LoadRow.model_validate(kept["level"])
                own = list(requests.pop(level.level, {}).values())
                yield Whole(level, own)
