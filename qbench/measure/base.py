"""What a measure is given besides the engine: who it measures for, and where rows and progress go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from qbench.config import MeasureConfig
from qbench.config.base import Measure
from qbench.config.trials import Trial
from qbench.engine.base import Capability, Engine, Ints
from qbench.errors import QbenchError
from qbench.machine import energy
from qbench.machine.conditions import Sampler
from qbench.machine.energy import Meter
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
    start: int = 0
    """Which of the cell's processes this is."""
    journal: Path | None = None
    """A file for what a unit knows before it is done; it is removed then."""
    folder: Path | None = None
    """The model's, for what loads its tokenizer by itself."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


def make_sampler(engine: Engine) -> Sampler:
    """What looks at the machine around a timed region, and at the device if it is a GPU."""
    return Sampler(engine.about.gpu_uuid) if engine.about.gpu_uuid else Sampler()


def make_meter(engine: Engine) -> Meter | None:
    """What counts the energy of the engine's device; None where nothing does."""
    if engine.about.gpu_uuids:
        return energy.of_gpus(engine.about.gpu_uuids)
    return energy.of_packages() if engine.about.device == "cpu" else None


def random_prompt(engine: Engine, batch_size: int, tokens: int, seed: int) -> Ints:
    """Token ids [batch_size, tokens], uniform over the vocabulary, the same for every cell of a run."""
    return np.random.default_rng(seed).integers(engine.about.vocab_size, size=(batch_size, tokens))


def check_length(engine: Engine, tokens: int, what: str) -> None:
    """Refuse sequences that the model was not made for: some fail there, others compute something that means nothing.

    Raises:
        QbenchError: `tokens` are more than the model's positions; `what` names them.
    """
    most = engine.about.max_position_embeddings
    if most and tokens > most:
        raise QbenchError(f"{what}: {tokens} tokens, more than the model's context of {most}; ask for {most} or fewer")


def too_deep(engine: Engine, settings: Measure) -> tuple[str, tuple[str, ...]]:
    """Why an engine cannot take some units of a measure, and their names; none if it can take all."""
    units = [unit for unit in settings.units() if (trial := Trial.parse(unit)) and trial.depth]
    if not units or Capability.DEPTH in engine.can:
        return "", ()
    return "depths: tokens cannot be in the cache before the prompt with this engine or model", tuple(units)


def lacking(engine: Engine, needs: frozenset[Capability], settings: Measure) -> str | None:
    """Why an engine cannot take a measure that needs this, with these settings; None if it can."""
    if getattr(settings, "kv_cache", "16bit") != "16bit":
        needs |= {Capability.KV_CACHE}
    missing = sorted(needs - engine.can)
    return f"the engine cannot do what it needs: {', '.join(missing)}" if missing else None
