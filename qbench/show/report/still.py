"""Shapes as SVG, for readers without scripts and for paper."""

from __future__ import annotations

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from qbench.show.plots import style
from qbench.show.plots.front import obstacles
from qbench.show.report.figures import MANY_DOTS
from qbench.show.report.shapes import BarChart, Chart, Panel, PlaneChart

WIDTH_IN = 5.6
"""On a phone its letters are still 10 pixels high."""

ROW_IN, PANEL_IN, PLANE_IN = 0.42, 0.85, 4.6
"""Heights: of a bar, of a panel's title and axis, of the plane that points lie in."""


def svg(chart: Chart) -> str:
    """The chart on white, the same text for the same chart; letters stay letters."""
    with style.drawing():
        mpl.rcParams["svg.fonttype"] = "none"
        figure = _bars(chart) if isinstance(chart, BarChart) else _plane(chart)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _bars(chart: BarChart) -> Figure:
    heights = [PANEL_IN + ROW_IN * len(panel.bars) for panel in chart.panels]
    figure = style.new_figure(sum(heights))
    figure.set_figwidth(WIDTH_IN)
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for axes, panel in zip(panels.flat, chart.panels, strict=True):
        _panel(axes, panel, chart.beside)
    panels.flat[-1].set_xlabel(chart.panels[-1].axis)
    return figure


def _panel(axes: Axes, panel: Panel, beside: str) -> None:
    bars = [
        style.Bar(name=bar.backend, look=bar.look, value=bar.value, span=bar.span, note=bar.text, doubtful=bar.doubtful)
        for bar in panel.bars
    ]
    style.draw_bars(axes, bars, room=0.35)
    axes.set_title(style.plain(panel.title))
    besides = {y: bar.beside for y, bar in enumerate(panel.bars) if bar.beside is not None}
    if besides:
        xs = list(besides.values())
        axes.scatter(xs, list(besides), s=36, marker="D", color=["white"], edgecolor=style.INK, zorder=5, label=beside)
        axes.set_xlim(right=max(axes.get_xlim()[1], 1.35 * max(xs)))
        for y, note in enumerate(axes.texts):
            if y in besides and isinstance(note, Annotation):
                note.set(x=10)  # points behind the diamond
                note.xy = (max(bars[y].end, besides[y]), y)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=11)
    if panel.line:
        value, name = panel.line
        axes.set_xlim(right=max(axes.get_xlim()[1], 1.1 * value))
        axes.axvline(value, color=style.ALARM, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.text(value, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom")


def _plane(chart: PlaneChart) -> Figure:
    figure = style.new_figure(PLANE_IN)
    figure.set_figwidth(WIDTH_IN)
    axes = figure.add_subplot(xlabel=chart.x_axis, ylabel=chart.y_axis)
    axes.grid(True)
    for trail in chart.trails:
        xs, ys = [dot.x for dot in trail.dots], [dot.y for dot in trail.dots]
        for dot in trail.dots:
            axes.plot([dot.x, dot.x], dot.span or (dot.y, dot.y), color=trail.look.edge, linewidth=1, zorder=3)
            if dot.doubtful:
                axes.annotate("!", (dot.x, dot.y), xytext=(0, 6), textcoords="offset points", color=style.ALARM)
        if chart.connected:
            axes.plot(xs, ys, color=trail.look.edge, zorder=2)
        look, label = trail.look, style.plain(trail.backend)
        axes.scatter(
            xs,
            ys,
            s=70 if len(xs) < MANY_DOTS else 16,
            color=[look.fill],
            edgecolor=look.edge,
            hatch=look.hatch,
            zorder=4,
            label=label,
        )
    if chart.x_ticks:
        axes.set_xscale("log")
        axes.set_xticks(chart.x_ticks, [f"{tick:g}" for tick in chart.x_ticks])
        axes.minorticks_off()
    if chart.connected:
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", frameon=False, fontsize=11)
    else:
        _name(figure, axes, chart)
    return figure


def _name(figure: Figure, axes: Axes, chart: PlaneChart) -> None:
    """The Pareto front, and every point's name beside it."""
    axes.margins(x=0.18, y=0.14)
    axes.plot([x for x, _ in chart.front], [y for _, y in chart.front], color=style.INK, linewidth=1.2, zorder=2)
    points = [(trail.dots[0].x, trail.dots[0].y) for trail in chart.trails]
    figure.draw_without_rendering()
    ordered = sorted(zip(points, chart.trails, strict=True), key=lambda pair: not pair[1].strong)
    names = [style.Name(point, style.shorten(trail.backend, 28), trail.strong) for point, trail in ordered]
    style.place_names(axes, names, obstacles(axes, points))
