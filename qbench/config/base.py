"""What all sections of the configuration share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names and labels become file names; this keeps them inside the results folder."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]


class Strict(BaseModel):
    """An immutable section of the configuration in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
