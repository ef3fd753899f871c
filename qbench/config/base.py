"""What all sections of the configuration share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names and labels become file names; this keeps them inside the results folder."""

Name = Annotated[
    str,
    Field(pattern=NAME_PATTERN, max_length=80, description="a letter or digit, then letters, digits, '.', '_' or '-'"),
]


class Strict(BaseModel):
    """An immutable section of the configuration in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(Strict):
    """What a cell asks of a node with `--executor ray`; a local cell has the whole machine."""

    cpus: float | None = Field(default=None, ge=0, description="a whole node's unless given, or a GPU's share of them")
    gpus: float | None = Field(default=None, ge=0, description="1 on CUDA unless given, else 0")
    memory_gib: float | None = Field(default=None, gt=0, description="of the node, to find room; enforces nothing")
    custom: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="resources that nodes were started with, e.g. {h100: 1}"
    )


class Measure(Strict):
    """Settings of one measure."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that decide its figures, besides those of the backend."""
    countable: ClassVar[tuple[str, ...]] = ()
    """Settings that say only how many units there are: more of them change nothing that was measured."""
    repeats: ClassVar[tuple[str, ...]] = ()
    """Other measures whose settings it takes over."""

    def used_libraries(self, unit: str = "") -> tuple[str, ...]:
        """`libraries`, and those that a setting brings in, of a unit or of all."""
        return self.libraries

    def units(self) -> tuple[str, ...]:
        """Names of the parts that are measured and kept by themselves; one without a name if it is kept whole."""
        return ("",)

    def data_files(self, unit: str) -> dict[str, list[Path]]:
        """By setting, the files of the user's that a unit reads: their content decides its figures, not their place."""
        return {}

    def hub_datasets(self) -> dict[str, str]:
        """By setting, the repositories of data on the hub that it reads."""
        return {}
