"""What is reported of a run: plain records, without pandas or style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qbench.machine.bandwidth import Bandwidth
from qbench.show.report.subjects import Subject

FOREIGN = "foreign load"


def doubts(validity: str | None) -> tuple[str, ...]:
    """Why a figure is not to be trusted, in words; none if it is, or if nothing is known."""
    return () if validity in (None, "ok") else tuple(str(validity).replace("_", " ").split("+"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A cell at one batch size: medians over its ok trials, in seconds and bytes."""

    batch_size: int
    status: str | None
    """ok, or what went wrong in some trial; None where nothing was tried."""
    tokens_per_s: float | None
    low: float | None
    """Slowest and fastest trial."""
    high: float | None
    validity: str | None
    """ok, or why the speed is not to be trusted, joined by `+`; None where that was not recorded:
    `qbench.analysis.validity`."""
    speedup: str
    """Over the 16-bit cell, in words."""
    ttft_s: float | None
    itl_p50_s: float | None
    itl_p95_s: float | None
    peak_memory_bytes: int | None
    """The most of any trial."""
    predicted_bytes: int | None
    ceiling_tokens_per_s: float | None
    """What the machine's bandwidth allows at most, see `qbench.plan.forecast.ceiling`; None where that is not known."""
    read_bytes_per_s: float | None
    """Bytes of weights and cache that a decode step reads ÷ the step's time (batch_size ÷ tokens_per_s)."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the speed is not to be trusted, in words; none if it is, or if nothing is known."""
        return doubts(self.validity)

    @property
    def doubtful(self) -> bool:
        """Whether the speed carries a mark: for its doubts, or because some trial failed."""
        return bool(self.doubts) or (self.tokens_per_s is not None and self.status != "ok")

    @property
    def span(self) -> tuple[float, float] | None:
        """Slowest and fastest trial, if they differ."""
        return None if self.low is None or self.high is None or self.low == self.high else (self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """A cell under load that lasts: tokens/s of windows of some seconds."""

    windows: tuple[tuple[float, float, tuple[str, ...]], ...]
    """Seconds from the start, tokens/s in the window that ends then, and what speaks against that figure."""
    steady: float
    """`qbench.analysis.formulas.steady_state`: of the last third, and the best of the first third."""
    peak: float
    validity: str | None

    @property
    def doubts(self) -> tuple[str, ...]:
        """As of `Speed`."""
        return doubts(self.validity)

    @property
    def doubtful(self) -> bool:
        """Whether other processes disturbed it; falling clocks are what such a load is measured for."""
        return FOREIGN in self.doubts


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Of a cell, as fractions, with a 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int
    partial: bool
    difference: str
    """To the 16-bit cell, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One backend of a run."""

    name: str
    """What people read; unique in its run."""
    label: str
    kind: str
    status: str
    error: str | None
    kernel: str | None
    bits_per_weight: float | None
    weight_bytes: int | None
    load_s: float | None
    quantize_s: float | None
    peak_memory_bytes: int | None
    peak_rss_bytes: int | None
    predicted_bytes: int | None
    accuracy: Accuracy | None
    perplexity: float | None
    kl_mean: float | None
    kl_stderr: float | None
    sustained: Sustained | None
    speeds: tuple[Speed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run as it is reported."""

    title: str
    """Its name; unique among the runs of a report."""
    model: str
    machine: str
    dtype: str
    day: str
    """When it started, UTC."""
    commands: tuple[str, ...]
    """That measure it again, on a machine like its own."""
    configuration: str
    """As parsed, with every default, as JSON."""
    environment: tuple[tuple[str, str], ...]
    batch_sizes: tuple[int, ...]
    cells: tuple[Cell, ...]
    subjects: tuple[Subject, ...]
    reference: str | None
    """Name of the 16-bit cell that others are compared with."""
    ties: frozenset[frozenset[str]]
    """Pairs of names whose accuracies do not differ, see `qbench.analysis.compare.tied`."""
    settings: Mapping[str, str]
    """By measure (memory, throughput, mmlu), under which conditions it was taken."""
    bandwidth: Bandwidth | None
    tried: str
    """How much of the run there is, in words, where nothing failed."""
    failures: tuple[str, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    """What the report lacks, and why."""
