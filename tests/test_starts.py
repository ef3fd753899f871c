from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from qbench.analysis.between_runs import estimate, widened
from qbench.analysis.effects import SpeedRatio
from qbench.analysis.figures import RunSummary
from qbench.analysis.summary import summarize
from tests.support.made_up_run import cell, made_up_run, trials


def start(*speeds: float) -> RunSummary:
    """A run with a trial at batch 1 and one at batch 8."""
    rows = [row for size, speed in zip((1, 8), speeds, strict=False) for row in trials("int4", None, size, [speed])]
    return summarize(made_up_run([cell("int4"), *rows]))


def test_the_deviation_is_pooled_over_places() -> None:
    figures = np.log([[100, 500], [110, 520], [104, 470]])
    found = estimate([start(*np.exp(row)) for row in figures])
    assert found.freedom == 4
    assert found.deviation == pytest.approx(math.sqrt(figures.var(axis=0, ddof=1).mean()))
    ratio = widened(SpeedRatio(0.9, 0.89, 0.91), found, ("int4", 1), [90.0], 0.95)
    half = t.ppf(0.975, 4) * found.deviation * math.sqrt(4 / 3)
    middle = math.log(90) - figures[:, 0].mean()
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx([math.exp(middle + s) for s in (0, -half, half)])


def test_the_interval_is_never_narrower_than_that_of_the_trials() -> None:
    found = estimate([start(100), start(100.01)])
    ratio = widened(SpeedRatio(1.0, 0.8, 1.25), found, ("int4", 1), [100.0], 0.95)
    assert (ratio.low, ratio.high) == pytest.approx((0.8, 1.25), rel=1e-3)


def test_a_single_run_teaches_nothing() -> None:
    found = estimate([start(100, 500)])
    ratio = SpeedRatio(0.9, 0.89, 0.91)
    assert found.freedom == 0
    assert widened(ratio, found, ("int4", 1), [90.0], 0.95) is ratio
