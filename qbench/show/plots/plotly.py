"""Shapes as plotly.js draws them (https://plotly.com/javascript/reference/): JSON, whose colours of text and grid are
those of the page's style sheet. Every trace of a backend names it in `meta`, by which the page filters."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from qbench.show.plots.shapes import Bar, BarChart, Chart, Pair, Panel, ScatterChart, Series
from qbench.show.plots.style import MANY_POINTS, CellStyle, wrap

Json = dict[str, Any]

BAR_PX, PANEL_PX, SCATTER_PX = 34, 54, 340
"""Heights: of a bar, of a panel's title and ticks, of points."""

LEGEND_ROW_PX = 22
ROOM = 1.42
"""How far an axis of bars goes beyond the longest, for the texts at their ends."""

PATTERNS = {"": "", "///": "/", "...": ".", "xx": "x"}
SYMBOLS = {"": "circle", "///": "square", "...": "diamond", "xx": "x"}
"""For matplotlib's hatches."""

NEUTRAL = "#888888"
"""Seen on white and on black."""

HOVER = {"bgcolor": "#222222", "bordercolor": "#999999", "font": {"color": "#ffffff", "size": 13}, "align": "left"}


def figure(chart: Chart) -> Json:
    """`data` and `layout` of a chart."""
    return _bars(chart) if isinstance(chart, BarChart) else _scatter(chart)


def text(value: str) -> str:
    """Text as it is: plotly reads tags in texts."""
    return html.escape(value, quote=False).replace("\n", "<br>")


def _layout(height: int) -> Json:
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": HOVER,
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "itemclick": False,
                   "itemdoubleclick": False},
        "barmode": "overlay",
    }  # fmt: skip


def _axis(title: str) -> Json:
    return {
        "title": {"text": text(title), "font": {"size": 13}},
        "automargin": True,
        "fixedrange": True,
        "zeroline": False,
    }


def _bars(chart: BarChart) -> Json:
    """Panels from top to bottom, each with axes of its own."""
    heights = [PANEL_PX + BAR_PX * len(panel.bars) for panel in chart.panels]
    legend = LEGEND_ROW_PX if chart.beside else 0
    layout, traces = _layout(sum(heights) + legend + 16) | {"shapes": [], "annotations": []}, []
    layout["showlegend"] = bool(chart.beside)
    layout["margin"]["t"] += legend
    top = 1.0
    for i, (panel, height) in enumerate(zip(chart.panels, heights, strict=True)):
        number = "" if i == 0 else str(i + 1)
        share = height / sum(heights)
        domain = [top - share * (1 - 40 / height), top - share * (20 / height if panel.title or panel.line else 0)]
        top -= share
        names = [bar.backend for bar in panel.bars]
        ticks = [text(wrap(name, 16, 2)) for name in names]
        ends = [bar.end for bar in panel.bars]
        limit = max(max(ends) * ROOM, panel.line[0] * 1.1 if panel.line else 0) or 1
        own = {"anchor": f"y{number}", "range": [0, limit], "nticks": 6}
        # Panels share their unit, which stands below the last.
        layout[f"xaxis{number}"] = _axis(panel.axis if panel is chart.panels[-1] else "") | own
        layout[f"yaxis{number}"] = _axis("") | {
            "anchor": f"x{number}", "domain": domain, "type": "category", "autorange": "reversed",
            "tickmode": "array", "tickvals": [text(name) for name in names], "ticktext": ticks, "showgrid": False,
        }  # fmt: skip
        traces += [_bar(bar, number) for bar in panel.bars]
        traces += [_note(bar, end, number) for bar, end in zip(panel.bars, ends, strict=True)]
        besides = [bar for bar in panel.bars if bar.beside is not None]
        traces += [_beside(bar, number, chart.beside, i == 0 and bar is besides[0]) for bar in besides]
        _entitle(layout, panel, number, domain[1])
    return {"data": traces, "layout": layout}


def _bar(bar: Bar, number: str) -> Json:
    value = bar.value or 0.0
    trace: Json = {
        "type": "bar", "orientation": "h", "meta": bar.backend, "x": [value], "y": [text(bar.backend)],
        "xaxis": f"x{number}", "yaxis": f"y{number}", "width": 0.64,
        "marker": _marker(bar.look) | {"pattern": {"shape": PATTERNS[bar.look.hatch], "fgcolor": bar.look.edge}},
        "hovertext": [text(bar.hover)], "hoverinfo": "text", "showlegend": False,
    }  # fmt: skip
    if bar.span:
        trace["error_x"] = _whiskers(value, bar.span)
    return trace


def _note(bar: Bar, end: float, number: str) -> Json:
    """The text of a bar, behind its whisker and diamond."""
    gap = "\u2003" if bar.beside else "\u2002"
    return {
        "type": "scatter", "mode": "text", "meta": bar.backend, "x": [end], "y": [text(bar.backend)],
        "xaxis": f"x{number}", "yaxis": f"y{number}", "text": [gap + text(bar.text)], "textposition": "middle right",
        "cliponaxis": False, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def _beside(bar: Bar, number: str, name: str, in_legend: bool) -> Json:
    return {
        "type": "scatter", "mode": "markers", "meta": bar.backend, "x": [bar.beside], "y": [text(bar.backend)],
        "xaxis": f"x{number}", "yaxis": f"y{number}", "name": text(name), "showlegend": in_legend,
        "marker": {"symbol": "diamond", "size": 9, "color": "#ffffff", "line": {"color": "#222222", "width": 2}},
        "hovertext": [text(bar.hover)], "hoverinfo": "text",
    }  # fmt: skip


def _entitle(layout: Json, panel: Panel, number: str, top: float) -> None:
    """The title of a panel, and its line."""
    common = {"showarrow": False, "yref": "paper", "y": top, "yanchor": "bottom"}
    if panel.title:
        layout["annotations"].append(
            common | {"xref": "paper", "x": 0, "xanchor": "left", "text": f"<b>{text(panel.title)}</b>"}
        )
    if panel.line:
        value, name = panel.line
        line = {"color": "#c2410c", "width": 2, "dash": "dash"}
        axes = {"xref": f"x{number}", "yref": f"y{number} domain"}
        layout["shapes"].append({"type": "line", "x0": value, "x1": value, "y0": 0, "y1": 1, "line": line} | axes)
        layout["annotations"].append(common | {"xref": f"x{number}", "x": value, "text": text(name)})


def _scatter(chart: ScatterChart) -> Json:
    layout = _layout(SCATTER_PX + LEGEND_ROW_PX * (1 + len(chart.series) // 3))
    layout["showlegend"] = True
    layout["xaxis"] = _axis(chart.x_axis) | {"nticks": 6}
    layout["yaxis"] = _axis(chart.y_axis) | ({"rangemode": "tozero"} if chart.connected else {})
    if chart.x_ticks:
        labels = [f"{tick:g}" for tick in chart.x_ticks]
        ticks = {"tickmode": "array", "tickvals": list(chart.x_ticks), "ticktext": labels}
        layout["xaxis"] |= {"type": "log"} | ticks
    lines = [_line(band, {"color": NEUTRAL, "width": 12}) | {"opacity": 0.25} for band in chart.ties]
    if chart.front:
        front = _line(chart.front, {"color": NEUTRAL, "width": 1.5})
        lines.append(front | {"name": "Pareto front", "showlegend": len(chart.front) > 1})
    for series in chart.series:
        if series.level is not None:
            level = ((0.0, series.level), (series.points[-1].x, series.level))
            dashes = {"color": series.look.edge, "width": 1, "dash": "dash"}
            lines.append(_line(level, dashes) | {"meta": series.backend})
    return {"data": [*lines, *(_series(one, connected=chart.connected) for one in chart.series)], "layout": layout}


def _line(corners: Sequence[Pair], line: Json) -> Json:
    return {
        "type": "scatter", "mode": "lines", "x": [x for x, _ in corners], "y": [y for _, y in corners], "line": line,
        "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def _series(series: Series, *, connected: bool) -> Json:
    points, look = series.points, series.look
    spans = [point.span or (point.y, point.y) for point in points]
    return {
        "type": "scatter", "mode": "lines+markers+text" if connected else "markers+text", "meta": series.backend,
        "name": text(series.backend), "x": [point.x for point in points], "y": [point.y for point in points],
        "marker": _marker(look) | {"size": 11 if len(points) < MANY_POINTS else 5, "symbol": SYMBOLS[look.hatch]},
        "line": {"color": look.edge, "width": 2},
        "textposition": ["top right" if point.span else "top center" for point in points],
        "text": [point.mark for point in points],
        "hovertext": [text(point.hover) for point in points], "hoverinfo": "text",
        "error_y": {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": NEUTRAL,
            "array": [high - point.y for point, (_, high) in zip(points, spans, strict=True)],
            "arrayminus": [point.y - low for point, (low, _) in zip(points, spans, strict=True)],
        },
    }  # fmt: skip


def _marker(look: CellStyle) -> Json:
    return {"color": look.fill, "line": {"color": look.edge, "width": 1}}


def _whiskers(value: float, span: tuple[float, float]) -> Json:
    sides = {"array": [span[1] - value], "arrayminus": [value - span[0]]}
    return {"type": "data", "symmetric": False, "thickness": 1.4, "width": 4, "color": NEUTRAL} | sides
