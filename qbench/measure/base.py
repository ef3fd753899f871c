"""What a measure is given besides the loaded model: who it measures for, and where rows and progress go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qbench.backends.base import LoadedModel
from qbench.config import MeasureConfig
from qbench.machine.conditions import Sampler
from qbench.records.rows import Identity, Row


@dataclass(frozen=True, slots=True)
class Reference:
    """The 16-bit cell that the others are compared with."""

    label: str
    own: bool
    """Whether the cell that is measured is that one."""
    path: Path
    """Its log-probabilities, see `qbench.measure.divergence`."""
    model_fingerprint: str
    """Of the model that all cells are made of."""


class Emit(Protocol):
    """Keeps rows, durably: those of a unit of the measure at once and together, others when the measure is done."""

    def __call__(self, *rows: Row, unit: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """A measure's way back to the run."""

    identity: Identity
    """Pass on to every row: `ThroughputRow(**context.identity, …)`."""
    emit: Emit
    """emit(row, …, unit="b8/t0"), where units are those of the measure's settings."""
    progress: Callable[[str, int, int], None]
    """progress(what, done, total): what a person watching would like to know; never called in a timed region."""
    seed: int
    answers: Path
    """Folder for the run's answer files."""
    measures: MeasureConfig = field(default_factory=MeasureConfig)
    """All that the run measures, for a measure that repeats another."""
    reference: Reference | None = None
    """None where nothing is compared."""
    wants: Callable[[str], bool] = lambda unit: True
    """Whether a unit is to be measured; the others are kept from before."""
    journal: Path | None = None
    """A file for what a unit knows before it is done; it is removed then."""


def make_sampler(device: torch.device) -> Sampler:
    """What looks at the machine around a timed region, and at the device if it is a GPU."""
    if device.type != "cuda":
        return Sampler()
    return Sampler(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def random_prompt(loaded: LoadedModel, batch_size: int, tokens: int, seed: int) -> Tensor:
    """Token ids [batch_size, tokens], uniform over the vocabulary, the same for every cell of a run."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = loaded.model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, (batch_size, tokens), generator=generator)
    return ids.to(loaded.device)
