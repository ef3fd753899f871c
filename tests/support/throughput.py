"""Trials measured in this process, with a sampler that finds what the test wants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qbench.config import ThroughputConfig
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.machine.conditions import Conditions
from qbench.measure import throughput
from qbench.measure.base import Context
from qbench.records.rows import Row, ThroughputRow

IDENTITY = {"run": "r", "model": "m", "backend": "fp16", "label": "fp16"}
SHORT = {"batch_sizes": [2], "seq_len": 12, "new_tokens": 4, "warmup": 0}


class Script:
    """A sampler that finds one condition after another, and notes when it was asked."""

    def __init__(self, validity: Sequence[str]) -> None:
        self._validity = iter(validity)
        self.calls: list[str] = []

    def sample(self) -> str:
        self.calls.append("sample")
        return "before"

    def since(self, before: str) -> Conditions:
        assert before == "before"
        self.calls.append("since")
        return Conditions(validity=next(self._validity), foreign_cpu=0.01, steal=None, cpu_mhz=2600)


def measured(loaded: LoadedModel, sampler: Script | None, folder: Path, **settings: Any) -> list[ThroughputRow]:
    emitted: list[Row] = []
    context = Context(
        identity=IDENTITY,
        emit=lambda *rows, unit: emitted.extend(rows),
        progress=lambda *_: None,
        seed=0,
        answers=folder,
    )
    throughput.measure(TorchEngine(loaded), ThroughputConfig.model_validate(SHORT | settings), context, sampler)
    return [row for row in emitted if isinstance(row, ThroughputRow)]
