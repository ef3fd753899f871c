"""Which trials of `throughput.csv` belong together; tables of older versions lack the columns that tell."""

from __future__ import annotations

from collections.abc import Iterable

from qbench.records.rows import ThroughputRow


def depth(trial: ThroughputRow) -> int:
    """Tokens in the cache before the prompt."""
    return trial.depth or 0


def at_depth(trials: Iterable[ThroughputRow], tokens: int = 0) -> list[ThroughputRow]:
    """The trials with so many tokens before the prompt."""
    return [trial for trial in trials if depth(trial) == tokens]


def by_batch_size(trials: Iterable[ThroughputRow]) -> dict[int, list[ThroughputRow]]:
    """The trials of each batch size, ascending."""
    found: dict[int, list[ThroughputRow]] = {}
    for trial in trials:
        found.setdefault(trial.batch_size, []).append(trial)
    return dict(sorted(found.items()))


def by_start(figures: Iterable[tuple[ThroughputRow, float | None]]) -> tuple[tuple[float, ...], ...]:
    """Figures of trials, where they have one, by the process of the cell that made them."""
    found: dict[int, list[float]] = {}
    for trial, figure in figures:
        if figure is not None:
            found.setdefault(trial.start or 0, []).append(figure)
    return tuple(tuple(found[start]) for start in sorted(found))
