"""The charts of a run. A chart that is added here is drawn by `qbench plot` and shown by `qbench report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qbench.show.plots import bars, context, load, scatter
from qbench.show.plots.shapes import Chart
from qbench.show.plots.style import Looks, cell_styles
from qbench.show.view.records import RunReport


@dataclass(frozen=True, slots=True)
class ChartKind:
    """One of the charts that a run may have."""

    key: str
    file: str
    """Name of its files without suffix; {model} stands for the model's."""
    title: str
    explanation: str
    """What a reader has to know, in one sentence or two."""
    make: Callable[[RunReport, Looks], Chart | None]
    """None where the run has no figure for it."""


CHARTS = (
    ChartKind(
        "memory", "memory", "Memory",
        "Peak of the first forward after loading: weights, cache and what lives at once.", bars.memory,
    ),
    ChartKind(
        "speed", "throughput", "Decode speed",
        "Tokens a second after the first, all sequences of a batch together.", bars.speed,
    ),
    ChartKind(
        "accuracy", "mmlu", "Accuracy",
        "Whiskers are intervals of each by itself; differences are tested question by question.", bars.accuracy,
    ),
    ChartKind(
        "accuracy-context", "accuracy_context", "Accuracy over context",
        "Facts that a backend finds in prompts of a length, all needle tasks together; each is tested by itself in the "
        "table of tasks.", context.accuracy_over_context,
    ),
    ChartKind(
        "pareto", "pareto", "Accuracy against memory", "No backend beats one on the line in both.", scatter.pareto,
    ),
    ChartKind(
        "accuracy-speed", "accuracy_speed", "Accuracy against speed", "No backend beats one on the line in both.",
        scatter.accuracy_speed,
    ),
    ChartKind(
        "batches", "batches", "Speed against batch size",
        "Twice the batch is at most twice the speed, and less where arithmetic takes longer than reading weights.",
        scatter.batches,
    ),
    ChartKind(
        "depths", "depths", "Speed against context",
        "The more tokens are in the cache before the prompt, the more keys and values each step reads.", scatter.depths,
    ),
    ChartKind(
        "bandwidth", "bandwidth", "Bandwidth",
        "How fast decoding reads weights and cache. A model that fits the processor's caches is read from there.",
        bars.bandwidth,
    ),
    ChartKind(
        "latency", "latency", "Latency",
        "Time between tokens: half of them come faster than p50, one in twenty slower than p95.", bars.latency,
    ),
    ChartKind(
        "energy", "energy", "Energy",
        "Joules for each token made, by the hardware's counters: prefill and decoding of all sequences ÷ tokens.",
        bars.energy,
    ),
    ChartKind(
        "sustained", "sustained_{model}", "Sustained load",
        "Generations without a pause: what is left of the speed once the machine is warm.", scatter.sustained,
    ),
    ChartKind(
        "load-first-token", "load_first_token", "First token under load",
        "One request in twenty waits longer than this. More load comes from further requests at a time, or at a higher "
        "rate.", load.first_token,
    ),
    ChartKind(
        "load-between-tokens", "load_between_tokens", "Between tokens under load",
        "One token in twenty comes later than this after the one before it.", load.between_tokens,
    ),
    ChartKind(
        "load-throughput", "load_throughput", "Throughput under load",
        "Output tokens a second of all requests together, over how many are under way.", load.throughput,
    ),
    ChartKind(
        "goodput", "goodput", "Goodput",
        "Requests a second that are answered within the objective. Where they are fewer than all that are answered, "
        "the load is too high.", load.goodput,
    ),
)  # fmt: skip
"""In the order in which they are shown."""


def charts(report: RunReport) -> Iterator[tuple[ChartKind, Chart]]:
    """Every chart for which the run has a figure."""
    styles = cell_styles([cell.kind for cell in report.cells])
    looks = dict(zip((cell.name for cell in report.cells), styles, strict=True))
    for kind in CHARTS:
        if chart := kind.make(report, looks):
            yield kind, chart
