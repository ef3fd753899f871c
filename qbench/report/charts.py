"""The plots of a run, as shapes: the same for the interactive ones and for the still ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from qbench.plot_style import CellStyle, cell_styles
from qbench.report import words
from qbench.report.data import Cell, RunReport, Speed
from qbench.report.shapes import Bar, BarChart, Chart, Dot, Panel, PlaneChart, Point, Trail
from qbench.report.tables import accuracy_words
from qbench.stats import CHANCE_LEVEL, pareto_front


def charts(report: RunReport) -> list[Chart]:
    """Every chart for which the run has a figure."""
    looks = dict(zip((c.name for c in report.cells), cell_styles([c.kind for c in report.cells]), strict=True))
    makers: tuple[Callable[[RunReport, dict[str, CellStyle]], Chart | None], ...] = (
        _memory, _speed, _accuracy, _pareto, _accuracy_speed, _batches, _utilization, _latency,
    )  # fmt: skip
    return [chart for make in makers if (chart := make(report, looks))]


def _memory(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    peaks = [cell.peak_memory_bytes for cell in report.cells if cell.peak_memory_bytes is not None]
    if not peaks:
        return None
    unit, size = _unit(peaks)
    bars = []
    for cell in report.cells:
        predicted = cell.predicted_bytes
        text = words.human_bytes(cell.peak_memory_bytes)
        known = [f"{cell.name}: {text}", f"predicted: {words.human_bytes(predicted)}" if predicted else ""]
        value = None if cell.peak_memory_bytes is None else cell.peak_memory_bytes / size
        beside = predicted / size if predicted and value is not None else None
        bars.append(_bar(cell, looks, value, text, known, beside=beside))
    diamonds = "predicted before the run" if any(bar.beside for bar in bars) else ""
    panel = Panel(title="", axis=f"peak memory ({unit})", bars=tuple(bars))
    return BarChart(key="memory", details=report.settings.get("memory", ""), panels=(panel,), beside=diamonds)


def _speed(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    def bar(cell: Cell, speed: Speed) -> Bar:
        text = words.tokens(speed.tokens_per_s)
        lines = [
            f"{cell.name}, batch {speed.batch_size}: {text} tokens/s",
            _range(speed),
            f"{speed.speedup} of the 16-bit speed" if speed.speedup else "",
            *speed.doubts,
        ]
        return _bar(cell, looks, speed.tokens_per_s, text, lines, span=_trials(speed), speed=speed)

    panels = _by_batch(report, "tokens/s", bar)
    details = f"{report.settings.get('throughput', '')}; whiskers: slowest and fastest trial"
    return BarChart(key="speed", details=details, panels=panels) if panels else None


def _accuracy(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    if not any(cell.accuracy for cell in report.cells):
        return None
    bars = []
    for cell in report.cells:
        found = cell.accuracy
        if found is None:
            bars.append(_bar(cell, looks, None, "", []))
            continue
        lines = [f"{cell.name}: {accuracy_words(cell)} %, {found.n:,} questions", found.difference]
        text = f"{100 * found.value:.1f} %{', partial' if found.partial else ''}"
        bars.append(_bar(cell, looks, 100 * found.value, text, lines, span=(100 * found.low, 100 * found.high)))
    panel = Panel(title="", axis="accuracy (%)", bars=tuple(bars), line=(100 * CHANCE_LEVEL, "chance"))
    return BarChart(key="accuracy", details=report.settings.get("mmlu", ""), panels=(panel,))


def _pareto(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    shown = [cell for cell in report.cells if cell.accuracy and cell.peak_memory_bytes is not None]
    if not shown:
        return None
    unit, size = _unit([cell.peak_memory_bytes or 0 for cell in shown])
    costs = [(cell.peak_memory_bytes or 0) / size for cell in shown]
    front = pareto_front([(cost, _points(cell)) for cost, cell in zip(costs, shown, strict=True)])
    hovers = [words.human_bytes(cell.peak_memory_bytes) for cell in shown]
    details = f"{report.settings.get('mmlu', '')}; line: Pareto front{_tied(report, [shown[i].name for i in front])}"
    return PlaneChart(
        key="pareto",
        details=details,
        x_axis=f"peak memory ({unit})",
        y_axis="accuracy (%)",
        trails=_trails(shown, looks, costs, hovers, front),
        front=_steps([(costs[i], _points(shown[i])) for i in front]),
    )


def _accuracy_speed(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
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
    return PlaneChart(
        key="accuracy-speed",
        details=f"{report.settings.get('mmlu', '')}; line: Pareto front, up and to the right is better",
        x_axis=f"tokens/s at batch {batch}",
        y_axis="accuracy (%)",
        trails=_trails(cells, looks, gains, hovers, front),
        front=_steps([(gains[i], _points(cells[i])) for i in front]),
    )


def _batches(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    trails = []
    for cell in report.cells:
        dots = tuple(
            Dot(
                x=speed.batch_size,
                y=speed.tokens_per_s,
                span=_trials(speed),
                hover=_lines(
                    f"{cell.name}, batch {speed.batch_size}: {words.tokens(speed.tokens_per_s)} tokens/s",
                    f"{words.tokens(speed.tokens_per_s / speed.batch_size)} for each sequence",
                    _range(speed),
                    *speed.doubts,
                ),
                doubtful=bool(speed.doubts),
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
        x_ticks=ticks,
    )


def _utilization(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    if not any(speed.read_bytes_per_s for cell in report.cells for speed in cell.speeds):
        return None
    ceiling = report.bandwidth

    def bar(cell: Cell, speed: Speed) -> Bar:
        rate = speed.read_bytes_per_s
        share = f" ({rate / ceiling.bytes_per_s:.0%})" if rate and ceiling else ""
        text = words.gigabytes_a_second(rate) + share
        lines = [f"{cell.name}, batch {speed.batch_size}: {text}", *speed.doubts]
        return _bar(cell, looks, rate / 1e9 if rate else None, text, lines, speed=speed)

    line = (ceiling.bytes_per_s / 1e9, "ceiling") if ceiling else None
    panels = _by_batch(report, "GB/s read", bar, line)
    says = (
        f"ceiling: {words.gigabytes_a_second(ceiling.bytes_per_s)}, {ceiling.source}" if ceiling else "no ceiling known"
    )
    return BarChart(key="bandwidth", details=f"weights and cache that a step reads ÷ its time; {says}", panels=panels)


def _latency(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    def bar(cell: Cell, speed: Speed) -> Bar:
        p50, p95 = speed.itl_p50_s, speed.itl_p95_s
        lines = [
            f"{cell.name}, batch {speed.batch_size}: p50 {words.milliseconds(p50)}, p95 {words.milliseconds(p95)}",
            f"first token after {words.milliseconds(speed.ttft_s)}",
            *speed.doubts,
        ]
        value, beside = (None if s is None else 1000 * s for s in (p50, p95))
        return _bar(cell, looks, value, words.milliseconds(p50), lines, beside=beside, speed=speed)

    if not any(speed.itl_p50_s for cell in report.cells for speed in cell.speeds):
        return None
    panels = _by_batch(report, "ms between tokens", bar)
    details = f"{report.settings.get('throughput', '')}; bars: p50"
    return BarChart(key="latency", details=details, panels=panels, beside="p95")


def _by_batch(
    report: RunReport, axis: str, make: Callable[[Cell, Speed], Bar], line: tuple[float, str] | None = None
) -> tuple[Panel, ...]:
    """A panel for each batch size at which some cell has a figure."""
    panels = []
    for i, size in enumerate(report.batch_sizes):
        bars = tuple(make(cell, cell.speeds[i]) for cell in report.cells)
        if any(bar.value is not None for bar in bars):
            panels.append(Panel(title=f"batch {size}", axis=axis, bars=bars, line=line))
    return tuple(panels)


def _bar(
    cell: Cell,
    looks: dict[str, CellStyle],
    value: float | None,
    text: str,
    lines: Iterable[str],
    *,
    span: Point | None = None,
    beside: float | None = None,
    speed: Speed | None = None,
) -> Bar:
    """The bar of a cell; without a value, what went wrong at its batch size or with it as a whole."""
    statuses = (speed.status if speed else None, cell.status)
    failure = next((status for status in statuses if status not in (None, "ok")), "no result")
    doubtful = bool(speed and speed.doubts)
    if value is None:
        text, lines = failure, [f"{cell.name}: {failure}", cell.error or ""]
    elif doubtful:
        text += " !"
    return Bar(
        backend=cell.name,
        look=looks[cell.name],
        value=value,
        span=span,
        beside=beside,
        text=text,
        hover=_lines(*lines),
        doubtful=doubtful or value is None,
    )


def _trails(
    cells: Sequence[Cell],
    looks: dict[str, CellStyle],
    xs: Sequence[float],
    hovers: Sequence[str],
    front: Sequence[int],
) -> tuple[Trail, ...]:
    """A point for each cell, its accuracy upwards."""
    trails = []
    for i, (cell, x, hover) in enumerate(zip(cells, xs, hovers, strict=True)):
        assert cell.accuracy
        span = (100 * cell.accuracy.low, 100 * cell.accuracy.high)
        text = _lines(f"{cell.name}: {hover}", f"accuracy {accuracy_words(cell)} %", cell.accuracy.difference)
        dot = Dot(x=x, y=_points(cell), span=span, hover=text)
        trails.append(Trail(backend=cell.name, look=looks[cell.name], dots=(dot,), strong=i in front))
    return tuple(trails)


def _points(cell: Cell) -> float:
    return 100 * cell.accuracy.value if cell.accuracy else 0.0


def _tied(report: RunReport, front: Sequence[str]) -> str:
    """Neighbours on the front that do not differ, in words."""
    found = [f"{a} and {b}" for a, b in pairwise(front) if frozenset((a, b)) in report.ties]
    return f"; no significant difference in accuracy between {', '.join(found)}" if found else ""


def _steps(points: Sequence[Point]) -> tuple[Point, ...]:
    """Corners of a front: across to the next point, and then up."""
    corners = list(points[:1])
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return tuple(corners)


def _trials(speed: Speed) -> Point | None:
    return None if speed.low is None or speed.high is None or speed.low == speed.high else (speed.low, speed.high)


def _range(speed: Speed) -> str:
    span = _trials(speed)
    return f"trials: {words.tokens(span[0])} to {words.tokens(span[1])}" if span else ""


def _unit(values: Iterable[int]) -> tuple[str, int]:
    return ("GiB", 2**30) if max(values) >= 2**30 else ("MiB", 2**20)


def _lines(*lines: str) -> str:
    return "\n".join(line for line in lines if line)
