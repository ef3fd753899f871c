"""What can be said of a cell's accuracy against the reference's, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qbench.analysis.effects import Accuracy
from qbench.analysis.equivalence import Verdict
from qbench.analysis.figures import CellSummary
from qbench.analysis.paired import Comparison
from qbench.analysis.power import POWER
from qbench.show.phrases import p_words
from qbench.text import MISSING, signed

DIVERGENCE = "KL says how far predictions are from those of 16 bit, and not which backend does a task better"
"""Beside every column of divergences."""


def difference_words(accuracy: Accuracy | None, *, interval: bool = True) -> str:
    """The verdict on a cell's accuracy: see `comparison_words`; empty if there is none."""
    if accuracy is None or accuracy.difference is None:
        return ""
    found = accuracy.difference
    common = f" on {found.flips.n:,} common questions" if found.flips.n < accuracy.n else ""
    floor = "; below the noise floor" if found.below_noise_floor else ""
    return comparison_words(found, interval=interval) + floor + common + (", partial" if accuracy.partial else "")


def comparison_words(found: Comparison, *, interval: bool) -> str:
    """`worse by 0.6 points [0.1, 1.1], p = 0.02`, `no worse than 1 point: −0.1 points [−0.4, +0.2]` or `inconclusive: a
    loss of up to 1.3 points cannot be excluded`; without its interval only the words before it.

    Points are percent of the questions, p is McNemar's after Holm's correction.
    """
    p_value = found.p_holm if interval else None
    return verdict_words(found.verdict, found.flips.delta, found.interval, found.margin, p_value)


def verdict_words(
    verdict: Verdict, delta: float, interval: tuple[float, float], margin: float, p_value: float | None
) -> str:
    """The words of `comparison_words`, of fractions; the short ones without a p-value."""
    if verdict is Verdict.INCONCLUSIVE:
        least = math.ceil(-1000 * interval[0]) / 10
        return "inconclusive" + ("" if p_value is None else f": a loss of up to {least} points cannot be excluded")
    points = [100 * value for value in (delta, *interval)]
    # One decimal says enough unless it says 0.0 of something else.
    decimals = 1 if min(map(abs, points)) >= 0.05 else 2
    if verdict is Verdict.NO_WORSE:
        found, low, high = (signed(value, decimals) for value in points)
        return margin_words(margin) + ("" if p_value is None else f": {found} points [{low}, {high}]")
    found, *ends = (f"{abs(value):.{decimals}f}" for value in points)
    words = f"{verdict} by {found} points"
    return words if p_value is None else f"{words} [{', '.join(sorted(ends, key=float))}], {p_words(p_value)}"


def margin_words(margin: float) -> str:
    """`no worse than 1 point`."""
    return f"no worse than {100 * margin:g} point{'' if margin == 0.01 else 's'}"


def detectable_words(accuracy: Accuracy | None) -> str:
    """`0.4`, in points: the smallest difference that the run would have shown."""
    found = accuracy.difference if accuracy else None
    return f"{100 * found.detectable:.2g}" if found else MISSING


def settled_by(needed: int | None, unit: str) -> str:
    """`about 9,000 questions would settle it`, if the figures stay as they are."""
    if needed is None:
        return f"no number of {unit} would settle it while the figures stay as they are"
    # Two digits: it is an estimate from an estimate.
    rounded = math.ceil(needed / (step := 10 ** max(0, len(str(needed)) - 2))) * step
    return f"about {rounded:,} {unit} would settle it"


def reading(cells: Sequence[CellSummary]) -> list[str]:
    """How verdicts and divergences are to be read, a line each; none where there are none."""
    differences = [
        (cell.name, cell.accuracy.difference) for cell in cells if cell.accuracy and cell.accuracy.difference
    ]
    effects = [(name, found.flips.design_effect) for name, found in differences if found.flips.design_effect > 1]
    found = []
    if differences:
        found.append(
            "verdicts: by intervals that hold together with 95 %, and McNemar's exact test, corrected by Holm; "
            f"detectable: in points, what these questions show with a probability of {POWER:g}"
        )
    if effects:
        listed = ", ".join(f"{name} {effect:.1f}" for name, effect in effects)
        found.append(
            f"questions are clustered by subject, and the variance is cluster-robust (design effect): {listed}"
        )
    if any(cell.text and cell.text.kl_mean is not None for cell in cells):
        found.append(DIVERGENCE)
    return found
