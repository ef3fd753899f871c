"""What a checkpoint of `qbench quantize` says of itself, in the `quantization_config` of its config.json.

Read without torch: a run takes the settings of a cell from here before anything is loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.config import GroupSize, Name
from qbench.errors import QbenchError

METHOD: Final = "qbench_int4"
FORMAT_VERSION = 1


class Manifest(BaseModel):
    """How the weights were quantized, of which model, and the hash of every shard."""

    model_config = ConfigDict(frozen=True)

    quant_method: Literal["qbench_int4"] = METHOD
    format_version: int = FORMAT_VERSION
    bits: Literal[3, 4, 8]
    group_size: GroupSize | Literal[0]
    symmetric: bool
    search: Literal["mse", "none"]
    calibrated: bool = False
    source_fingerprint: str
    """`qbench.model.find.fingerprint` of the 16-bit model's folder."""
    qbench_version: str
    shards: dict[Name, str]
    """SHA-256 of each file, in hex, by its name."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        QbenchError: there is none, it is damaged, of another quantizer or of a newer format.
    """
    file = folder / "config.json"
    if not folder.is_dir():
        raise QbenchError(f"checkpoint: no folder {folder}; `qbench quantize CONFIG --out {folder}` makes one")
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        found: dict[str, Any] = content.get("quantization_config") or {}
        method, version = found.get("quant_method"), found.get("format_version")
    except (OSError, ValueError, AttributeError) as error:
        raise QbenchError(f"{file}: missing or damaged ({type(error).__name__}); copy the folder again") from error
    if method != METHOD:
        held = f"weights of quant_method {method}" if method else "weights that are not quantized"
        raise QbenchError(
            f"{file}: this folder holds {held}; `checkpoint:` takes what `qbench quantize` wrote ({METHOD})"
        )
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise QbenchError(
            f"{file}: format_version {version} is newer than this qbench reads ({FORMAT_VERSION}); "
            "update qbench, or quantize again with this one"
        )
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise QbenchError(f"{file}: quantization_config is damaged ({wrong}); quantize the model again") from error
