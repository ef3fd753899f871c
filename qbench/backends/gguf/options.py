"""What a configuration may say of a gguf cell, and what is known of its memory before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from qbench import DISTRIBUTION
from qbench.config import Backend
from qbench.config.backends import Engine
from qbench.config.target import DeviceType
from qbench.errors import QbenchError
from qbench.model import ggml
from qbench.model.architecture import rope_of
from qbench.model.ggml import IMATRIX_QUANTS, QUANTS, Quant

FILE = "model.gguf"
"""Name of the file in the folder of a cached checkpoint."""

DEFAULT: Quant = "Q4_K_M"

MODEL_TYPES = ("llama", "mistral", "qwen2")
"""What `convert` writes, by `model_type`."""

UNQUANTIZED = ("F16", "BF16")

ROPE_TYPES = ("default", "linear", "llama3")

ELSEWHERE = "convert it with llama.cpp's convert_hf_to_gguf.py and give the result as `file:`"


class GGUF(Backend):
    """llama.cpp on a GGUF file: one of its own quantizations of the model, or a file made elsewhere."""

    title: ClassVar[str] = "llama.cpp on a GGUF file, written from the model or ready"
    devices: ClassVar[str] = "CPU"
    device_types: ClassVar[tuple[DeviceType, ...]] = ("cpu",)
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[gguf]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "llama-cpp-python", "gguf")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "llama_cpp", "gguf")
    quantization: ClassVar[tuple[str, ...]] = ("quant", "imatrix")
    engine: ClassVar[Engine] = "llama_cpp"
    color: ClassVar[str | None] = "#8c510a"
    hub_library: ClassVar[str] = "gguf"
    kind: Literal["gguf"] = "gguf"
    quant: Quant | None = Field(
        default=None, description="llama.cpp's name of the quantization; Q4_K_M unless `file` is given"
    )
    imatrix: bool = Field(
        default=False, description="true: errors weigh by an importance matrix, collected on the calibration text"
    )
    file: Path | None = Field(default=None, description="a GGUF file of the same model, made elsewhere")

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("quant") and data.get("file"):
            raise ValueError("both quant and file: a file is quantized already; give one of them")
        return data if data.get("quant") or data.get("file") else {**data, "quant": DEFAULT}

    @model_validator(mode="after")
    def _quant_and_imatrix_fit(self) -> Self:
        if self.imatrix and self.file:
            raise ValueError("imatrix: a file is quantized already; remove it, or give quant instead of file")
        if self.imatrix and self.quant in UNQUANTIZED:
            raise ValueError(f"imatrix: {self.quant} quantizes nothing; remove it, or choose another quant")
        if self.quant in IMATRIX_QUANTS and not self.imatrix:
            raise ValueError(f"quant: {self.quant} needs an importance matrix; add `imatrix: true`")
        return self

    @property
    def calibrates(self) -> bool:
        return self.imatrix and self.file is None

    @property
    def weight_bits(self) -> int:
        return ggml.bits(self.quant) if self.quant else 4

    def known_quant(self) -> Quant:
        """The quantization that is asked for, or that of the file.

        Raises:
            QbenchError: what the file is cannot be read here, or it is none of `qbench.model.ggml.QUANTS`.
        """
        if self.quant:
            return self.quant
        assert self.file is not None, "one of both"
        try:
            from qbench.backends.gguf.file import File
        except ImportError as error:
            raise QbenchError(f"backends.{self.label}.file: cannot be read without gguf; {self.install}") from error
        found = File(self.file.expanduser(), f"backends.{self.label}.file").file_type
        if found not in QUANTS:
            raise QbenchError(
                f"backends.{self.label}.file: the memory of {found or 'a file without a quantization'} cannot be "
                f"predicted (known: {', '.join(QUANTS)})"
            )
        return next(quant for quant in QUANTS if quant == found)

    @property
    def makes_checkpoint(self) -> bool:
        return self.file is None

    def with_checkpoint(self, folder: Path) -> Self:
        return self.model_copy(update={"file": folder / FILE})

    def resolved(self) -> Self:
        if self.file and not self.file.expanduser().is_file():
            raise QbenchError(f"backends.{self.label}.file: no file {self.file}")
        return self

    def check_model(self, content: Mapping[str, Any]) -> None:
        """Refuse a model of an architecture that is not written here, unless a file of it is given."""
        if self.file:
            return
        problem = unknown_part(content)
        if problem:
            raise QbenchError(f"backends.{self.label}: {problem} is not written as GGUF here; {ELSEWHERE}")

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        """llama.cpp quantizes tensor by tensor, in float32; what reads the calibration text is there in 16 bit."""
        if self.file:
            return weight_bytes
        return max(weight_bytes, 4 * 2 * largest_linear, 2 * parameters if self.calibrates else 0)


def unknown_part(content: Mapping[str, Any]) -> str | None:
    """What of a config.json `convert` does not know, in words; None if it knows all of it."""
    kind = content.get("model_type")
    if kind not in MODEL_TYPES:
        return f"model_type {kind}"
    rope = rope_of(content)["rope_type"]
    if rope not in ROPE_TYPES:
        return f"rope_type {rope}"
    if content.get("hidden_act", "silu") != "silu":
        return f"hidden_act {content['hidden_act']}"
    return None
