"""Writing files whole or not at all, and removing what a run made, but nothing that it only leads to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text`, whole or not at all.

    Raises:
        OSError: the folder is not writable or the disk is full; the old content still stands.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a run that was killed; or a link, which would be followed
    with partial.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def end_last_line(path: Path) -> None:
    """End a line that a writer was cut off in, so that the next line is not lost with it."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there; of a link only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
