"""The charts that are bars: one figure of each backend, at each batch size where it depends on that."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qbench.analysis.figures import CHANCE_LEVEL, CellSummary, Speed
from qbench.show import formats
from qbench.show.phrases import NO_RESULT, accuracy_words, bandwidth_words, caption, ratio_words
from qbench.show.plots.shapes import Bar, BarChart, Pair, Panel
from qbench.show.plots.style import Looks
from qbench.show.verdicts import comparison_words, difference_words
from qbench.show.view.records import RunReport
from qbench.text import human_bytes

ENERGY_SOURCES = {
    "nvml": "energy of the GPUs' boards, by NVML's counter",
    "rapl": "energy of the processors' packages, by RAPL's counter",
}

WHISKERS = "whiskers: slowest and fastest trial"


def memory(report: RunReport, looks: Looks) -> BarChart | None:
    """Peak of the first forward, with its ratio to the reference's and with what was predicted."""
    peaks = {cell.name: cell.peak_memory_bytes for cell in report.cells if cell.peak_memory_bytes is not None}
    if not peaks:
        return None
    unit, size = formats.memory_unit(max(peaks.values()))
    whole = peaks.get(report.reference or "")
    bars = []
    for cell in report.cells:
        peak, predicted = peaks.get(cell.name), cell.predicted_bytes
        text = human_bytes(peak)
        hover = [f"{cell.name}: {text}", f"predicted: {human_bytes(predicted)}" if predicted else ""]
        ratio = peak / whole if peak and whole and cell.name != report.reference else None
        bars.append(
            _bar(
                cell, looks, None if peak is None else peak / size, text, hover,
                remark=f"{ratio:.2f} × {report.reference}" if ratio else "",
                beside=predicted / size if predicted and peak is not None else None,
            )
        )  # fmt: skip
    return BarChart(
        title="Peak memory",
        details=tuple(filter(None, [report.settings.get("memory", "")])),
        panels=(Panel(axis=f"peak memory ({unit})", bars=tuple(bars)),),
        beside="predicted from the model's config" if any(bar.beside for bar in bars) else "",
    )


def speed(report: RunReport, looks: Looks) -> BarChart | None:
    """Tokens/s, a panel for each batch size."""

    def bar(cell: CellSummary, speed: Speed) -> Bar:
        text, ratio = formats.tokens(speed.tokens_per_s), ratio_words(speed.speedup)
        hover = [
            f"{cell.name}, batch {speed.batch_size}: {text} tokens/s",
            formats.span(speed.span),
            f"{ratio} of the speed of {report.reference}" if ratio else "",
        ]
        return _bar(cell, looks, speed.tokens_per_s, text, hover, span=speed.span, speed=speed)

    panels = _by_batch(report, "tokens/s", bar)
    details = (report.settings.get("throughput", ""), WHISKERS, caption(report.cells))
    return BarChart(title="Decode speed", details=tuple(filter(None, details)), panels=panels) if panels else None


def accuracy(report: RunReport, looks: Looks) -> BarChart | None:
    """With intervals, what differs from the reference, and the line of chance."""
    if not any(cell.accuracy for cell in report.cells):
        return None
    compared = any(cell.accuracy and cell.accuracy.difference for cell in report.cells)
    bars = []
    for cell in report.cells:
        found = cell.accuracy
        if found is None:
            bars.append(_bar(cell, looks, None, "", []))
            continue
        hover = [f"{cell.name}: accuracy in %: {accuracy_words(found)}", f"{found.n:,} questions"]
        difference = comparison_words(found.difference, interval=False) if found.difference else ""
        bars.append(
            _bar(
                cell, looks, 100 * found.value, f"{100 * found.value:.1f} %{', partial' if found.partial else ''}",
                [*hover, difference_words(found)], remark=difference, span=(100 * found.low, 100 * found.high),
            )
        )  # fmt: skip
    words = f"against {report.reference}: by intervals that hold together with 95 %, and McNemar's test"
    return BarChart(
        title=report.accuracy_title,
        details=tuple(filter(None, [report.settings.get("mmlu", ""), words if compared else ""])),
        panels=(Panel(axis="accuracy (%)", bars=tuple(bars), line=(100 * CHANCE_LEVEL, "chance")),),
    )


def bandwidth(report: RunReport, looks: Looks) -> BarChart | None:
    """What a decode step reads a second, with the machine's ceiling."""
    ceiling = report.bandwidth

    def bar(cell: CellSummary, speed: Speed) -> Bar:
        rate = speed.step.read_bytes_per_s if speed.step else None
        share = f" ({rate / ceiling.bytes_per_s:.0%})" if rate and ceiling else ""
        text = formats.gigabytes_a_second(rate) + share
        hover = [f"{cell.name}, batch {speed.batch_size}: {text}"]
        return _bar(cell, looks, rate / 1e9 if rate else None, text, hover, speed=speed)

    line = (ceiling.bytes_per_s / 1e9, "ceiling") if ceiling else None
    panels = _by_batch(report, "GB/s read", bar, line)
    words = ("weights and cache that a step reads ÷ its time", f"ceiling: {bandwidth_words(ceiling)}")
    details = (*words, caption(report.cells))
    shown = tuple(filter(None, details))
    return BarChart(title="Bandwidth while decoding", details=shown, panels=panels) if panels else None


def energy(report: RunReport, looks: Looks) -> BarChart | None:
    """Joules a token, a panel for each batch size."""

    def bar(cell: CellSummary, speed: Speed) -> Bar:
        joules = speed.joules_per_token
        text = formats.joules(joules)
        return _bar(cell, looks, joules, text, [f"{cell.name}, batch {speed.batch_size}: {text} a token"], speed=speed)

    sources = {speed.energy_source for cell in report.cells for speed in cell.speeds} - {None}
    counted = [ENERGY_SOURCES.get(str(source), str(source)) for source in sorted(map(str, sources))]
    panels = _by_batch(report, "J a token", bar)
    details = (report.settings.get("throughput", ""), *counted, caption(report.cells))
    return BarChart(title="Energy", details=tuple(filter(None, details)), panels=panels) if panels else None


def latency(report: RunReport, looks: Looks) -> BarChart | None:
    """Time between tokens, a panel for each batch size."""

    def bar(cell: CellSummary, speed: Speed) -> Bar:
        p50, p95 = speed.itl_p50_s, speed.itl_p95_s
        hover = [
            f"{cell.name}, batch {speed.batch_size}: p50 {formats.milliseconds(p50)}, p95 {formats.milliseconds(p95)}",
            f"first token after {formats.milliseconds(speed.ttft_s)}",
        ]
        value, beside = (None if s is None else 1000 * s for s in (p50, p95))
        return _bar(cell, looks, value, formats.milliseconds(p50), hover, beside=beside, speed=speed)

    panels = _by_batch(report, "ms between tokens", bar)
    details = tuple(
        filter(None, (report.settings.get("throughput", ""), "bars and their figures: p50", caption(report.cells)))
    )
    return BarChart(title="Time between tokens", details=details, panels=panels, beside="p95") if panels else None


def _by_batch(
    report: RunReport, axis: str, make: Callable[[CellSummary, Speed], Bar], line: tuple[float, str] | None = None
) -> tuple[Panel, ...]:
    """A panel for each batch size at which some cell has a figure."""
    panels = []
    for size in report.batch_sizes:
        bars = tuple(make(cell, cell.at(size)) for cell in report.cells)
        if any(bar.value is not None for bar in bars):
            panels.append(Panel(title=f"batch {size}", axis=axis, bars=bars, line=line))
    return tuple(panels)


def _bar(
    cell: CellSummary,
    looks: Looks,
    value: float | None,
    text: str,
    hover: Iterable[str],
    *,
    remark: str = "",
    span: Pair | None = None,
    beside: float | None = None,
    speed: Speed | None = None,
) -> Bar:
    """The bar of a cell; without a value, what went wrong at its batch size or with it as a whole."""
    statuses = (speed.status if speed else None, cell.status)
    failure = next((status for status in statuses if status not in (None, "ok")), "")
    doubtful = bool(speed and speed.doubtful)
    if value is None:
        text, hover = failure or NO_RESULT, [f"{cell.name}: {failure or NO_RESULT}", cell.row.error or ""]
    else:
        text, remark = f"{text} !" if doubtful else text, failure or remark
        hover = [*hover, *(formats.doubts([reason]) for reason in (speed.reasons if speed else ()))]
    return Bar(
        backend=cell.name,
        look=looks[cell.name],
        value=value,
        span=span,
        beside=beside,
        text=text,
        remark=remark,
        hover=formats.lines(*hover),
        doubtful=doubtful or value is None or bool(failure),
    )
