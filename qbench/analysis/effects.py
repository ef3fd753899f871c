"""Speed and accuracy of two cells, of one run or of two, with what chance allows. Pure functions.

`qbench.analysis.stats` compares the cells of a run with its 16-bit cell. Here any two cells are compared, also such as
have only one trial, or did not keep their answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from qbench.analysis.compare import answer_flips
from qbench.analysis.formulas import Flips, speedup, wilson_interval
from qbench.analysis.paired import delta_interval, mcnemar_p_value
from qbench.analysis.validity import SPREAD_BOUND
from qbench.records.answers import mmlu_rows
from qbench.records.run import Run

PLAIN_CACHE = "16bit"
"""The cache that accuracy is always measured over, and every speed of runs that knew no other."""


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """How many times as fast the second of two cells is as the first."""

    ratio: float
    low: float | None
    high: float | None
    """The ends of `qbench.analysis.formulas.speedup`'s interval; None where one of the two has a single trial."""

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; without one, what trials may be apart before they are called unstable, either way."""
        if self.low is None or self.high is None:
            return self.ratio / (1 + SPREAD_BOUND), self.ratio * (1 + SPREAD_BOUND)
        return self.low, self.high

    @property
    def differs(self) -> bool:
        """Whether 1 is outside the bounds."""
        low, high = self.bounds
        return not low <= 1 <= high


def speed_ratio(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> SpeedRatio:
    """The second's speed over the first's, from the tokens/s of their trials; see `qbench.analysis.formulas.speedup`.

    Raises:
        ValueError: there is no trial, or a speed is not positive.
    """
    return SpeedRatio(*speedup(second, first, confidence))


@dataclass(frozen=True, slots=True)
class Answered:
    """A cell's result on MMLU."""

    correct: int
    n: int
    questions: str
    """Which set: two cells with different ones cannot be compared."""
    right: pd.Series[bool] | None = field(repr=False)
    """See `Run.answers`; None if the run has not kept them."""

    @property
    def accuracy(self) -> float:
        """correct ÷ n."""
        return self.correct / self.n


def answered(run: Run, label: str, *, allow_partial: bool = False) -> Answered | None:
    """A cell's result; None if it has none, or one over part of the questions only, unless `allow_partial`."""
    rows = mmlu_rows(run.accuracy, label)
    n = int(rows["n"].sum())
    if n == 0 or (bool(rows["partial"].any()) and not allow_partial):
        return None
    data = section(run, "mmlu").get("data")
    shots = "/".join(map(str, sorted(rows["num_fewshot"].unique())))
    questions = f"{'the demo questions' if data == 'demo' else 'MMLU'}, {shots}-shot"
    return Answered(int(rows["correct"].sum()), n, questions, run.answers.get(label))


@dataclass(frozen=True, slots=True)
class AccuracyDifference:
    """The second of two cells less the first, as fractions."""

    delta: float
    low: float
    high: float
    p_value: float
    n: int
    """Questions that both answered; those of the smaller of the two where they are not paired."""
    flips: Flips | None
    """None where they are not paired."""


def accuracy_difference(first: Answered, second: Answered, confidence: float = 0.95) -> AccuracyDifference | None:
    """Paired on the questions that both answered, with a bootstrap interval and McNemar's p-value.

    Where answers are missing, the interval is Newcombe's and the p-value Fisher's exact one, for independent samples:
    wider, since what questions have in common is lost. None if they answered different questions.
    """
    if first.questions != second.questions:
        return None
    if first.right is not None and second.right is not None:
        flips = answer_flips(first.right, second.right)
        if flips is None:
            return None
        return AccuracyDifference(
            flips.delta, *delta_interval(flips, confidence), mcnemar_p_value(flips), flips.n, flips
        )
    # Costs a second to import.
    from scipy.stats import fisher_exact

    table = [[one.correct, one.n - one.correct] for one in (first, second)]
    delta = second.accuracy - first.accuracy
    interval = newcombe_interval(first, second, confidence)
    return AccuracyDifference(delta, *interval, float(fisher_exact(table).pvalue), min(first.n, second.n), None)


def newcombe_interval(first: Answered, second: Answered, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of p₂ − p₁ of independent samples: d − √((p₂ − l₂)² + (u₁ − p₁)²) to d + √((u₂ − p₂)² + (p₁ − l₁)²).

    l and u are the ends of each one's Wilson interval. R. G. Newcombe, Statistics in Medicine 17 (1998), method 10.
    """
    low1, high1 = wilson_interval(first.correct, first.n, confidence)
    low2, high2 = wilson_interval(second.correct, second.n, confidence)
    p1, p2 = first.accuracy, second.accuracy
    below = ((p2 - low2) ** 2 + (high1 - p1) ** 2) ** 0.5
    above = ((high2 - p2) ** 2 + (p1 - low1) ** 2) ** 0.5
    return p2 - p1 - below, p2 - p1 + above


def workload(run: Run, label: str, batch_size: int) -> tuple[int, int] | None:
    """Prompt and new tokens of a cell's trials at a batch size: speeds over other lengths are of other work."""
    rows = run.throughput
    rows = rows[(rows["label"] == label) & (rows["batch_size"] == batch_size)]
    return None if rows.empty else (int(rows["prompt_tokens"].iloc[-1]), int(rows["new_tokens"].iloc[-1]))


def kept_in(run: Run, label: str) -> str:
    """What a cell's generations kept keys and values in: `measure.throughput.kv_cache`."""
    kinds = run.throughput.loc[run.throughput["label"] == label, "kv_cache"].dropna()
    return PLAIN_CACHE if kinds.empty else str(kinds.iloc[-1])


def cache_words(rows: pd.DataFrame) -> str:
    """`, keys and values in int8` of generations that kept them so; empty for the compute dtype."""
    kinds = sorted(set(rows["kv_cache"].dropna()) - {PLAIN_CACHE})
    return f", keys and values in {'/'.join(kinds)}" if kinds else ""


def section(run: Run, measure: str) -> Mapping[str, Any]:
    """A measure's section of the configuration; empty if it was not asked for."""
    found: Mapping[str, Any] = (run.record.config.get("measure") or {}).get(measure) or {}
    return found
