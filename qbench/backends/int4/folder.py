"""Writing a model's folder: small files, safetensors shards and their index, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qbench.backends.int4.shards import INDEX
from qbench.errors import QbenchError
from qbench.model.content import file_hash
from qbench.model.find import MODEL_FILES

SHARD_BYTES = 1 << 30
"""A shard is held in memory until it is written, and ends before the tensor that would make it larger."""


class ShardWriter:
    """Safetensors files that are written as they fill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, Tensor] = {}
        self._index: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor, if need be after writing those before it."""
        if sum(pending.nbytes for pending in self._pending.values()) + tensor.nbytes > SHARD_BYTES:
            self._flush()
        self._pending[name] = tensor.cpu().contiguous()
        self._bytes += tensor.nbytes

    def close(self) -> dict[str, str]:
        """Write the last shard and the index; the hash of every shard by its name."""
        self._flush()
        content = {"metadata": {"total_size": self._bytes}, "weight_map": self._index}
        (self._folder / INDEX).write_text(json.dumps(content, indent=2), encoding="utf-8")
        for name in self._hashes:  # safetensors makes files that only their owner may read
            shutil.copymode(self._folder / INDEX, self._folder / name)
        return self._hashes

    def _flush(self) -> None:
        if self._pending:
            name = f"model-{len(self._hashes) + 1:05d}.safetensors"
            save_file(self._pending, self._folder / name, metadata={"format": "pt"})
            self._index.update(dict.fromkeys(self._pending, name))
            self._pending = {}
            self._hashes[name] = file_hash(self._folder / name)


def copy_small_files(source: Path, folder: Path) -> None:
    """Tokenizer, chat template and generation settings."""
    for pattern in MODEL_FILES:
        for file in source.glob(pattern):
            if file.suffix != ".safetensors" and file.name not in ("config.json", INDEX):
                shutil.copyfile(file, folder / file.name)


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, and is gone if the end is not reached."""
    partial, old = (out.with_name(f".{out.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            _sync(file)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        _sync(out.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QbenchError(f"{out}: the checkpoint cannot be written ({reason}); choose another --out") from error
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
