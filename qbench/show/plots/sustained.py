"""The figure of a sustained load: decode speed over the minutes, and what is left of it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qbench.records.run import Run, display_label
from qbench.show.plots import style

LEGEND_ROW_IN = 0.26

MARKERS = "os^Dv<>p"
"""Tell cells of one kind apart, which share their hue."""


def sustained_figure(run: Run, summary: pd.DataFrame) -> Figure | None:
    """A line for each cell and, dashed, its steady state (`formulas.steady_state`); None without rows."""
    rows = run.sustained
    if rows.empty:
        return None
    cells = [
        (cell, look)
        for cell, look in zip(summary.to_dict("records"), style.cell_styles(list(summary["backend"])), strict=True)
        if not pd.isna(cell["sustained_tokens_per_s"])
    ]
    figure = style.new_figure(5.2 + LEGEND_ROW_IN * len(cells))
    axes = figure.add_subplot(xlabel="minutes", ylabel="tokens/s")
    for i, (cell, look) in enumerate(cells):
        _draw_cell(axes, cell, look, MARKERS[i % len(MARKERS)], rows[rows["label"] == cell["label"]])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=11)
    style.entitle(figure, run, "Decode speed under sustained load", "\n".join(_details(rows)))
    return figure


def _draw_cell(axes: Axes, cell: dict[Any, Any], look: style.CellStyle, marker: str, windows: pd.DataFrame) -> None:
    minutes = [t_s / 60 for t_s in windows["t_s"]]
    speeds = [float(speed) for speed in windows["tokens_per_s"]]
    steady, peak = cell["sustained_tokens_per_s"], cell["sustained_peak_tokens_per_s"]
    name = style.plain(style.shorten(display_label(cell["backend"], cell["label"]), 28))
    label = f"{name}: {steady:,.4g} tokens/s at the end, {steady / peak:.0%} of {peak:,.4g} at first"
    axes.plot(minutes, speeds, color=look.fill, markeredgecolor=look.edge, marker=marker, markersize=4, label=label)
    axes.plot([0, minutes[-1]], 2 * [steady], color=look.edge, linewidth=1, linestyle=(0, (6, 4)), zorder=1)
    marked = [i for i, validity in enumerate(windows["validity"]) if _doubtful(validity)]
    axes.scatter(
        [minutes[i] for i in marked], [speeds[i] for i in marked], marker="x", color=style.ALARM, s=45, zorder=4
    )


def _doubtful(validity: Any) -> bool:
    return not pd.isna(validity) and validity != "ok"


def _details(rows: pd.DataFrame) -> Sequence[str]:
    first = rows.iloc[0]
    lines = [
        f"Batch {first['batch_size']}, {first['prompt_tokens']} prompt + {first['new_tokens']} new tokens on end, "
        "first excluded; dashed: median of the last third"
    ]
    found = sorted({reason for text in rows["validity"].dropna() for reason in text.split("+")} - {"ok"})
    return [*lines, *([f"x: {', '.join(found).replace('_', ' ')} in that window"] if found else [])]
