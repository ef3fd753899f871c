"""A run's figures, cell by cell, derived once from its tables; the formulas are in `qbench.analysis.formulas`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from qbench.analysis import validity
from qbench.analysis.effects import Accuracy, accuracy_of, section, speed_ratio
from qbench.analysis.equivalence import MARGIN
from qbench.analysis.figures import PLAIN_CACHE, CellSummary, Load, RunSummary, Speed, Sustained, Window
from qbench.analysis.formulas import steady_state
from qbench.analysis.load import found_rate
from qbench.analysis.paired import Comparison, compare
from qbench.records.rows import CellRow, PerplexityRow, ThroughputRow
from qbench.records.run import Run
from qbench.records.trials import at_depth, by_batch_size, by_start, depth


def summarize(run: Run, *, allow_partial: bool = False, margin: float = MARGIN) -> RunSummary:
    """Every cell's figures, and how each compares with the reference.

    Accuracies over part of the questions, and perplexities over part of the text, are left out unless `allow_partial`.
    `margin` is the loss of accuracy, a fraction, that counts as none.
    """
    sizes = batch_sizes(run)
    cells = [_cell(run, row, sizes, allow_partial) for row in run.cells]
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
    return tuple(sorted({*asked, *(trial.batch_size for trial in run.throughput)}))


def _cell(run: Run, row: CellRow, sizes: tuple[int, ...], allow_partial: bool) -> CellSummary:
    own = [trial for trial in run.throughput if trial.label == row.label]
    trials, caches = by_batch_size(at_depth(own)), [trial.kv_cache for trial in own if trial.kv_cache]
    return CellSummary(
        row=row,
        speeds=tuple(_speed(trials.get(size, []), size) for size in sizes),
        deeper=tuple(
            replace(_speed(found, size), depth=tokens)
            for tokens in sorted({depth(trial) for trial in own} - {0})
            for size, found in by_batch_size(at_depth(own, tokens)).items()
        ),
        accuracy=accuracy_of(run, row.label, allow_partial=allow_partial),
        text=_text(run, row.label, allow_partial),
        sustained=_sustained(run, row.label),
        load=_load(run, row.label),
        kv_cache=caches[-1] if caches else PLAIN_CACHE,
    )


def _speed(trials: Sequence[ThroughputRow], batch_size: int) -> Speed:
    if not trials:
        return Speed(batch_size=batch_size)
    ok = [trial for trial in trials if trial.status == "ok"]
    failed = [trial.status for trial in trials if trial.status != "ok"]
    sources = [trial.energy_source for trial in ok if trial.energy_source]
    return Speed(
        batch_size=batch_size,
        status=failed[-1] if failed else "ok",
        starts=by_start((trial, trial.decode_tokens_per_s) for trial in ok),
        energies=by_start((trial, _joules_per_token(trial)) for trial in ok),
        energy_source=sources[-1] if sources else None,
        validity=validity.validity(trials),
        lengths=(trials[-1].prompt_tokens, trials[-1].new_tokens),
        ttft_s=_median(trial.ttft_s for trial in ok),
        itl_p50_s=_median(trial.itl_p50_s for trial in ok),
        itl_p95_s=_median(trial.itl_p95_s for trial in ok),
        peak_memory_bytes=max(
            (trial.peak_memory_bytes for trial in ok if trial.peak_memory_bytes is not None), default=None
        ),
    )


def _joules_per_token(trial: ThroughputRow) -> float | None:
    return None if trial.energy_j is None else trial.energy_j / (trial.batch_size * trial.new_tokens)


def _median(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None without any."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def _text(run: Run, label: str, allow_partial: bool) -> PerplexityRow | None:
    rows = [row for row in run.perplexity if row.label == label]
    return rows[-1] if rows and (allow_partial or not rows[-1].partial) else None


def _sustained(run: Run, label: str) -> Sustained | None:
    rows = [row for row in run.sustained if row.label == label]
    if not rows:
        return None
    windows = tuple(
        Window(end_s=row.t_s, tokens_per_s=row.tokens_per_s, reasons=validity.reasons(row.validity)) for row in rows
    )
    steady, peak = steady_state([window.tokens_per_s for window in windows])
    told = validity.joined(row.validity for row in rows)
    return Sustained(windows=windows, steady=steady, peak=peak, validity=told)


def _load(run: Run, label: str) -> Load | None:
    rows = [row for row in run.load if row.label == label]
    if not rows:
        return None
    from qbench.config import LoadConfig  # takes longer to import than a run to read

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


def _tested(cell: CellSummary, found: Mapping[str, Comparison]) -> Accuracy | None:
    """The cell's accuracy with its difference from the reference's."""
    return cell.accuracy and replace(cell.accuracy, difference=found.get(cell.label))
