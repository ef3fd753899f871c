"""A run's figures, cell by cell, derived once from its tables; the formulas are in `qbench.analysis.formulas`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from qbench.analysis import validity
from qbench.analysis.between_starts import VarianceShare, samples, variance_share
from qbench.analysis.decode_step import DecodeStep
from qbench.analysis.effects import Accuracy, SpeedRatio, accuracy_of, section, speed_ratio
from qbench.analysis.equivalence import MARGIN
from qbench.analysis.formulas import steady_state
from qbench.analysis.load import FoundRate, found_rate
from qbench.analysis.paired import compare
from qbench.config import LoadConfig
from qbench.records.rows import CellRow, LoadRow, PerplexityRow
from qbench.records.run import Run, display_label
from qbench.records.trials import at_depth, depths, starts
from qbench.text import one_line

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


def summarize(run: Run, *, allow_partial: bool = False, margin: float = MARGIN) -> RunSummary:
    """Every cell's figures, and how each compares with the reference.

    Accuracies over part of the questions, and perplexities over part of the text, are left out unless `allow_partial`.
    `margin` is the loss of accuracy, a fraction, that counts as none.
    """
    sizes = batch_sizes(run)
    rows = run.cells.drop_duplicates("label", keep="last")
    cells = [_cell(run, CellRow.model_validate(known(row)), sizes, allow_partial) for row in rows.to_dict("records")]
    reference = next((cell for cell in cells if cell.label == run.reference), None)
    if reference:
        pairs = [(reference.label, one.label) for one in cells if one is not reference and one.accuracy]
        found = {label: one for (_, label), one in compare(run, pairs if reference.accuracy else [], margin).items()}
        cells = [
            one if one is reference else replace(one, speeds=_compared(one, reference), accuracy=_tested(one, found))
            for one in cells
        ]
    return RunSummary(run=run, cells=tuple(cells), batch_sizes=sizes)


def batch_sizes(run: Run) -> tuple[int, ...]:
    """The batch sizes that the run's configuration asked for or that its rows have, ascending."""
    asked = section(run, "throughput").get("batch_sizes") or ()
    return tuple(sorted({int(size) for size in (*asked, *run.throughput["batch_size"])}))


def known(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a table, None where it has NA."""
    return {str(key): None if pd.isna(value) else value for key, value in row.items()}


def _cell(run: Run, row: CellRow, sizes: tuple[int, ...], allow_partial: bool) -> CellSummary:
    own = run.throughput[run.throughput["label"] == row.label]
    trials, caches = at_depth(own), own["kv_cache"].dropna()
    return CellSummary(
        row=row,
        speeds=tuple(_speed(trials[trials["batch_size"] == size], size) for size in sizes),
        deeper=tuple(
            replace(_speed(found[found["batch_size"] == size], size), depth=depth)
            for depth in sorted(set(depths(own)) - {0})
            for found in [at_depth(own, depth)]
            for size in sorted(set(found["batch_size"]))
        ),
        accuracy=accuracy_of(run, row.label, allow_partial=allow_partial),
        text=_text(run, row.label, allow_partial),
        sustained=_sustained(run, row.label),
        load=_load(run, row.label),
        kv_cache=PLAIN_CACHE if caches.empty else str(caches.iloc[-1]),
    )


def _speed(trials: pd.DataFrame, batch_size: int) -> Speed:
    if trials.empty:
        return Speed(batch_size=batch_size)
    ok = trials[trials["status"] == "ok"]
    failed = [str(status) for status in trials["status"] if status != "ok"]
    ttft, p50, p95, peaks = (
        ok[column].dropna() for column in ("ttft_s", "itl_p50_s", "itl_p95_s", "peak_memory_bytes")
    )
    sources = ok["energy_source"].dropna()
    return Speed(
        batch_size=batch_size,
        status=failed[-1] if failed else "ok",
        starts=_by_start(ok, ok["decode_tokens_per_s"]),
        energies=_by_start(ok, ok["energy_j"] / (batch_size * ok["new_tokens"])),
        energy_source=str(sources.iloc[-1]) if len(sources) else None,
        validity=validity.validity(trials),
        lengths=(int(trials["prompt_tokens"].iloc[-1]), int(trials["new_tokens"].iloc[-1])),
        ttft_s=float(ttft.median()) if len(ttft) else None,
        itl_p50_s=float(p50.median()) if len(p50) else None,
        itl_p95_s=float(p95.median()) if len(p95) else None,
        peak_memory_bytes=int(peaks.max()) if len(peaks) else None,
    )


def _by_start(trials: pd.DataFrame, figures: pd.Series[float]) -> tuple[tuple[float, ...], ...]:
    """The figures of trials, where they have one, by the process that made them."""
    found = figures.dropna().astype(float)
    return tuple(tuple(map(float, one)) for _, one in found.groupby(starts(trials.loc[found.index])))


def _text(run: Run, label: str, allow_partial: bool) -> PerplexityRow | None:
    rows = run.perplexity[run.perplexity["label"] == label].to_dict("records")
    found = PerplexityRow.model_validate(known(rows[-1])) if rows else None
    return None if found and found.partial and not allow_partial else found


def _sustained(run: Run, label: str) -> Sustained | None:
    rows = run.sustained[run.sustained["label"] == label]
    if rows.empty:
        return None
    windows = tuple(
        Window(end_s=row["t_s"], tokens_per_s=row["tokens_per_s"], reasons=validity.reasons(row["validity"]))
        for row in map(known, rows.to_dict("records"))
    )
    steady, peak = steady_state([window.tokens_per_s for window in windows])
    return Sustained(windows=windows, steady=steady, peak=peak, validity=validity.sustained_validity(rows))


def _load(run: Run, label: str) -> Load | None:
    rows = [LoadRow.model_validate(known(row)) for row in run.load[run.load["label"] == label].to_dict("records")]
    if not rows:
        return None
    attainment = section(run, "load").get("attainment") or LoadConfig.model_fields["attainment"].default
    levels = tuple(row for row in rows if row.mode != "search")
    return Load(levels=levels, found=found_rate(rows, float(attainment)))


def _compared(cell: CellSummary, reference: CellSummary) -> tuple[Speed, ...]:
    """The cell's speeds with their ratios to the reference's."""
    both = zip(cell.speeds, reference.speeds, strict=True)
    return tuple(
        replace(own, speedup=speed_ratio(other.samples, own.samples)) if own.trials and other.trials else own
        for own, other in both
    )


def _tested(cell: CellSummary, found: Mapping[str, Any]) -> Accuracy | None:
    """The cell's accuracy with its difference from the reference's."""
    return cell.accuracy and replace(cell.accuracy, difference=found.get(cell.label))
