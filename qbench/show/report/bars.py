"""The charts that are bars: one figure of each backend, at each batch size where it depends on that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qbench.analysis.stats import CHANCE_LEVEL
from qbench.show.plots.style import CellStyle
from qbench.show.report import words
from qbench.show.report.records import Cell, RunReport, Speed
from qbench.show.report.shapes import Bar, BarChart, Chart, Panel, Point
from qbench.show.report.tables import accuracy_words
from qbench.show.terminal import memory_unit


def memory(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """Peak of the first forward, with what was predicted."""
    peaks = [cell.peak_memory_bytes for cell in report.cells if cell.peak_memory_bytes is not None]
    if not peaks:
        return None
    unit, size, _ = memory_unit(max(peaks))
    bars = []
    for cell in report.cells:
        predicted = cell.predicted_bytes
        text = words.human_bytes(cell.peak_memory_bytes)
        known = [f"{cell.name}: {text}", f"predicted: {words.human_bytes(predicted)}" if predicted else ""]
        value = None if cell.peak_memory_bytes is None else cell.peak_memory_bytes / size
        beside = predicted / size if predicted and value is not None else None
        bars.append(_bar(cell, looks, value, text, known, beside=beside))
    diamonds = "predicted from the model's config" if any(bar.beside for bar in bars) else ""
    panel = Panel(title="", axis=f"peak memory ({unit})", bars=tuple(bars))
    return BarChart(key="memory", details=report.settings.get("memory", ""), panels=(panel,), beside=diamonds)


def speed(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """Tokens/s, a panel for each batch size."""

    def bar(cell: Cell, speed: Speed) -> Bar:
        text = words.tokens(speed.tokens_per_s)
        lines = [
            f"{cell.name}, batch {speed.batch_size}: {text} tokens/s",
            words.span(speed.span),
            f"{speed.speedup} of the 16-bit speed" if speed.speedup else "",
            *speed.doubts,
        ]
        return _bar(cell, looks, speed.tokens_per_s, text, lines, span=speed.span, speed=speed)

    panels = _by_batch(report, "tokens/s", bar)
    details = f"{report.settings.get('throughput', '')}; whiskers: slowest and fastest trial"
    return BarChart(key="speed", details=details, panels=panels) if panels else None


def accuracy(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """With intervals, and the line of chance."""
    if not any(cell.accuracy for cell in report.cells):
        return None
    bars = []
    for cell in report.cells:
        found = cell.accuracy
        if found is None:
            bars.append(_bar(cell, looks, None, "", []))
            continue
        lines = [f"{cell.name}: accuracy in %: {accuracy_words(cell)}, {found.n:,} questions", found.difference]
        text = f"{100 * found.value:.1f} %{', partial' if found.partial else ''}"
        bars.append(_bar(cell, looks, 100 * found.value, text, lines, span=(100 * found.low, 100 * found.high)))
    panel = Panel(title="", axis="accuracy (%)", bars=tuple(bars), line=(100 * CHANCE_LEVEL, "chance"))
    return BarChart(key="accuracy", details=report.settings.get("mmlu", ""), panels=(panel,))


def bandwidth(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """What a decode step reads a second, with the machine's ceiling."""
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


def latency(report: RunReport, looks: dict[str, CellStyle]) -> Chart | None:
    """Time between tokens, a panel for each batch size."""

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
    doubtful = bool(speed and speed.doubtful)
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
        hover=words.lines(*lines),
        doubtful=doubtful or value is None,
    )
