"""`requests.parquet`: every request that a run has sent to its servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qbench.errors import QbenchError
from qbench.records.rows import RequestRow

FILE = "requests.parquet"

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("run", "model", "backend", "label", "host", "level")),
        ("number", pa.int64()),
        ("phase", pa.string()),
        *((name, pa.float64()) for name in ("planned_s", "sent_s", "ended_s", "client_delay_s")),
        *((name, pa.int64()) for name in ("asked_tokens", "prompt_tokens", "output_tokens")),
        ("error", pa.string()),
        ("detail", pa.string()),
        ("token_s", pa.list_(pa.float64())),
    ]
)
"""The fields of `RequestRow` in order; a column without any value keeps its type."""


def write(path: Path, rows: Sequence[RequestRow]) -> None:
    """Replace the file, whole or not at all.

    Raises:
        OSError: the folder is not writable or the disk is full; the old content still stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    pq.write_table(pa.Table.from_pylist([row.model_dump() for row in rows], schema=_SCHEMA), partial)
    partial.replace(path)


def read(folder: Path) -> list[RequestRow]:
    """The requests of a run's folder; none where it has sent none.

    Raises:
        QbenchError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [RequestRow.model_validate(row) for row in pq.read_table(path).to_pylist()]
    except (OSError, ValueError) as error:
        raise QbenchError(f"{path}: is damaged ({error}); the run makes it again from cells/") from error
