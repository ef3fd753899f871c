"""The charts in a plane: two figures of each backend against each other, or one over batch sizes or time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from qbench.analysis.formulas import pareto_front
from qbench.show.plots.front import steps
from qbench.show.plots.style import CellStyle
from qbench.show.report import words
from qbench.show.report.records import FOREIGN, Cell, RunReport
from qbench.show.report.shapes import Chart, Dot, PlaneChart, Trail
from qbench.show.report.tables import accuracy_words
from qbench.show.terminal import memory_unit


def pareto(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """Accuracy against memory, with the front."""
    shown = [cell for cell in report.cells if cell.accuracy and cell.peak_memory_bytes is not None]
    if not shown:
        return None
    unit, size, _ = memory_unit(max(cell.peak_memory_bytes or 0 for cell in shown))
    costs = [(cell.peak_memory_bytes or 0) / size for cell in shown]
    front = pareto_front([(cost, _points(cell)) for cost, cell in zip(costs, shown, strict=True)])
    hovers = [words.human_bytes(cell.peak_memory_bytes) for cell in shown]
    details = f"{report.settings.get('mmlu', '')}; line: Pareto front{_tied(report, [shown[i].name for i in front])}"
    return PlaneChart(
        key="pareto",
        details=details,
        x_axis=f"peak memory ({unit})",
        y_axis="accuracy (%)",
        trails=_trails(shown, looks, costs, hovers, front, [False] * len(shown)),
        front=steps([(costs[i], _points(shown[i])) for i in front]),
    )


def accuracy_speed(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """At the smallest batch size that was measured."""
    found = [
        (cell, speed)
        for cell in report.cells
        for speed in cell.speeds[:1]
        if cell.accuracy and speed.tokens_per_s is not None
    ]
    if not found:
        return None
    cells, batch = [cell for cell, _ in found], found[0][1].batch_size
    gains = [speed.tokens_per_s or 0.0 for _, speed in found]
    front = pareto_front([(-speed, _points(cell)) for speed, cell in zip(gains, cells, strict=True)])
    hovers = [f"{words.tokens(speed)} tokens/s at batch {batch}" for speed in gains]
    ties = _tied(report, [cells[i].name for i in front])
    return PlaneChart(
        key="accuracy-speed",
        details=f"{report.settings.get('mmlu', '')}; line: Pareto front, up and to the right is better{ties}",
        x_axis=f"tokens/s at batch {batch}",
        y_axis="accuracy (%)",
        trails=_trails(cells, looks, gains, hovers, front, [speed.doubtful for _, speed in found]),
        front=steps([(gains[i], _points(cells[i])) for i in front]),
    )


def batches(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """Tokens/s over batch sizes; None for a single one."""
    trails = []
    for cell in report.cells:
        dots = tuple(
            Dot(
                x=speed.batch_size,
                y=speed.tokens_per_s,
                span=speed.span,
                hover=words.lines(
                    f"{cell.name}, batch {speed.batch_size}: {words.tokens(speed.tokens_per_s)} tokens/s",
                    f"{words.tokens(speed.tokens_per_s / speed.batch_size)} for each sequence",
                    words.span(speed.span),
                    *speed.doubts,
                ),
                doubtful=speed.doubtful,
            )
            for speed in cell.speeds
            if speed.tokens_per_s is not None
        )
        if dots:
            trails.append(Trail(backend=cell.name, look=looks[cell.name], dots=dots))
    ticks = tuple(sorted({dot.x for trail in trails for dot in trail.dots}))
    if len(ticks) < 2:
        return None
    return PlaneChart(
        key="batches",
        details=report.settings.get("throughput", ""),
        x_axis="batch size",
        y_axis="tokens/s, all sequences together",
        trails=tuple(trails),
        connected=True,
        x_ticks=ticks,
    )


def sustained(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """A line for each cell over the minutes of its load."""
    trails = []
    for cell in report.cells:
        if cell.sustained is None:
            continue
        dots = tuple(
            Dot(
                x=seconds / 60,
                y=speed,
                span=None,
                hover=words.lines(f"{cell.name} after {seconds:,.0f} s: {words.tokens(speed)} tokens/s", *doubts),
                doubtful=FOREIGN in doubts,
            )
            for seconds, speed, doubts in cell.sustained.windows
        )
        trails.append(Trail(backend=cell.name, look=looks[cell.name], dots=dots))
    if not trails:
        return None
    return PlaneChart(
        key="sustained",
        details=report.settings.get("sustained", ""),
        x_axis="minutes",
        y_axis="tokens/s",
        trails=tuple(trails),
        connected=True,
    )


def _trails(
    cells: Sequence[Cell],
    looks: dict[str, CellStyle],
    xs: Sequence[float],
    hovers: Sequence[str],
    front: Sequence[int],
    doubtful: Sequence[bool],
) -> tuple[Trail, ...]:
    """A point for each cell, its accuracy upwards."""
    trails = []
    for i, (cell, x, hover) in enumerate(zip(cells, xs, hovers, strict=True)):
        assert cell.accuracy
        span = (100 * cell.accuracy.low, 100 * cell.accuracy.high)
        text = words.lines(f"{cell.name}: {hover}", f"accuracy in %: {accuracy_words(cell)}", cell.accuracy.difference)
        dot = Dot(x=x, y=_points(cell), span=span, hover=text, doubtful=doubtful[i])
        trails.append(Trail(backend=cell.name, look=looks[cell.name], dots=(dot,), strong=i in front))
    return tuple(trails)


def _points(cell: Cell) -> float:
    return 100 * cell.accuracy.value if cell.accuracy else 0.0


def _tied(report: RunReport, front: Sequence[str]) -> str:
    """Neighbours on the front that do not differ, in words."""
    found = [f"{a} and {b}" for a, b in pairwise(front) if frozenset((a, b)) in report.ties]
    return f"; no significant difference in accuracy between {', '.join(found)}" if found else ""
