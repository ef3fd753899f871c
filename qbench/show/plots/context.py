"""The chart of needle tasks: how many facts each backend finds, over the length of the prompts they are hidden in."""

from __future__ import annotations

from collections.abc import Mapping

from qbench.analysis.effects import Accuracy
from qbench.config import needles
from qbench.show import formats
from qbench.show.phrases import accuracy_words, not_shown
from qbench.show.plots.shapes import Point, ScatterChart, Series
from qbench.show.plots.style import Looks
from qbench.show.verdicts import difference_words
from qbench.show.view.records import RunReport

ByTask = dict[str, Accuracy]


def accuracy_over_context(report: RunReport, looks: Looks) -> ScatterChart | None:
    """A line a backend, a point a length, over the questions of all needle tasks together; None for a single length.

    A length at which a backend lacks one of the tasks has no point: easier tasks alone would look like a better model.
    """
    found = _needles(report)
    tasks = sorted({task for lengths in found.values() for results in lengths.values() for task in results})
    series = []
    for cell in report.cells:
        whole = {n: results for n, results in sorted(found.get(cell.name, {}).items()) if len(results) == len(tasks)}
        points = tuple(_point(cell.name, length, results) for length, results in whole.items())
        if points:
            series.append(Series(backend=cell.name, look=looks[cell.name], points=points))
    ticks = tuple(sorted({point.x for one in series for point in one.points}))
    if len(ticks) < 2:
        return None
    asked = sorted({one.n for lengths in found.values() for results in lengths.values() for one in results.values()})
    partial = any(one.partial for lengths in found.values() for results in lengths.values() for one in results.values())
    counted = f"{asked[0]:,}" if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,}"
    return ScatterChart(
        title="Accuracy over context",
        details=(
            f"{counted} prompts of each task{', partial' if partial else ''}: {', '.join(tasks)}",
            "whiskers: 95 % Wilson intervals",
            *not_shown(report.cells, {one.backend for one in series}),
        ),
        x_axis="tokens of prompt and answer",
        y_axis="needles found (%)",
        series=tuple(series),
        connected=True,
        x_ticks=ticks,
    )


def _needles(report: RunReport) -> dict[str, dict[int, ByTask]]:
    """By cell and length, the result in each needle task."""
    found: dict[str, dict[int, ByTask]] = {}
    for name, result in report.tasks:
        task, length = needles.split(result.task)
        if length is not None:
            found.setdefault(name, {}).setdefault(length, {})[task] = result.accuracy
    return found


def _point(name: str, length: int, results: Mapping[str, Accuracy]) -> Point:
    every = results.values()
    together = Accuracy(
        correct=sum(one.correct for one in every),
        n=sum(one.n for one in every),
        questions="needles",
        partial=any(one.partial for one in every),
    )
    apart = [f"{task}: {accuracy_words(one)} {difference_words(one)}".rstrip() for task, one in sorted(results.items())]
    return Point(
        x=length,
        y=100 * together.value,
        span=(100 * together.low, 100 * together.high),
        hover=formats.lines(f"{name}, {length:,} tokens: {accuracy_words(together)}", *apart),
    )
