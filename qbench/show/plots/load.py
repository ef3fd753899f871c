"""The charts of servers under load: a line a backend, a point a level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qbench.analysis.figures import CellSummary
from qbench.records.rows import LoadRow
from qbench.show import formats
from qbench.show.phrases import level_words, not_shown
from qbench.show.plots.shapes import Pair, Point, ScatterChart, Series
from qbench.show.plots.style import Looks
from qbench.show.view.records import RunReport

Value = Callable[[LoadRow], float | None]


def first_token(report: RunReport, looks: Looks) -> ScatterChart | None:
    """95th percentile of the time to the first token, with its interval where there are requests enough."""
    return _chart(
        report,
        looks,
        title="Time to first token under load",
        axes=("requests answered a second", "time to first token, p95 (ms)"),
        values=(lambda level: level.requests_per_s, lambda level: _ms(level.ttft_p95_s)),
        span=lambda level: _span(_ms(level.ttft_p95_low_s), _ms(level.ttft_p95_high_s)),
        details=("whiskers: 95 % intervals of the percentile",),
    )


def between_tokens(report: RunReport, looks: Looks) -> ScatterChart | None:
    """95th percentile of the time between tokens."""
    return _chart(
        report,
        looks,
        title="Time between tokens under load",
        axes=("requests answered a second", "time between tokens, p95 (ms)"),
        values=(lambda level: level.requests_per_s, lambda level: _ms(level.itl_p95_s)),
    )


def throughput(report: RunReport, looks: Looks) -> ScatterChart | None:
    """Output tokens a second over the requests that are under way."""
    return _chart(
        report,
        looks,
        title="Throughput under load",
        axes=("requests under way at a time, mean", "output tokens/s, all requests together"),
        values=(lambda level: level.in_flight_mean, lambda level: level.output_tokens_per_s),
    )


def goodput(report: RunReport, looks: Looks) -> ScatterChart | None:
    """Requests a second that keep the objective, over those that are answered at all."""
    objectives = {
        formats.objective(level.slo_ttft_s, level.slo_itl_s)
        for cell in report.cells
        for level in (cell.load.answered if cell.load else ())
        if level.goodput_per_s is not None
    }
    return _chart(
        report,
        looks,
        title="Goodput",
        axes=("requests answered a second", "of them within the objective, a second"),
        values=(lambda level: level.requests_per_s, lambda level: level.goodput_per_s),
        span=lambda level: _span(level.goodput_low_per_s, level.goodput_high_per_s),
        details=(*(f"objective: {words}" for words in sorted(objectives)), "whiskers: 95 % intervals"),
    )


def _chart(
    report: RunReport,
    looks: Looks,
    *,
    title: str,
    axes: tuple[str, str],
    values: tuple[Value, Value],
    span: Callable[[LoadRow], Pair | None] = lambda level: None,
    details: Sequence[str] = (),
) -> ScatterChart | None:
    """Levels as points; None where no level has both values."""
    series = []
    for cell in report.cells:
        points = _points(cell, values, span)
        if points:
            series.append(Series(backend=cell.name, look=looks[cell.name], points=points))
    if not series:
        return None
    marked = any(point.mark for one in series for point in one.points)
    shown = {one.backend for one in series}
    whiskers = any(point.span for one in series for point in one.points)
    return ScatterChart(
        title=title,
        details=(
            *filter(None, [report.settings["load"]]),
            *(text for text in details if whiskers or not text.startswith("whiskers")),
            *(["!: not to be trusted, see the table"] if marked else []),
            *not_shown(report.cells, shown),
        ),
        x_axis=axes[0],
        y_axis=axes[1],
        series=tuple(series),
        connected=True,
    )


def _points(
    cell: CellSummary, values: tuple[Value, Value], span: Callable[[LoadRow], Pair | None]
) -> tuple[Point, ...]:
    points = []
    # In the order of the load: beyond its capacity a server may answer fewer, and the line bends back.
    for level in sorted(cell.load.answered if cell.load else (), key=lambda level: level.in_flight_mean or 0.0):
        x, y = values[0](level), values[1](level)
        if x is not None and y is not None:
            hover = formats.lines(f"{cell.name}, {level_words(level)}", *_figures(level))
            mark = "" if level.validity in (None, "ok") else "!"
            points.append(Point(x=x, y=y, span=span(level), hover=hover, mark=mark))
    return tuple(points)


def _figures(level: LoadRow) -> list[str]:
    found = [
        f"{formats.tokens(level.requests_per_s)} requests/s, {formats.tokens(level.output_tokens_per_s)} tokens/s",
        f"first token: {formats.milliseconds(level.ttft_p50_s)} (p50), {formats.milliseconds(level.ttft_p95_s)} (p95)",
        f"between tokens: {formats.milliseconds(level.itl_p50_s)} (p50), {formats.milliseconds(level.itl_p95_s)} (p95)",
    ]
    if level.goodput_per_s is not None:
        found.append(f"goodput: {formats.tokens(level.goodput_per_s)} requests/s")
    return [*found, f"errors: {level.errors}" if level.errors else ""]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _span(low: float | None, high: float | None) -> Pair | None:
    return None if low is None or high is None else (low, high)
