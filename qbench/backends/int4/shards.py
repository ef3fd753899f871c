"""Safetensors, one tensor at a time, by plain reads.

The pages of a memory map count as this process's memory until the whole file is unmapped; what is read into a tensor
is freed with it. The format: 8 bytes with the length of a JSON header, little-endian, the header, then the tensors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.errors import QbenchError

INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

CHUNK_BYTES = 4 << 20
"""Bytes that are read at once, and cast or copied to the device before the next."""

AGAIN = "copy or download the folder again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor stands in which file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: torch.Size
    start: int
    """Its first byte in the file."""

    def read(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on a device, in `dtype` or as it is stored. Beside it only `CHUNK_BYTES` are held.

        Raises:
            QbenchError: the file is gone or shorter than it was.
        """
        tensor = torch.empty(self.shape, dtype=dtype or self.dtype, device=device)
        flat, step = tensor.view(-1), CHUNK_BYTES // self.dtype.itemsize
        chunk = torch.empty(min(step, len(flat)) * self.dtype.itemsize, dtype=torch.uint8)
        held = memoryview(chunk.numpy().data)
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                for at in range(0, len(flat), step):
                    size = (min(at + step, len(flat)) - at) * self.dtype.itemsize
                    if file.readinto(held[:size]) != size:
                        raise QbenchError(f"{self.file}: ends within {self.name}; {AGAIN}")
                    flat[at : at + step].copy_(chunk[:size].view(self.dtype))
        except OSError as error:
            raise QbenchError(f"{self.file}: cannot be read ({error.strerror}); {AGAIN}") from error
        return tensor


def find_shards(folder: Path) -> list[Path]:
    """The files of a model: model.safetensors, or those that its index names.

    Raises:
        QbenchError: there is neither, or the index is damaged.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if not index.is_file():
        raise QbenchError(f"{folder}: holds neither model.safetensors nor {INDEX}; {AGAIN}")
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise QbenchError(f"{index}: not a readable index ({type(error).__name__}); {AGAIN}") from error


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file in the order of their bytes.

    Raises:
        QbenchError: the file is missing, truncated, damaged, or holds a dtype that is none of `DTYPES`.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 + length:
                raise QbenchError(f"{file}: is truncated within its header; {AGAIN}")
            header = json.loads(stream.read(length))
        stored = [_stored(file, 8 + length, name, e) for name, e in header.items() if name != "__metadata__"]
    except FileNotFoundError as error:
        raise QbenchError(f"{file}: this shard is missing; {AGAIN}") from error
    except OSError as error:
        raise QbenchError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QbenchError(f"{file}: is no safetensors file, or damaged ({type(error).__name__}); {AGAIN}") from error
    stored.sort(key=lambda tensor: tensor.start)
    for tensor in stored:
        if tensor.start + tensor.shape.numel() * tensor.dtype.itemsize > size:
            raise QbenchError(f"{file}: is truncated within {tensor.name}; {AGAIN}")
    return stored


def _stored(file: Path, data: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise QbenchError(f"{file}: {name} is stored as {entry['dtype']}; give a checkpoint in 16 or 32 bit")
    tensor = StoredTensor(
        name, file, DTYPES[entry["dtype"]], torch.Size(entry["shape"]), data + int(entry["data_offsets"][0])
    )
    if entry["data_offsets"][1] - entry["data_offsets"][0] != tensor.shape.numel() * tensor.dtype.itemsize:
        raise ValueError
    return tensor
