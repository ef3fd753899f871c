"""Cells that measure perplexity in this process, and their log-probabilities by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qbench.config import PerplexityConfig
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.measure import perplexity
from qbench.measure.base import Context, Reference
from qbench.records.rows import PerplexityRow, Row

WINDOW = 16


@dataclass
class Cell:
    """A cell of a run whose files lie in `folder`, and what it gave."""

    folder: Path
    label: str = "fp16"
    fingerprint: str = "f"
    rows: list[PerplexityRow] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def logprobs(self) -> Path:
        return self.folder / "reference" / "logprobs.safetensors"

    def measure(self, loaded: LoadedModel, **settings: object) -> PerplexityRow:
        context = Context(
            identity={"run": "r", "model": "m", "backend": "fp16", "label": self.label},
            emit=self._keep,
            progress=lambda *step: self.steps.append(step),
            seed=0,
            answers=self.folder,
            reference=Reference("fp16", self.label == "fp16", self.logprobs, self.fingerprint),
        )
        perplexity.measure(TorchEngine(loaded), PerplexityConfig.model_validate(settings), context)
        return self.rows[-1]

    def _keep(self, row: Row) -> None:
        assert isinstance(row, PerplexityRow)
        self.rows.append(row)


@torch.no_grad()
def logprobs_by_hand(loaded: LoadedModel, tokens: torch.Tensor) -> torch.Tensor:
    """float64 [windows, window - 1, vocabulary], of a float64 copy of the model."""
    exact = copy.deepcopy(loaded.model).double()
    return torch.stack([exact(window[None]).logits[0, :-1].log_softmax(-1) for window in tokens])
