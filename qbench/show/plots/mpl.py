"""Charts drawn by matplotlib, without a display and whatever the user's matplotlibrc says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from qbench.show.plots.names import Name, obstacles, place_names
from qbench.show.plots.shapes import Bar, BarChart, Chart, Panel, ScatterChart, Series
from qbench.show.plots.style import ALARM, FAINT, GRID, INK, MANY_POINTS, shorten, wrap

DPI = 150
PAGE_WIDTH_IN = 5.6
"""On a phone its letters are still 10 pixels high."""

ROW_IN, LINE_IN, PANEL_IN, SCATTER_IN, LEGEND_ROW_IN = 0.42, 0.18, 0.85, 4.6, 0.26
"""Heights: of a bar with one line of text, of a second line, of a panel's title and axis, of points, of a legend's row.
"""

NAME_COLUMNS, NAME_IN, CHARACTER_IN = 17, 1.7, 0.092
"""Characters on a line of a bar's name, room for them, and room for a character of its text."""

FEW_LINES = 8
"""Whose legend finds a place among them."""

MARKERS = {"": "o", "///": "s", "...": "D", "xx": "X"}
"""By hatch, for lines, on which no hatch is seen."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "xtick.labelcolor": FAINT,
    "ytick.color": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "hatch.linewidth": 0.8,
    "errorbar.capsize": 3,
    # Without it the ids in an SVG differ from one writing to the next.
    "svg.hashsalt": "qbench",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our style alone; everything is as before at the end."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def svg(chart: Chart) -> str:
    """The chart on white for the page, the same text for the same chart; letters stay letters."""
    with drawing():
        mpl.rcParams["svg.fonttype"] = "none"
        written = io.StringIO()
        figure = draw(chart, PAGE_WIDTH_IN)
        settle(figure)
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def new_figure(width_in: float, height_in: float) -> Figure:
    """A figure of its own, with no window and no global state behind it."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.02)
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def draw(chart: Chart, width_in: float, *, wide: bool = False) -> Figure:
    """The chart without title and caption.

    Args:
        wide: whether there is room for second lines beside bars and for sentences in a legend.
    """
    return _bars(chart, width_in, wide) if isinstance(chart, BarChart) else _scatter(chart, width_in, wide)


def settle(figure: Figure) -> None:
    """Lay a finished figure out for good; matplotlib would do it again, and draw for nothing, whenever it is saved."""
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    figure.set_layout_engine(None)


def _bars(chart: BarChart, width_in: float, wide: bool) -> Figure:
    two_lines = wide and any(bar.remark for panel in chart.panels for bar in panel.bars)
    row = ROW_IN + LINE_IN * two_lines
    heights = [PANEL_IN + row * len(panel.bars) for panel in chart.panels]
    figure = new_figure(width_in, sum(heights))
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for axes, panel in zip(panels.flat, chart.panels, strict=True):
        _panel(axes, panel, chart.beside if panel is chart.panels[0] else "", width_in, wide)
    panels.flat[-1].set_xlabel(chart.panels[-1].axis)
    return figure


def _panel(axes: Axes, panel: Panel, beside: str, width_in: float, wide: bool) -> None:
    """Horizontal bars from zero, the first on top, each with its text at its end or, if it is missing, in its place."""
    notes = ["\n".join(filter(None, (bar.text, bar.remark if wide else ""))) for bar in panel.bars]
    for y, (bar, note) in enumerate(zip(panel.bars, notes, strict=True)):
        _draw_bar(axes, y, bar, note)
    besides = {y: bar.beside for y, bar in enumerate(panel.bars) if bar.beside is not None}
    if besides:
        xs, ys = list(besides.values()), list(besides)
        axes.scatter(xs, ys, s=36, marker="D", color=["white"], edgecolor=INK, zorder=5, label=beside)
    if besides and beside:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=11)
    axes.set_title(panel.title)
    axes.set_yticks(range(len(panel.bars)), [wrap(bar.backend, NAME_COLUMNS, 2) for bar in panel.bars])
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(panel.bars) - 0.5, -0.5)
    axes.set_xlim(0, max(_needed(panel, notes, width_in - NAME_IN), 1.1 * panel.line[0] if panel.line else 0) or 1)
    axes.set_xticks(_ticks(axes.get_xlim()[1], max(bar.end for bar in panel.bars)))
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(True, axis="x")
    axes.spines["bottom"].set_visible(False)
    if panel.line:
        value, name = panel.line
        axes.axvline(value, color=ALARM, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.text(value, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom")


def _ticks(end: float, longest: float) -> list[float]:
    """Up to the first behind the longest bar: the rest of the axis is room for texts, and percent end at 100."""
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, end)
    last = next((tick for tick in ticks if tick >= longest), ticks[-1])
    return [float(tick) for tick in ticks if tick <= last]


def _tick(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:,g}"


def _needed(panel: Panel, notes: list[str], room_in: float) -> float:
    """Where the axis has to end so that every text fits behind its bar, on axes of about that width."""
    lengths = [0.2 + CHARACTER_IN * max(map(len, note.splitlines() or [""])) for note in notes]
    return max(
        bar.end * room_in / max(room_in - length, room_in / 5)
        for bar, length in zip(panel.bars, lengths, strict=True)
    )  # fmt: skip


def _draw_bar(axes: Axes, y: int, bar: Bar, note: str) -> None:
    look = bar.look
    if bar.value is not None:
        axes.barh(y, bar.value, height=0.62, color=look.fill, edgecolor=look.edge, hatch=look.hatch)
    if bar.value is not None and bar.span is not None:
        below, above = bar.value - bar.span[0], bar.span[1] - bar.value
        axes.errorbar(bar.value, y, xerr=[[below], [above]], color=INK, linewidth=1.2)
    axes.annotate(
        note,
        (bar.end, y),
        xytext=(10 if bar.beside else 5, 0),
        textcoords="offset points",
        va="center_baseline",
        color=ALARM if bar.doubtful else INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _scatter(chart: ScatterChart, width_in: float, wide: bool) -> Figure:
    sentences = wide and any(series.legend for series in chart.series)
    figure = new_figure(width_in, SCATTER_IN + LEGEND_ROW_IN * len(chart.series) * sentences)
    axes = figure.add_subplot(xlabel=chart.x_axis, ylabel=chart.y_axis)
    axes.grid(True)
    for series in chart.series:
        _draw_series(axes, series, chart.connected, sentences)
    if chart.x_ticks:
        axes.set_xscale("log")
        axes.set_xticks(chart.x_ticks, [f"{tick:g}" for tick in chart.x_ticks])
        axes.minorticks_off()
    if chart.connected:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(_tick))
        axes.legend(frameon=False, fontsize=11, **_legend_place(len(chart.series), sentences))
    else:
        _front(figure, axes, chart)
    return figure


def _legend_place(series: int, sentences: bool) -> dict[str, Any]:
    """Above the axes for sentences, beside them for so many lines that no room among them is free."""
    if sentences:
        return {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    return {"loc": "upper left", "bbox_to_anchor": (1, 1)} if series > FEW_LINES else {"loc": "best"}


def _draw_series(axes: Axes, series: Series, connected: bool, sentences: bool) -> None:
    look, points = series.look, series.points
    xs, ys = [point.x for point in points], [point.y for point in points]
    for point in points:
        if point.span:
            axes.plot([point.x, point.x], point.span, color=look.edge, linewidth=1, zorder=3)
        if point.mark:
            # Above a whisker the mark would stand on others'; beside its end it is seen.
            end, offset, side = (point.span[1], (5, -4), "left") if point.span else (point.y, (0, 5), "center")
            axes.annotate(
                point.mark, (point.x, end), xytext=offset, textcoords="offset points", ha=side, color=ALARM,
                weight="bold", path_effects=[withStroke(linewidth=3, foreground="white")], zorder=6,
            )  # fmt: skip
    label = series.legend if sentences else shorten(series.backend, 28)
    if connected:
        many = len(points) >= MANY_POINTS
        axes.plot(
            xs, ys, color=look.edge, marker=MARKERS[look.hatch], markersize=4 if many else 8,
            markerfacecolor=look.fill, markeredgecolor=look.edge, label=label, zorder=2,
        )  # fmt: skip
    else:
        axes.scatter(xs, ys, s=70, color=[look.fill], edgecolor=look.edge, hatch=look.hatch, zorder=4, label=label)
    if series.level is not None:
        axes.plot([0, xs[-1]], [series.level] * 2, color=look.edge, linewidth=1, linestyle=(0, (6, 4)), zorder=1)


def _front(figure: Figure, axes: Axes, chart: ScatterChart) -> None:
    """The Pareto front, its ties as bands, and every point's name beside it; those of the front get the best places."""
    axes.margins(x=0.18, y=0.14)
    for band in chart.ties:
        xs, ys = zip(*band, strict=True)
        axes.plot(xs, ys, color=FAINT, linewidth=11, alpha=0.22, solid_capstyle="round", zorder=1)
    axes.plot([x for x, _ in chart.front], [y for _, y in chart.front], color=INK, linewidth=1.2, zorder=2)
    figure.draw_without_rendering()
    ordered = sorted(chart.series, key=lambda series: not series.strong)
    points = [(series.points[0].x, series.points[0].y) for series in ordered]
    names = [
        Name(point, shorten(series.backend, 28), series.strong) for point, series in zip(points, ordered, strict=True)
    ]
    place_names(axes, names, obstacles(axes, points))
