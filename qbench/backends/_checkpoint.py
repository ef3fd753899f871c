"""A ready checkpoint that `checkpoint:` names: a folder, or a repository of the hub. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from qbench.config import Backend
from qbench.errors import QbenchError
from qbench.model.find import MODEL_FILES, check_weights, read_config


def fetch(name: str, label: str) -> Path:
    """The folder of a checkpoint with safetensors, fetched from the hub if need be.

    Raises:
        QbenchError: it is neither there nor can it be fetched, or it holds no safetensors.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
        except Exception as error:
            raise QbenchError(
                f"{label}: checkpoint {name} is neither a folder nor a hub repository that can be fetched "
                f"({type(error).__name__})"
            ) from error
    check_weights(folder, f"backends.{label}.checkpoint", "copy or download the folder again")
    return folder


class ReadyMade(Backend):
    """A kind that only loads: its checkpoint says how the weights are quantized, and `config.json` is read for it."""

    checkpoint: str = Field(description="folder or hub id of a checkpoint that was quantized from the run's model")

    def resolved(self) -> Self:
        folder = Path(self.checkpoint).expanduser()
        if not folder.is_dir():  # of the hub; `load` fetches it
            return self
        found = self.settings(self.scheme(folder), folder)
        for key, value in found.items():
            asked = getattr(self, key)
            if key in self.model_fields_set and asked != value:
                raise QbenchError(
                    f"backends.{self.label}: {key} {asked} is asked for, but {folder} was quantized with {key} "
                    f"{value}; remove `{key}:`"
                )
        return self.model_copy(update=found)

    def settings(self, scheme: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The options that a checkpoint's scheme decides.

        Raises:
            QbenchError: it is one that cannot be loaded.
        """
        raise NotImplementedError

    def scheme(self, folder: Path) -> dict[str, Any]:
        """The section of config.json that says how the weights are quantized.

        Raises:
            QbenchError: there is none, or it is of another method than this kind's.
        """
        scheme = read_config(folder).get("quantization_config")
        method = scheme.get("quant_method") if isinstance(scheme, dict) else None
        if not isinstance(scheme, dict) or method != self.kind:
            raise QbenchError(
                f"backends.{self.label}: {folder / 'config.json'} says quant_method {method}, not {self.kind}: name a "
                "checkpoint of this backend's method"
            )
        return scheme
