"""The plots of a run, as shapes: the same for the interactive ones and for the still ones."""

from __future__ import annotations

from collections.abc import Callable

from qbench.show.plots.style import CellStyle, cell_styles
from qbench.show.report import bars, planes
from qbench.show.report.records import RunReport
from qbench.show.report.shapes import Chart

MAKERS: tuple[Callable[[RunReport, dict[str, CellStyle]], Chart | None], ...] = (
    bars.memory,
    bars.speed,
    bars.accuracy,
    planes.pareto,
    planes.accuracy_speed,
    planes.batches,
    bars.bandwidth,
    bars.latency,
    planes.sustained,
)


def charts(report: RunReport) -> list[Chart]:
    """Every chart for which the run has a figure."""
    looks = dict(zip((c.name for c in report.cells), cell_styles([c.kind for c in report.cells]), strict=True))
    return [chart for make in MAKERS if (chart := make(report, looks))]
