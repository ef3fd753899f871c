"""A forecast as people read it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qbench.analysis.power import POWER, detectable_difference, together
from qbench.plan.forecast import MARGIN, RESERVE_BYTES, BatchForecast, CellForecast, Fit, Forecast
from qbench.text import MISSING, human_bytes

FLIPS = 0.05
"""The share of answers that differ from 16 bit's, right or wrong, unless told otherwise: a guess, of 4 bits."""

SETTINGS_WIDTH = 200
"""Characters of a measure's settings; prompts can be long."""

FIT_STYLES: dict[Fit | None, str] = {"yes": "green", "tight": "yellow", "no": "red"}


def show(console: Console, forecast: Forecast, flips: float = FLIPS) -> None:
    """What runs, on what; the predicted tables; what will not fit; how to read all that.

    `flips` is the share of answers that are taken to differ between two cells.
    """
    for line in _facts(forecast):
        console.print(escape(line))
    console.print(memory_table(forecast))
    speeds = speed_table(forecast)
    if speeds.rows:
        console.print(speeds)
    shown = power_table(forecast, flips)
    if shown.rows:
        console.print(shown)
    for line in (*remarks(forecast), *([_assumed(forecast)] if shown.rows else [])):
        console.print(escape(line))


def to_json(forecasts: Sequence[Forecast], flips: float = FLIPS) -> str:
    """A JSON array: bytes, seconds, and fractions. `detectable` holds what each task's questions will show.

    `flips` is as in `show`.
    """
    return json.dumps(
        [one.model_dump(mode="json") | {"detectable": _detectable(one, flips)} for one in forecasts], indent=2
    )


def _detectable(forecast: Forecast, flips: float) -> list[dict[str, Any]]:
    """By task, the smallest difference from 16 bit that its questions show, for two shares of flips."""
    return [
        {"task": task, "questions": n, "flips": share, "difference": _least(n, share, forecast)}
        for task, n in forecast.questions.items()
        for share in _shares(flips)
    ]


def _least(questions: int | None, share: float, forecast: Forecast) -> float | None:
    """See `detectable_difference`; None where nothing is compared, or the number of questions is not known."""
    if not questions or not forecast.compared:
        return None
    return detectable_difference(questions, share, together(forecast.compared))


def _shares(flips: float) -> list[float]:
    """The guess, and three times as much."""
    return [share for share in (flips, 3 * flips) if share < 1]


def power_table(forecast: Forecast, flips: float) -> Table:
    """What each task's questions will show, in points; without rows where nothing is compared."""
    table = Table(title="smallest difference from 16 bit that will show, points", title_justify="left")
    table.add_column("task")
    table.add_column("questions", justify="right")
    for share in _shares(flips):
        table.add_column(f"{100 * share:g} % flip", justify="right")
    for task, n in forecast.questions.items() if forecast.compared else ():
        found = [_least(n, share, forecast) for share in _shares(flips)]
        points = [MISSING if least is None else f"{float(f'{100 * least:.2g}'):g}" for least in found]
        table.add_row(escape(task), MISSING if n is None else f"{n:,}", *points)
    return table


def _assumed(forecast: Forecast) -> str:
    cells = f", shared by {forecast.compared} comparisons" if forecast.compared > 1 else ""
    return (
        f"accuracy: differences show with a probability of {POWER:g} (two-sided alpha 0.05{cells}); how many answers "
        "flip is a guess, --flips sets it"
    )


def _facts(forecast: Forecast) -> list[str]:
    memory, rate = forecast.memory_bytes, forecast.bandwidth_bytes_per_s
    held = f"{human_bytes(memory)} ({forecast.memory_source})" if memory else forecast.memory_source
    read = f"{rate / 1e9:,.0f} GB/s ({forecast.bandwidth_source})" if rate else forecast.bandwidth_source
    lines = [
        f"{forecast.run}: {forecast.model}, {forecast.parameters / 1e9:.3g} billion parameters, {forecast.dtype} on "
        f"{forecast.device}",
        f"memory: {held}",
        f"bandwidth: {read}",
        f"order: {', '.join(cell.label for cell in forecast.cells)}",
    ]
    for name, settings in forecast.measures.items():
        lines.append(f"measure {name}: {textwrap.shorten(settings, SETTINGS_WIDTH, placeholder=' …')}".rstrip(": "))
    return lines


def memory_table(forecast: Forecast) -> Table:
    """Predicted bytes of every cell."""
    table = Table(title="predicted memory", title_justify="left")
    table.add_column("backend")
    headings = ["units", "bits/weight", "weights", "loading", "first forward"]
    perplexity = any(cell.perplexity_bytes for cell in forecast.cells)
    batches = [batch.batch_size for batch in _batches(forecast) if batch.measure == "throughput"]
    needles = any(cell.needles_bytes for cell in forecast.cells)
    headings += [f"batch {size}" for size in batches] + (["perplexity"] if perplexity else [])
    headings += ["needle tasks"] if needles else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for cell in forecast.cells:
        peaks = [
            _marked(batch.peak_memory_bytes, batch.fits) for batch in cell.batches if batch.measure == "throughput"
        ]
        table.add_row(
            escape(cell.label),
            str(cell.units),
            MISSING if cell.bits_per_weight is None else f"{cell.bits_per_weight:.2f}",
            human_bytes(cell.weight_bytes),
            _marked(cell.load_bytes, cell.load_fits),
            _marked(cell.peak_memory_bytes, cell.fits),
            *(peaks or [MISSING] * len(batches)),
            *([_marked(cell.perplexity_bytes, cell.perplexity_fits)] if perplexity else []),
            *([_marked(cell.needles_bytes, cell.needles_fits)] if needles else []),
        )
    return table


def speed_table(forecast: Forecast) -> Table:
    """Ceilings of the decode speed of every cell; without rows where the bandwidth is not known."""
    table = Table(title="decode tokens/s, at most", title_justify="left")
    table.add_column("backend")
    first = _batches(forecast)
    for batch in first:
        table.add_column(
            f"batch {batch.batch_size}" + (", sustained" if batch.measure == "sustained" else ""), justify="right"
        )
    if not first or forecast.bandwidth_bytes_per_s is None:
        return table
    for cell in forecast.cells:
        speeds = [f"{batch.decode_tokens_per_s or 0:,.1f}" for batch in cell.batches]
        table.add_row(escape(cell.label), *(speeds or [MISSING] * len(first)))
    return table


def remarks(forecast: Forecast) -> list[str]:
    """What will not fit or run here, and how sure all of it is."""
    lines = [f"will not run here: {problem}" for problem in forecast.problems]
    for cell in forecast.cells:
        lines += _misfits(cell)
    if forecast.memory_bytes:
        lines.append(
            f"fits: with {100 * MARGIN:.0f} % of the peak and {human_bytes(RESERVE_BYTES)} for libraries to spare; "
            "tight: without that"
        )
    decode_s = sum(batch.decode_s or 0 for cell in forecast.cells for batch in cell.batches)
    if decode_s:
        lines.append(
            f"time: decoding alone takes at least {decode_s:,.0f} s; prefill, loading and accuracy come on top and "
            "depend on kernels, so they are not predicted"
        )
    if servers := [cell.label for cell in forecast.cells if cell.weight_bytes is None]:
        lines.append(f"not predicted, what a server holds is its own affair: {', '.join(servers)}")
    depth = max((batch.depth for cell in forecast.cells for batch in cell.batches), default=0)
    if depth:
        lines.append(
            f"depths: memory of a batch is predicted with {depth:,} tokens before the prompt, its speed with none"
        )
    if forecast.starts > 1:
        lines.append(
            f"starts: each cell is loaded {forecast.starts} times, all of them once before any of them again; later "
            "starts take only the throughput"
        )
    if forecast.reference_bytes:
        lines.append(
            f"disk: divergence: full keeps {human_bytes(forecast.reference_bytes)} of the 16-bit cell's predictions "
            "for each window of the text"
        )
    if forecast.unpredicted:
        lines.append(f"memory not predicted, it depends on the prompts: {', '.join(forecast.unpredicted)}")
    return lines


def _batches(forecast: Forecast) -> tuple[BatchForecast, ...]:
    """Those that every predicted cell has."""
    return next((cell.batches for cell in forecast.cells if cell.batches), ())


def _misfits(cell: CellForecast) -> list[str]:
    parts: list[tuple[str, Fit | None]] = [("loading", cell.load_fits), ("the first forward", cell.fits)]
    for batch in cell.batches:
        mark = ", sustained" if batch.measure == "sustained" else ""
        parts.append((f"batch {batch.batch_size}{mark}", batch.fits))
    parts += [("perplexity", cell.perplexity_fits), ("needle tasks", cell.needles_fits)]
    lines = []
    for fits, words in (("no", "does not fit"), ("tight", "is tight")):
        if found := [part for part, how in parts if how == fits]:
            lines.append(f"{cell.label} {words}: {'; '.join(found)}")
    return lines


def _marked(value: int | None, fits: Fit | None) -> str:
    style = FIT_STYLES.get(fits)
    text = human_bytes(value) + {"tight": " ?", "no": " ✗"}.get(str(fits), "")
    return f"[{style}]{text}[/]" if style and value is not None else text if value is not None else MISSING
