"""Which differences between the accuracies of a run's cells are real: their answers to the same questions, as pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from qbench.analysis.formulas import Flips, count_flips
from qbench.analysis.paired import holm, mcnemar_p_value
from qbench.records.run import Run

SIGNIFICANCE = 0.05
"""A corrected p-value from here on is within noise."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second of two cells against the first."""

    flips: Flips
    p_value: float
    """Exact McNemar."""
    p_holm: float
    """Corrected by Holm over all pairs that were compared at once."""
    below_noise_floor: bool | None
    """Whether the difference is no larger than numerics alone make; None if the run has not measured that."""

    @property
    def differs(self) -> bool:
        """Whether the difference is taken for real."""
        return self.p_holm < SIGNIFICANCE and not self.below_noise_floor


def reference_label(run: Run) -> str | None:
    """The cell that others are compared with: the first of 16 bits; None if there is none."""
    labels = run.cells.loc[run.cells["bits"] == 16, "label"]
    return str(labels.iloc[0]) if len(labels) else None


def compare(run: Run, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Comparison]:
    """Compare pairs of cells on the questions that both answered; a pair without any is left out."""
    flips = {pair: found for pair in pairs if (found := _flips(run, *pair))}
    p_values = [mcnemar_p_value(found) for found in flips.values()]
    floor = noise_floor(run)
    return {
        pair: Comparison(found, p_value, p_holm, None if floor is None else is_below(found, floor))
        for (pair, found), p_value, p_holm in zip(flips.items(), p_values, holm(p_values), strict=True)
    }


def tied(run: Run, labels: Iterable[str]) -> set[frozenset[str]]:
    """The pairs among these cells whose accuracies do not differ; Holm's correction is over all pairs of them."""
    compared = compare(run, combinations(labels, 2))
    return {frozenset(pair) for pair, comparison in compared.items() if not comparison.differs}


def noise_floor(run: Run) -> Flips | None:
    """What numerics alone move: the reference against itself at another batch size; None if it was not measured."""
    rows = run.noise[run.noise["label"] == reference_label(run)]
    if rows.empty:
        return None
    row = rows.iloc[-1]
    return Flips(int(row["n"]), int(row["right_to_wrong"]), int(row["wrong_to_right"]))


def answer_flips(first: pd.Series[bool], second: pd.Series[bool]) -> Flips | None:
    """Of two cells' answers, indexed as in `Run.answers`: on the questions in both; None without any."""
    common = pd.concat([first, second], axis=1, join="inner", keys=["first", "second"])
    return count_flips(common["first"].to_numpy(bool), common["second"].to_numpy(bool)) if len(common) else None


def _flips(run: Run, first: str, second: str) -> Flips | None:
    if first not in run.answers or second not in run.answers:
        return None
    return answer_flips(run.answers[first], run.answers[second])


def is_below(flips: Flips, floor: Flips) -> bool:
    """No larger share of answers flips, or the accuracy moves no further, than from one batch size to another."""
    if not floor.flipped:
        return False
    return flips.flipped / flips.n <= floor.flipped / floor.n or abs(flips.delta) <= abs(floor.delta)
