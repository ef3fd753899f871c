"""A run's figures, cell by cell, derived once from its tables; the formulas are in `qbench.analysis.formulas`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from qbench.analysis import validity
from qbench.analysis.effects import Accuracy, accuracy_of, section, speed_ratio
from qbench.analysis.equivalence import MARGIN
from qbench.analysis.figures import PLAIN_CACHE, CellSummary, Load, RunSummary, Speed, Sustained, Window
from qbench.analysis.formulas import steady_state
from qbench.analysis.load import found_rate
from qbench.analysis.paired import compare
from qbench.config import LoadConfig
from qbench.records.rows import CellRow, LoadRow, PerplexityRow
from qbench.records.run import Run
from qbench.records.trials import at_depth, depths, starts


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
