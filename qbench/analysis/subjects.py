"""How the cells' accuracies differ from the 16-bit one's, subject by subject."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qbench.analysis.formulas import count_flips
from qbench.analysis.paired import holm, mcnemar_p_value
from qbench.analysis.power import SIGNIFICANCE
from qbench.records.answers import mmlu_rows
from qbench.records.run import Run


@dataclass(frozen=True, slots=True)
class Difference:
    """Of a cell's accuracy to the 16-bit one's in a subject."""

    delta: float
    """A fraction."""
    real: bool | None
    """Whether it is more than chance, by McNemar's test corrected by Holm over all cells and subjects; None where the
    answers are not there."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject."""

    name: str
    n: int
    reference: float
    """Accuracy of the 16-bit cell, a fraction."""
    differences: Mapping[str, Difference]
    """By the cell's name; a cell that did not answer the subject's questions is not there."""


def subjects(run: Run, reference: str, labels: Sequence[str], names: Mapping[str, str]) -> tuple[Subject, ...]:
    """Every subject of the reference, in its order; none if no other cell has subjects."""
    others = [label for label in labels if label != reference]
    if reference not in labels or not others:
        return ()
    accuracies = {label: _by_subject(run, label) for label in others}
    tested = _tests(run, reference, others)
    return tuple(
        Subject(
            name=subject,
            n=n,
            reference=accuracy,
            differences={
                names[label]: Difference(found[subject][1] - accuracy, tested.get((label, subject)))
                for label, found in accuracies.items()
                if subject in found
            },
        )
        for subject, (n, accuracy) in _by_subject(run, reference).items()
    )


def _by_subject(run: Run, label: str) -> dict[str, tuple[int, float]]:
    """Questions of each subject, and a cell's accuracy."""
    return {row.subject: (row.n, row.accuracy) for row in mmlu_rows(run.accuracy, label)}


def _tests(run: Run, reference: str, labels: Sequence[str]) -> dict[tuple[str, str], bool]:
    """By cell and subject, whether they differ."""
    if reference not in run.answers:
        return {}
    pairs: defaultdict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)
    for label in labels:
        own = run.answers.get(label, {})
        for question, before in run.answers[reference].items():
            if question in own:
                pairs[label, question[0]].append((before, own[question]))
    flips = {key: count_flips(*np.array(found, dtype=bool).T) for key, found in pairs.items()}
    p_values = holm([mcnemar_p_value(found) for found in flips.values()])
    return {key: p_value < SIGNIFICANCE for key, p_value in zip(flips, p_values, strict=True)}
