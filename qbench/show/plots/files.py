"""`qbench plot`: every chart of a run as PNG and SVG, with its title above and its origin below."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from qbench.show.plots import mpl
from qbench.show.plots.charts import charts
from qbench.show.plots.shapes import Chart
from qbench.show.plots.style import FAINT, wrap
from qbench.show.view.records import RunReport

WIDTH_IN = 8.0
"""1200 pixels; at half of that the smallest text is still 11 pixels high."""

TITLE_IN, CAPTION_LINE_IN = 0.6, 0.23


def write(report: RunReport, out: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Path]:
    """Write the charts for which the run has a figure; `progress` hears how many are drawn, and of how many.

    Returns:
        The files written.

    Raises:
        OSError: `out` is not writable.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    found = list(charts(report))
    for number, (kind, chart) in enumerate(found):
        progress(number, len(found))
        with mpl.drawing():
            paths += save(draw(chart, report), out / kind.file.format(model=_file_name(report.model)))
    return paths


def draw(chart: Chart, report: RunReport) -> Figure:
    """The chart with its title on top; below it what was measured, on which model and machine, and when."""
    figure = mpl.draw(chart, WIDTH_IN, wide=True)
    heading = figure.suptitle("", x=0.015, ha="left", fontsize=14, fontweight="bold")
    _fill(heading, [chart.title], columns=54)
    caption = figure.supxlabel("", x=0.015, ha="left", fontsize=11, color=FAINT, linespacing=1.35)
    origin = (f"{report.model}, {report.dtype}, run {report.title}, {report.day} UTC", report.machine)
    _fill(caption, [*(detail[0].upper() + detail[1:] for detail in chart.details), *origin], columns=88)
    lines = caption.get_text().count("\n") + 1
    figure.set_figheight(figure.get_figheight() + TITLE_IN + CAPTION_LINE_IN * lines)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as PNG and SVG, the same bytes for the same figure.

    Raises:
        OSError: the folder is not writable.
    """
    paths = [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")]
    mpl.settle(figure)
    figure.savefig(paths[0], metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _fill(text: Text, lines: Sequence[str], columns: int) -> None:
    """Write lines, each wrapped to at most two; of fewer columns if their letters are wide."""
    for width in range(columns, 8, -4):
        text.set_text("\n".join(wrap(line, width, 2) for line in lines))
        if text.get_window_extent().width < 0.97 * WIDTH_IN * mpl.DPI:
            return


def _file_name(model: str) -> str:
    """The last part of a model's name, without what a file's name should not have."""
    return re.sub(r"[^\w.-]+", "-", model.rpartition("/")[2]).strip("-.") or "model"
