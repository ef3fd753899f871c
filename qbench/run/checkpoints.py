"""Quantized checkpoints, kept by content: what decides the weights decides the folder's name.

A checkpoint appears whole or not at all, and is verified by the hash of every file before it is used; a large file is
read for it only if it has been written since (`qbench.model.content`). One that is damaged is made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.errors import QbenchError
from qbench.model.content import cache_folder, file_hash, sha256
from qbench.records.files import write_atomically
from qbench.run import fingerprint

MANIFEST = "qbench-cache.json"


class Manifest(BaseModel):
    """What a cached checkpoint says of itself."""

    model_config = ConfigDict(frozen=True)

    key: str
    model: str
    """What people call it; other names of the same model find the same checkpoint."""
    facts: dict[str, Any]
    """What decides the weights, see `qbench.run.fingerprint.checkpoint_facts`."""
    quantize_s: float
    created: datetime
    files: dict[str, str]
    """SHA-256 of each, by path inside the folder."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint in the cache."""

    folder: Path
    manifest: Manifest

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def damaged(self, read: Callable[[Path], str] = sha256) -> list[str]:
        """Files that are missing or not what was written; `read` gives the hash of one."""
        paths = {name: self.folder / name for name in self.manifest.files}
        hashes = self.manifest.files
        return [name for name, path in paths.items() if not path.is_file() or read(path) != hashes[name]]


def folder() -> Path:
    """Where checkpoints are kept."""
    return cache_folder() / "checkpoints"


def entries() -> list[Entry]:
    """All checkpoints, the oldest first. A folder whose manifest cannot be read is none."""
    found = [_read(path) for path in folder().glob("*/") if not path.name.startswith(".")]
    return sorted((entry for entry in found if entry), key=lambda entry: entry.manifest.created)


def find(start: str) -> Entry:
    """The checkpoint whose key begins with `start`.

    Raises:
        QbenchError: there is none, or more than one.
    """
    fitting = [entry for entry in entries() if entry.manifest.key.startswith(start)]
    if len(fitting) != 1:
        problem = "is no checkpoint's key" if not fitting else f"begins the keys of {len(fitting)} checkpoints"
        raise QbenchError(f"{start}: {problem} in {folder()}; `qbench cache ls` shows them")
    return fitting[0]


def remove(entry: Entry) -> None:
    """Delete a checkpoint; a run that has just loaded it goes on."""
    shutil.rmtree(entry.folder)
    _lock_file(entry.manifest.key).unlink(missing_ok=True)


def obtain(
    facts: dict[str, Any], model: str, make: Callable[[Path], float], say: Callable[[str], None]
) -> tuple[Entry, bool]:
    """The checkpoint that `facts` describe, and whether it was there.

    Args:
        model: what people call it.
        make: writes the checkpoint into a folder that it may create, and returns the seconds that quantizing took.
        say: told what is found or done.

    Raises:
        QbenchError: the cache cannot be written.
    """
    key = fingerprint.key(facts)
    try:
        folder().mkdir(parents=True, exist_ok=True)
        # Two runs that need the same checkpoint make it once.
        with FileLock(_lock_file(key)):
            entry = _sound(key, say)
            return (entry, True) if entry else (_make(key, facts, model, make), False)
    except OSError as error:
        reason = error.strerror or error
        raise QbenchError(
            f"{folder()}: {reason}; make room (`qbench cache ls`), set QBENCH_CACHE to another folder, or cache: false"
        ) from error


def _lock_file(key: str) -> Path:
    return folder() / f".{key}.lock"


def _read(path: Path) -> Entry | None:
    try:
        return Entry(path, Manifest.model_validate_json((path / MANIFEST).read_bytes()))
    except (OSError, ValidationError):
        return None


def _sound(key: str, say: Callable[[str], None]) -> Entry | None:
    """The checkpoint, if it is there and whole; one that is damaged is removed."""
    path = folder() / key
    if not path.is_dir():
        return None
    say("verifying the cached checkpoint")
    entry = _read(path)
    damaged = entry.damaged(file_hash) if entry else [MANIFEST]
    if entry and not damaged:
        return entry
    say(f"the cached checkpoint is damaged ({damaged[0]}) and is made again")
    shutil.rmtree(path)
    return None


def _make(key: str, facts: dict[str, Any], model: str, make: Callable[[Path], float]) -> Entry:
    partial = folder() / f".{key}.partial"
    # Of a process that was ended: the lock says that nobody is at work on it.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        seconds = make(partial)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = Manifest(
            key=key,
            model=model,
            facts=facts,
            quantize_s=seconds,
            created=datetime.now(UTC),
            files={path.relative_to(partial).as_posix(): file_hash(path) for path in paths},
        )
        write_atomically(partial / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        _reach_disk(paths)
        partial.rename(folder() / key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Entry(folder() / key, manifest)


def _reach_disk(paths: list[Path]) -> None:
    """So that a renamed folder never holds files that a power failure emptied."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
