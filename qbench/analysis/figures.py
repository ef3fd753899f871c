"""What is known of a cell and of a run: the figures that tables, plots, reports and decisions read.

`qbench.analysis.summary` derives them from a run's tables.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.analysis import validity
from qbench.analysis.between_starts import VarianceShare, samples, variance_share
from qbench.analysis.effects import Accuracy, SpeedRatio
from qbench.analysis.load import FoundRate
from qbench.records.rows import CellRow, LoadRow, PerplexityRow
from qbench.records.run import Run, display_label
from qbench.text import one_line

if TYPE_CHECKING:  # the plan, with its models, takes longer to import than a run to read
    from qbench.analysis.decode_step import DecodeStep

CHANCE_LEVEL = 0.25
"""Accuracy of guessing among four choices."""

PLAIN_CACHE = "16bit"
"""The cache of a cell that has no other, and of every speed of runs that knew no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A cell at one batch size: figures over its ok trials, in seconds and bytes."""

    batch_size: int
    depth: int = 0
    """Tokens in the cache before the prompt."""
    status: str | None = None
    """ok, or what went wrong in some trial; None where nothing was tried."""
    starts: tuple[tuple[float, ...], ...] = ()
    """Decode tokens/s of each ok trial, by the process that made it."""
    energies: tuple[tuple[float, ...], ...] = ()
    """Joules a token of each ok trial whose energy was counted, by the process that made it: those of the whole
    generation ÷ (batch_size × new tokens)."""
    energy_source: str | None = None
    """nvml or rapl, see `qbench.machine.energy`."""
    validity: str | None = None
    """ok, or why the speed is not to be trusted, joined by `+`; None where that was not recorded: see
    `qbench.analysis.validity`."""
    speedup: SpeedRatio | None = None
    """Over the reference; None for itself, and where one of the two has no trial."""
    lengths: tuple[int, int] | None = None
    """Prompt and new tokens: speeds over other lengths are of other work."""
    ttft_s: float | None = None
    itl_p50_s: float | None = None
    itl_p95_s: float | None = None
    """Medians."""
    peak_memory_bytes: int | None = None
    """The most of any trial."""
    predicted_bytes: int | None = None
    ceiling_tokens_per_s: float | None = None
    """What the machine's bandwidth allows at most, see `qbench.plan.forecast.ceiling`."""
    step: DecodeStep | None = None
    """What a step reads. This and the two figures above are None unless a report has added them, which knows what the
    plan predicted."""

    @property
    def trials(self) -> tuple[float, ...]:
        """Decode tokens/s of each ok trial, of all starts."""
        return tuple(speed for start in self.starts for speed in start)

    @property
    def samples(self) -> tuple[float, ...]:
        """What its intervals count, see `qbench.analysis.between_starts.samples`."""
        return samples(self.starts)

    @property
    def between_starts(self) -> VarianceShare | None:
        """Where its variance comes from; None unless several starts made several trials."""
        return variance_share(self.starts)

    @property
    def tokens_per_s(self) -> float | None:
        """Median of the trials; None without one."""
        return statistics.median(self.trials) if self.trials else None

    @property
    def joules_per_token(self) -> float | None:
        """Median of the trials whose energy was counted; None without one."""
        return statistics.median([joules for start in self.energies for joules in start]) if self.energies else None

    @property
    def span(self) -> tuple[float, float] | None:
        """Slowest and fastest trial, if they differ."""
        ends = (min(self.trials, default=0.0), max(self.trials, default=0.0))
        return ends if ends[0] != ends[1] else None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the speed is not to be trusted; none if it is, or if nothing is known."""
        return validity.reasons(self.validity)

    @property
    def doubtful(self) -> bool:
        """Whether the speed is not to be trusted, or some trial failed."""
        return bool(self.reasons) or (bool(self.trials) and self.status != "ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some seconds of a load that lasts."""

    end_s: float
    """From the start of the load."""
    tokens_per_s: float
    reasons: tuple[str, ...]
    """What speaks against the figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """A cell under a load that lasts."""

    windows: tuple[Window, ...]
    steady: float
    peak: float
    """Tokens/s, see `qbench.analysis.formulas.steady_state`."""
    validity: str | None

    @property
    def reasons(self) -> tuple[str, ...]:
        """As of `Speed`."""
        return validity.reasons(self.validity)

    @property
    def doubtful(self) -> bool:
        """Whether other processes disturbed it; falling clocks are what such a load is measured for."""
        return validity.FOREIGN in self.reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A server under load."""

    levels: tuple[LoadRow, ...]
    """Of closed and open loops, in the order in which they were taken."""
    found: FoundRate | None
    """By the search for the highest rate that keeps the objective; None if there was none."""

    @property
    def answered(self) -> tuple[LoadRow, ...]:
        """Levels with figures."""
        return tuple(level for level in self.levels if level.requests_per_s is not None)

    @property
    def most_tokens(self) -> LoadRow | None:
        """The level with the most output tokens a second."""
        return max(self.answered, key=lambda level: level.output_tokens_per_s or 0.0, default=None)

    @property
    def best(self) -> LoadRow | None:
        """The level with the highest goodput; None without an objective."""
        with_goodput = [level for level in self.answered if level.goodput_per_s is not None]
        return max(with_goodput, key=lambda level: level.goodput_per_s or 0.0, default=None)

    @property
    def validity(self) -> str | None:
        """ok, or why figures are not to be trusted, over all levels."""
        return validity.joined(level.validity for level in self.answered)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSummary:
    """All figures of a cell. What was not measured is None, never 0."""

    row: CellRow
    speeds: tuple[Speed, ...] = ()
    """One for each batch size of the run, ascending."""
    deeper: tuple[Speed, ...] = ()
    """At depths beyond 0, each with its batch sizes, ascending; without their ratios to the reference's."""
    accuracy: Accuracy | None = None
    text: PerplexityRow | None = None
    """Perplexity, and divergence from the reference."""
    sustained: Sustained | None = None
    load: Load | None = None
    kv_cache: str = PLAIN_CACHE
    """What its generations kept keys and values in: `measure.throughput.kv_cache`."""
    predicted_bytes: int | None = None
    """Of the first forward; None unless a report has added it."""

    @property
    def scored_over(self) -> str:
        """What its accuracy and perplexity kept keys and values in: the cell's own `kv_cache`."""
        return self.row.kv_cache or PLAIN_CACHE

    @property
    def label(self) -> str:
        """Unique in its run."""
        return self.row.label

    @property
    def kind(self) -> str:
        """Kind of the backend."""
        return self.row.backend

    @property
    def name(self) -> str:
        """What people read; unique in its run."""
        if self.kind == self.label == "fp16" and self.row.dtype == "float32":
            return "FP32"
        return one_line(display_label(self.kind, self.label))

    @property
    def status(self) -> str:
        """Of the cell as a whole."""
        return self.row.status

    @property
    def bits_per_weight(self) -> float | None:
        """The effective ones; the nominal ones where those were not recorded; None of a server that does not say."""
        effective = self.row.effective_bits_per_weight
        return self.row.bits if effective is None else effective

    @property
    def peak_memory_bytes(self) -> int | None:
        """Of the first forward."""
        return self.row.peak_memory_bytes

    @property
    def slower_from(self) -> int | None:
        """The smallest batch size from which on it decodes more slowly than the reference at every one that both ran.

        None where it does not at the largest of them, and where nothing was compared.
        """
        found = None
        for speed in reversed(self.compared):
            if speed.speedup is None or speed.speedup.ratio >= 1:
                break
            found = speed.batch_size
        return found

    @property
    def compared(self) -> tuple[Speed, ...]:
        """Its speeds at the batch sizes that the reference ran, too, ascending."""
        return tuple(speed for speed in self.speeds if speed.speedup)

    def at(self, batch_size: int) -> Speed:
        """The speed at a batch size; one without figures where it was not measured."""
        return next((one for one in self.speeds if one.batch_size == batch_size), Speed(batch_size=batch_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """The figures of a run."""

    run: Run
    cells: tuple[CellSummary, ...]
    """In the order of `cells.csv`; of cells that are there twice, the last."""
    batch_sizes: tuple[int, ...]
    """Those that the configuration asked for or that rows have, ascending."""

    @property
    def reference(self) -> CellSummary | None:
        """The cell that others are compared with: `Run.reference`."""
        return self.cell(self.run.reference)

    def cell(self, label: str | None) -> CellSummary | None:
        """The cell with that label; None if there is none."""
        return next((one for one in self.cells if one.label == label), None)
