"""The figures of a run: memory, speed, MMLU, and accuracy against memory. Drawn from rows, without a display."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qbench.analysis import validity
from qbench.analysis.compare import tied
from qbench.analysis.effects import cache_words
from qbench.analysis.formulas import pareto_front
from qbench.analysis.stats import CHANCE_LEVEL, batch_sizes, decode_trials, summarize
from qbench.records.run import Run, display_label
from qbench.show.phrases import accuracy_difference
from qbench.show.plots import style
from qbench.show.plots.front import draw_front, draw_ties, obstacles
from qbench.show.plots.sustained import sustained_figure
from qbench.show.terminal import memory_unit, three_digits

PANELS_A_ROW = 3
ROW_IN = 0.56
"""Height of a bar with two lines of text beside it."""

Record = dict[str, Any]
"""A row of the summary, or a section of the configuration."""


def draw(run: Run, out: Path, *, allow_partial: bool = False) -> list[Path]:
    """Write the figures of a run to `out`, each as PNG and SVG: memory, throughput, mmlu, pareto, sustained_<model>.

    A figure for which no cell has a value is left out. Accuracy over part of the questions is drawn, and marked as
    such, only with `allow_partial`.

    Returns:
        The files written.

    Raises:
        OSError: `out` is not writable.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary = summarize(run, allow_partial=allow_partial)
    paths: list[Path] = []
    for name, make in FIGURES.items():
        with style.drawing():
            figure = make(run, summary)
            if figure is not None:
                paths += style.save(figure, out / name.format(model=_file_name(run.record.model)))
    return paths


def memory_figure(run: Run, summary: pd.DataFrame) -> Figure | None:
    """Bars of the cells' peak memory, with their ratio to the fp16 cell; None if no cell has one."""
    cells = _records(summary)
    if summary["peak_memory_bytes"].isna().all():
        return None
    unit, unit_bytes, pattern = memory_unit(summary["peak_memory_bytes"].max())
    measured = [cell for cell in cells if cell["peak_memory_bytes"] is not None]
    reference = next((cell for cell in measured if cell["backend"] == "fp16"), None)
    bars = []
    for cell, look in zip(cells, _looks(cells), strict=True):
        if cell not in measured:
            bars.append(_bar(cell, look, None))
            continue
        value, remark = cell["peak_memory_bytes"] / unit_bytes, ""
        if reference and cell != reference:
            ratio = cell["peak_memory_bytes"] / reference["peak_memory_bytes"]
            remark = f"{ratio:.2f} × {style.shorten(_name(reference), 12)}"
        bars.append(_bar(cell, look, value, note=pattern.format(value), remark=remark))
    figure = style.new_figure(_height(len(cells)))
    axes = figure.add_subplot(xlabel=f"peak memory ({unit})")
    style.draw_bars(axes, bars, room=0.3)
    setting = _setting(run, "memory")
    details = "First forward after loading" + (", batch {batch_size}, {seq_len} tokens" if setting else "")
    style.entitle(figure, run, "Peak memory", details.format(**setting))
    return figure


def throughput_figure(run: Run, summary: pd.DataFrame) -> Figure | None:
    """A panel for each batch size with the cells' decode speed; None if no trial gave one."""
    sizes = batch_sizes(run)
    if summary[[f"decode_tokens_per_s_b{size}" for size in sizes]].isna().all(axis=None):
        return None
    columns = min(len(sizes), PANELS_A_ROW)
    rows = -(-len(sizes) // columns)
    figure = style.new_figure(rows * _height(len(summary)))
    panels = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(panels.flat):
        if i < len(sizes):
            style.draw_bars(axes, _speed_bars(run, summary, sizes[i]), room=0.25 * columns)
            axes.set(title=f"batch {sizes[i]}", xlabel="tokens/s")
            axes.tick_params(labelleft=i % columns == 0)
        else:
            axes.set_axis_off()
    doubts = validity.caption(_records(summary), sizes)
    style.entitle(figure, run, "Decode speed", "\n".join(filter(None, (_speed_details(run), doubts))))
    return figure


def _speed_bars(run: Run, summary: pd.DataFrame, batch_size: int) -> list[style.Bar]:
    cells = _records(summary)
    bars = []
    for cell, look in zip(cells, _looks(cells), strict=True):
        value = cell[f"decode_tokens_per_s_b{batch_size}"]
        trials = decode_trials(run, cell["label"], batch_size)
        mark = validity.mark(cell, batch_size)
        note = "" if value is None else three_digits(value) + mark
        span = (min(trials), max(trials)) if len(trials) > 1 else None
        status = cell[f"status_b{batch_size}"]
        bars.append(_bar(cell, look, value, note=note, span=span, status=status, doubtful=bool(mark)))
    return bars


def _speed_details(run: Run) -> str:
    rows = run.throughput
    prompt, new = int(rows["prompt_tokens"].max()), int(rows["new_tokens"].max())
    lengths = f"{prompt} prompt + {new} new tokens, first excluded{cache_words(rows)}"
    return f"{lengths}; bars: median, marks: range of the trials"


def mmlu_figure(run: Run, summary: pd.DataFrame) -> Figure | None:
    """Bars of the cells' accuracy with 95 % intervals, what differs from the 16-bit cell, and the chance line.

    None if no cell has an accuracy.
    """
    cells = _records(summary)
    if summary["mmlu"].isna().all():
        return None
    figure = style.new_figure(_height(len(cells)) + 0.2)
    axes = figure.add_subplot(xlabel="accuracy (%)")
    bars = [_accuracy_bar(cell, look) for cell, look in zip(cells, _looks(cells), strict=True)]
    compared = not summary["mmlu_delta"].isna().all()
    style.draw_bars(axes, bars, room=0.48 if compared else 0.3)
    # A model may do worse than chance; the line is in view all the same.
    axes.set_xlim(right=max(axes.get_xlim()[1], 120 * CHANCE_LEVEL))
    axes.axvline(100 * CHANCE_LEVEL, color=style.INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"chance {CHANCE_LEVEL:.0%}",
        (100 * CHANCE_LEVEL, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
    )
    details = [_accuracy_details(run, summary)]
    if compared:
        details.append("Beside the bars: difference to the 16-bit cell, by McNemar's test, p corrected by Holm")
    style.entitle(figure, run, _accuracy_title(run, summary, "{}"), "\n".join(details))
    return figure


def _accuracy_bar(cell: Record, look: style.CellStyle) -> style.Bar:
    if cell["mmlu"] is None:
        return _bar(cell, look, None)
    low, high = cell["mmlu_ci_low"], cell["mmlu_ci_high"]
    note, remark = f"{cell['mmlu']:.1%}", f"{low:.1%} to {high:.1%}"
    if cell["mmlu_delta"] is not None:
        note += f", {accuracy_difference(cell, interval=False)}"
    return _bar(cell, look, 100 * cell["mmlu"], span=(100 * low, 100 * high), note=note, remark=remark)


def pareto_figure(run: Run, summary: pd.DataFrame) -> Figure | None:
    """Accuracy against peak memory with the Pareto front; None if no cell has both."""
    cells = _records(summary)
    shown = [cell for cell in cells if cell["mmlu"] is not None and cell["peak_memory_bytes"] is not None]
    if not shown:
        return None
    unit, unit_bytes, _ = memory_unit(max(cell["peak_memory_bytes"] for cell in shown))
    points = [(cell["peak_memory_bytes"] / unit_bytes, 100 * cell["mmlu"]) for cell in shown]
    front = pareto_front(points)
    figure = style.new_figure(5.6)
    axes = figure.add_subplot(xlabel=f"peak memory ({unit})", ylabel="accuracy (%)")
    axes.grid(True)
    axes.margins(x=0.18, y=0.14)
    for cell, look in zip(cells, _looks(cells), strict=True):
        if cell in shown:
            _draw_point(axes, points[shown.index(cell)], cell, look)
    ties = _ties(run, shown, front)
    draw_ties(axes, [[points[i] for i in group] for group in ties])
    draw_front(axes, [points[i] for i in front])
    details = [
        f"{_accuracy_details(run, summary)}; line: Pareto front; chance: {CHANCE_LEVEL:.0%}",
        *_tied([[_name(shown[i]) for i in group] for group in ties]),
        *_not_shown(cells, shown),
    ]
    style.entitle(figure, run, _accuracy_title(run, summary, "{} against peak memory"), "\n".join(details))
    figure.draw_without_rendering()
    # Names of the front first: they get the best places.
    order = [*front, *(i for i in range(len(shown)) if i not in front)]
    names = [style.Name(points[i], style.shorten(_name(shown[i]), 28), i in front) for i in order]
    style.place_names(axes, names, obstacles(axes, points))
    return figure


def _draw_point(axes: Axes, point: tuple[float, float], cell: Record, look: style.CellStyle) -> None:
    """A cell's accuracy with its interval."""
    interval = 100 * cell["mmlu_ci_low"], 100 * cell["mmlu_ci_high"]
    axes.plot([point[0], point[0]], interval, color=look.edge, linewidth=1, alpha=0.7, zorder=3)
    axes.scatter(*point, s=80, color=[look.fill], edgecolor=look.edge, hatch=look.hatch, zorder=4)


def _ties(run: Run, shown: Sequence[Record], front: Sequence[int]) -> list[list[int]]:
    """Stretches of the front, two cells or more each, along which no cell's accuracy differs from its neighbour's."""
    pairs = tied(run, [cell["label"] for cell in shown])
    groups: list[list[int]] = []
    for i, j in pairwise(front):
        if frozenset((shown[i]["label"], shown[j]["label"])) in pairs:
            if groups and groups[-1][-1] == i:
                groups[-1].append(j)
            else:
                groups.append([i, j])
    return groups


def _tied(groups: Sequence[Sequence[str]]) -> list[str]:
    among = " between neighbours" if any(len(group) > 2 for group in groups) else ""
    names = "; ".join(", ".join(group) for group in groups)
    return [f"Tied, shaded: {names} (no significant difference{among})"] if groups else []


def _not_shown(cells: Sequence[Record], shown: Sequence[Record]) -> list[str]:
    absent = [f"{_name(cell)} ({_failure(cell) or NO_RESULT})" for cell in cells if cell not in shown]
    return [f"Not shown: {', '.join(absent)}"] if absent else []


def _bar(
    cell: Record, look: style.CellStyle, value: float | None, *, status: str | None = None, **texts: Any
) -> style.Bar:
    """The bar of a cell, or the reason why it has none. `status` is the value's own, if it has one."""
    failure = _failure(cell, status) or ("" if value is not None else NO_RESULT)
    return style.Bar(name=_name(cell), look=look, value=value, failure=failure, **texts)


FIGURES: dict[str, Callable[[Run, pd.DataFrame], Figure | None]] = {
    "memory": memory_figure,
    "throughput": throughput_figure,
    "mmlu": mmlu_figure,
    "pareto": pareto_figure,
    "sustained_{model}": sustained_figure,
}
"""The figures by the names of their files."""

NO_RESULT = "no result"
"""Of a cell that is ok but was not measured, or only in part."""


def _failure(cell: Record, status: str | None = None) -> str:
    """What went wrong, in a word: with the value itself, else with the cell."""
    return next((word for word in (status, cell["status"]) if word not in (None, "ok")), "")


def _looks(cells: Sequence[Record]) -> list[style.CellStyle]:
    return style.cell_styles([cell["backend"] for cell in cells])


def _records(summary: pd.DataFrame) -> list[Record]:
    """The rows of the summary, None where it has NA."""
    records = summary.to_dict("records")
    return [{str(key): None if pd.isna(value) else value for key, value in record.items()} for record in records]


def _name(cell: Record) -> str:
    return display_label(cell["backend"], cell["label"])


def _file_name(model: str) -> str:
    """The last part of a model's name, without what a file's name should not have."""
    return re.sub(r"[^\w.-]+", "-", model.rpartition("/")[2]).strip("-.") or "model"


def _height(bars: int) -> float:
    return 2.3 + ROW_IN * bars


def _setting(run: Run, name: str) -> Record:
    """A measure's settings; empty if it is not in the run's configuration."""
    settings: Record = (run.record.config.get("measure") or {}).get(name) or {}
    return settings


def _accuracy_title(run: Run, summary: pd.DataFrame, pattern: str) -> str:
    """The title, which says so if the questions are not MMLU's or not all of them."""
    demo = _setting(run, "mmlu").get("data") == "demo"
    title = pattern.format("Accuracy on the demo questions" if demo else "MMLU accuracy")
    return f"{title}\npartial: {_questions(summary)}" if summary["mmlu_partial"].any() else title


def _accuracy_details(run: Run, summary: pd.DataFrame) -> str:
    shots = "/".join(
        str(number) for number in sorted(set(run.accuracy.loc[run.accuracy["task"] == "mmlu", "num_fewshot"]))
    )
    return f"{_questions(summary)}, {shots}-shot, with 95% Wilson intervals"


def _questions(summary: pd.DataFrame) -> str:
    least, most = summary["mmlu_n"].min(), summary["mmlu_n"].max()
    return f"{most:,} questions" if least == most else f"{least:,} to {most:,} questions"
