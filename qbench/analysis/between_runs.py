"""How far speeds move from one run to the next, learnt from several runs of the same thing.

The trials of a cell share a process: where its memory lies, how warm the machine is and who its neighbours are is the
same for all of them, so that their interval is too narrow for another start. Several starts within a run
(`qbench.analysis.between_starts`) tell most of that, though not what changes from one day to the next.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qbench.analysis.effects import SpeedRatio
from qbench.analysis.figures import RunSummary

Place = tuple[str, int]
"""A cell, by label, and a batch size."""


@dataclass(frozen=True, slots=True)
class BetweenRuns:
    """Several runs of the same thing."""

    means: dict[Place, tuple[float, ...]]
    """Mean log tokens/s of each run that has trials there."""
    deviation: float
    """Standard deviation of such a mean, pooled over all places: √(Σ (mean − place's mean)² ÷ freedom)."""
    freedom: int
    """Σ (runs − 1) over all places; 0 if no place was measured twice."""


def estimate(runs: Sequence[RunSummary]) -> BetweenRuns:
    """From the ok trials of every cell and batch size; starts of a run count alike."""
    means: dict[Place, tuple[float, ...]] = {}
    for cell in (cell for run in runs for cell in run.cells):
        for speed in cell.speeds:
            if speed.samples:
                place = (cell.label, speed.batch_size)
                means[place] = (*means.get(place, ()), statistics.fmean(map(math.log, speed.samples)))
    freedom = sum(len(found) - 1 for found in means.values())
    squares = sum((mean - statistics.fmean(found)) ** 2 for found in means.values() for mean in found)
    return BetweenRuns(means, math.sqrt(squares / freedom) if freedom else 0.0, freedom)


def widened(
    ratio: SpeedRatio, runs: BetweenRuns, place: Place, speeds: Sequence[float], confidence: float
) -> SpeedRatio:
    """The ratio of `speeds` to the mean of all starts, with the interval of one more start.

    exp(d ± h), d = mean log speed − mean over the k starts, h = t s √(1 + 1/k) with t of `freedom` degrees of freedom;
    at least as wide as `ratio`, the interval of the trials. `ratio` itself if no place was measured twice.
    """
    if not runs.freedom:
        return ratio
    from qbench.compat.scipy import stdtrit

    means = runs.means[place]
    low, high = ratio.bounds
    half = float(stdtrit(runs.freedom, (1 + confidence) / 2)) * runs.deviation * math.sqrt(1 + 1 / len(means))
    half = max(half, math.log(high / low) / 2)
    difference = statistics.fmean(map(math.log, speeds)) - statistics.fmean(means)
    return SpeedRatio(*(math.exp(difference + shift) for shift in (0, -half, half)))
