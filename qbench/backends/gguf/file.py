"""What a GGUF file holds, by its header: dimensions, vocabulary, and the type and size of every tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gguf import GGUFReader, LlamaFileType

from qbench.errors import QbenchError

LINEAR = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps|_shexp)?)\.weight")
"""Tensors that are linears of attention and MLP."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor in the file."""

    name: str
    type: str
    """By ggml's name: Q4_K, F16, …."""
    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        """Bits a weight of its type."""
        return self.bytes * 8 / self.weights


class File:
    """An open GGUF file; its tensors are mapped, not read.

    Raises:
        QbenchError: it is no GGUF file, of a version that is not known, or cut off.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self._what = path, what
        try:
            self._reader = GGUFReader(path)
        except Exception as error:  # whatever the reader stumbles over
            raise QbenchError(
                f"{what}: {path} is no whole GGUF file ({type(error).__name__}: {error}); copy or make it again"
            ) from error

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the file."""
        return tuple(
            Tensor(one.name, one.tensor_type.name, int(one.n_elements), int(one.n_bytes))
            for one in self._reader.tensors
        )

    @property
    def linears(self) -> tuple[Tensor, ...]:
        """Those of attention and MLP."""
        return tuple(tensor for tensor in self.tensors if LINEAR.fullmatch(tensor.name))

    @property
    def head(self) -> Tensor:
        """The output embedding, or the input embedding where it is both."""
        by_name = {tensor.name: tensor for tensor in self.tensors}
        return by_name.get("output.weight") or self._require(by_name, "token_embd.weight")

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it."""
        return str(self.value("general.architecture"))

    @property
    def file_type(self) -> str:
        """The quantization that its header names: Q4_K_M, F16, …; empty if it names none."""
        number = self.value("general.file_type")
        try:
            return str(LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            return ""

    def value(self, key: str) -> Any:
        """Of the header; None where it is not there. `{arch}` in the key stands for the architecture."""
        field = self._reader.get_field(key.replace("{arch}", self.architecture) if "{arch}" in key else key)
        return None if field is None else field.contents()

    def data(self, name: str) -> Any:
        """A tensor's bytes or numbers as the reader has them, rows first."""
        found = {one.name: one for one in self._reader.tensors}
        return self._require(found, name).data

    def _require(self, found: dict[str, Any], name: str) -> Any:
        if name not in found:
            raise QbenchError(f"{self._what}: {self.path} has no tensor {name}; give a GGUF file of a language model")
        return found[name]
