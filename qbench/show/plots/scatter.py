"""The charts of points: two figures of each backend against each other, or one over batch sizes or time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from qbench.analysis.figures import CellSummary, Speed
from qbench.analysis.formulas import pareto_front
from qbench.analysis.validity import FOREIGN
from qbench.show import formats
from qbench.show.phrases import NO_RESULT, accuracy_words, caption, not_shown
from qbench.show.plots.bars import WHISKERS
from qbench.show.plots.shapes import Pair, Point, ScatterChart, Series
from qbench.show.plots.style import Looks, shorten
from qbench.show.verdicts import difference_words
from qbench.show.view.records import RunReport
from qbench.text import human_bytes

WIDE = 10
"""From so large a ratio of the greatest value to the least, an axis is logarithmic."""


def pareto(report: RunReport, looks: Looks) -> ScatterChart | None:
    """Accuracy against memory, with the front."""
    shown = {cell.name: cell.peak_memory_bytes for cell in report.cells if cell.peak_memory_bytes and cell.accuracy}
    if not shown:
        return None
    unit, size = formats.memory_unit(max(shown.values()))
    return _against_accuracy(
        report,
        looks,
        title=f"{report.accuracy_title} against peak memory",
        x_axis=f"peak memory ({unit})",
        xs={name: peak / size for name, peak in shown.items()},
        words={name: human_bytes(peak) for name, peak in shown.items()},
    )


def accuracy_speed(report: RunReport, looks: Looks) -> ScatterChart | None:
    """At the smallest batch size that was measured."""
    batch = min(report.batch_sizes, default=0)
    speeds = {cell.name: cell.at(batch) for cell in report.cells if cell.accuracy and cell.at(batch).trials}
    if not speeds:
        return None
    return _against_accuracy(
        report,
        looks,
        title=f"{report.accuracy_title} against speed",
        x_axis=f"tokens/s at batch {batch}",
        xs={name: speed.tokens_per_s or 0.0 for name, speed in speeds.items()},
        words={
            name: f"{formats.tokens(speed.tokens_per_s)} tokens/s at batch {batch}" for name, speed in speeds.items()
        },
        marked=[name for name, speed in speeds.items() if speed.doubtful],
        more_is_better=True,
    )


def depths(report: RunReport, looks: Looks) -> ScatterChart | None:
    """Tokens/s over tokens before the prompt, at the smallest batch size; None without a depth."""
    batch = min(report.batch_sizes, default=0)
    series = []
    for cell in report.cells:
        deeper = [speed for speed in cell.deeper if speed.batch_size == batch]
        points = [_point(cell, speed, speed.depth) for speed in (cell.at(batch), *deeper)]
        if any(deeper) and (there := tuple(filter(None, points))):
            series.append(Series(backend=cell.name, look=looks[cell.name], points=there))
    if not series:
        return None
    absent = not_shown(report.cells, {one.backend for one in series})
    details = (report.settings.get("throughput", ""), WHISKERS, caption(report.cells), *absent)
    return ScatterChart(
        title="Decode speed against context",
        details=tuple(filter(None, details)),
        x_axis="tokens in the cache before the prompt",
        y_axis=f"tokens/s at batch {batch}",
        series=tuple(series),
        connected=True,
    )


def _point(cell: CellSummary, speed: Speed, x: float) -> Point | None:
    """A speed over something; None where there is none."""
    if speed.tokens_per_s is None:
        return None
    depth = f", {speed.depth:,} tokens before" if speed.depth else ""
    return Point(
        x=x,
        y=speed.tokens_per_s,
        span=speed.span,
        hover=formats.lines(
            f"{cell.name}, batch {speed.batch_size}{depth}: {formats.tokens(speed.tokens_per_s)} tokens/s",
            f"{formats.tokens(speed.tokens_per_s / speed.batch_size)} for each sequence",
            formats.span(speed.span),
            formats.doubts(speed.reasons),
        ),
        mark="!" if speed.doubtful else "",
    )


def batches(report: RunReport, looks: Looks) -> ScatterChart | None:
    """Tokens/s over batch sizes; None for a single one."""
    series = []
    for cell in report.cells:
        points = tuple(filter(None, (_point(cell, speed, speed.batch_size) for speed in cell.speeds)))
        if points:
            series.append(Series(backend=cell.name, look=looks[cell.name], points=points))
    ticks = tuple(sorted({point.x for one in series for point in one.points}))
    if len(ticks) < 2:
        return None
    gone = [
        f"{cell.name} at batch {speed.batch_size} ({speed.status or NO_RESULT})"
        for cell in report.cells
        for speed in cell.speeds
        if speed.tokens_per_s is None and any(one.backend == cell.name for one in series)
    ]
    absent = not_shown(report.cells, {one.backend for one in series}, gone)
    details = (report.settings.get("throughput", ""), WHISKERS, caption(report.cells), *absent)
    return ScatterChart(
        title="Decode speed against batch size",
        details=tuple(filter(None, details)),
        x_axis="batch size",
        y_axis="tokens/s, all sequences together",
        series=tuple(series),
        connected=True,
        x_ticks=ticks,
    )


def sustained(report: RunReport, looks: Looks) -> ScatterChart | None:
    """A line for each cell over the minutes of its load, and its steady state."""
    series = [_load(cell, looks) for cell in report.cells if cell.sustained]
    if not series:
        return None
    marks = sorted({point.mark for one in series for point in one.points} - {""})
    absent = not_shown(report.cells, {one.backend for one in series})
    words = {"!": "!: other processes used the machine in that window", "×": "×: clocks fell in that window"}
    return ScatterChart(
        title="Decode speed under sustained load",
        details=(
            report.settings["sustained"],
            "dashed: median of the last third",
            *(words[mark] for mark in marks),
            *absent,
        ),
        x_axis="minutes",
        y_axis="tokens/s",
        series=tuple(series),
        connected=True,
    )


def _load(cell: CellSummary, looks: Looks) -> Series:
    found = cell.sustained
    assert found
    points = tuple(
        Point(
            x=window.end_s / 60,
            y=window.tokens_per_s,
            hover=formats.lines(
                f"{cell.name} after {window.end_s:,.0f} s: {formats.tokens(window.tokens_per_s)} tokens/s",
                formats.doubts(window.reasons),
            ),
            # Falling clocks are what the load is measured for.
            mark="!" if FOREIGN in window.reasons else "×" if window.reasons else "",
        )
        for window in found.windows
    )
    left = f"{found.steady / found.peak:.0%} of {found.peak:,.4g} at first"
    return Series(
        backend=cell.name,
        look=looks[cell.name],
        points=points,
        legend=f"{shorten(cell.name, 28)}: {found.steady:,.4g} tokens/s at the end, {left}",
        level=found.steady,
    )


def _against_accuracy(
    report: RunReport, looks: Looks, *, title: str, x_axis: str, xs: dict[str, float], words: dict[str, str],
    marked: Sequence[str] = (), more_is_better: bool = False,
) -> ScatterChart:  # fmt: skip
    """A point for each cell in `xs`, its accuracy upwards."""
    cells = [cell for cell in report.cells if cell.name in xs]
    points = [(xs[cell.name], 100 * cell.accuracy.value if cell.accuracy else 0.0) for cell in cells]
    front = pareto_front([(-x if more_is_better else x, y) for x, y in points])
    ties = _ties(report, [cell.name for cell in cells], front)
    series = []
    for i, (cell, (x, y)) in enumerate(zip(cells, points, strict=True)):
        assert cell.accuracy
        hover = formats.lines(
            f"{cell.name}: {words[cell.name]}",
            f"accuracy in %: {accuracy_words(cell.accuracy)}",
            difference_words(cell.accuracy),
        )
        span = (100 * cell.accuracy.low, 100 * cell.accuracy.high)
        point = Point(x=x, y=y, span=span, hover=hover, mark="!" if cell.name in marked else "")
        series.append(Series(backend=cell.name, look=looks[cell.name], points=(point,), strong=i in front))
    better = ", up and to the right is better" if more_is_better else ""
    x_ticks = _ticks(list(xs.values()))
    return ScatterChart(
        title=title,
        details=(
            report.settings["mmlu"],
            f"line: Pareto front{better}",
            *([f"!: speed not to be trusted ({', '.join(marked)})"] if marked else []),
            *_tied([[cells[i].name for i in group] for group in ties]),
            *not_shown(report.cells, xs),
        ),
        x_axis=f"{x_axis}, logarithmic" if x_ticks else x_axis,
        y_axis="accuracy (%)",
        x_ticks=x_ticks,
        series=tuple(series),
        front=_steps([points[i] for i in front]),
        ties=tuple(_steps([points[i] for i in group]) for group in ties),
    )


def _ticks(values: Sequence[float]) -> tuple[float, ...]:
    """Round values from the least to the greatest where they are `WIDE` apart; else none, for a linear axis."""
    low, high = min(values), max(values)
    if low <= 0 or high < WIDE * low:
        return ()
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return tuple(tick for power in decades for digit in digits if low <= (tick := digit * 10.0**power) <= high)


def _steps(points: Sequence[Pair]) -> tuple[Pair, ...]:
    """Corners of the way along x and then along y from each point to the next."""
    corners = list(points[:1])
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return tuple(corners)


def _ties(report: RunReport, names: Sequence[str], front: Sequence[int]) -> list[list[int]]:
    """Stretches of the front, two cells or more each, along which no cell's accuracy differs from its neighbour's."""
    groups: list[list[int]] = []
    for i, j in pairwise(front):
        if frozenset((names[i], names[j])) in report.ties:
            if groups and groups[-1][-1] == i:
                groups[-1].append(j)
            else:
                groups.append([i, j])
    return groups


def _tied(groups: Sequence[Sequence[str]]) -> list[str]:
    among = " between neighbours" if any(len(group) > 2 for group in groups) else ""
    names = "; ".join(", ".join(group) for group in groups)
    return [f"shaded: {names} (no significant difference{among})"] if groups else []
