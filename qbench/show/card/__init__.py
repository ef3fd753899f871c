"""The model card of a quantized checkpoint, in the hub's format, from a run's figures.

`metadata` makes the front matter, `body` the Markdown below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qbench.analysis.equivalence import MARGIN
from qbench.analysis.summary import summarize
from qbench.errors import QbenchError
from qbench.records.rows import GenerationRow
from qbench.records.run import Run
from qbench.show.card.body import body
from qbench.show.card.metadata import metadata
from qbench.text import one_line, suggestion


@dataclass(frozen=True, slots=True)
class Card:
    """A model card."""

    metadata: dict[str, Any]
    """The front matter."""
    body: str
    """Markdown."""

    @property
    def text(self) -> str:
        """The whole file."""
        from huggingface_hub import CardData

        front = CardData(**self.metadata).to_yaml()
        return f"---\n{front}\n---\n\n{self.body}"


def make_card(
    run: Run, label: str, generations: list[GenerationRow], *, allow_partial: bool = False, margin: float = MARGIN
) -> Card:
    """The card of a cell; `margin` is the loss of accuracy, a fraction, that counts as none.

    Raises:
        QbenchError: the run has no such cell, or it did not end ok.
    """
    summary = summarize(run, allow_partial=allow_partial, margin=margin)
    cell = summary.cell(label)
    if cell is None:
        labels = [one.label for one in summary.cells]
        there = one_line(", ".join(labels))
        raise QbenchError(f"--backend {label}: no such cell{suggestion(label, labels)} (there are: {there})")
    # Older runs called a cell oom of which a larger batch did not fit.
    if cell.status != "ok" and not (cell.status == "oom" and any(speed.trials for speed in cell.speeds)):
        raise QbenchError(f"--backend {label}: the cell ended {one_line(cell.status)}; a card needs one that is ok")
    own = [one for one in generations if one.label == label]
    return Card(metadata(run, cell), body(summary, cell, own))


def read_generations(folder: Path) -> list[GenerationRow]:
    """The rows of a run's `generations.jsonl`; none if there is no such file.

    Raises:
        QbenchError: a line is damaged.
    """
    path = folder / "generations.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    try:
        return [GenerationRow.model_validate_json(line) for line in lines if line]
    except ValidationError as error:
        raise QbenchError(f"{path}: a line is damaged; remove it, or the file") from error
