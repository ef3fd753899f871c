"""How the figures look: colours, text, captions, files. Nothing here knows what a figure shows."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.path import Path as Path2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from qbench.config import Backend, backend_class
from qbench.records.run import Run

DPI = 150
WIDTH_IN = 8.0
"""1200 pixels; at half of that the smallest text is still 11 pixels high."""

INK, FAINT, GRID, ALARM = "#222222", "#666666", "#e3e3e3", "#a83c00"

SPARE_COLORS = ("#56b4e9", "#d55e00", "#f0e442")
"""For kinds without a `color`. With those of the shipped kinds: Okabe–Ito, which colour-blind readers can tell apart;
grey, in place of its black, is the reference."""

HATCHES = ("", "///", "...", "xx")

CROWD_PX = 70
"""Points closer than this share a crowd."""

NAME_COLUMNS = 17
"""Characters on a line of a bar's name."""

DIRECTIONS = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0))
"""Where a name may stand as seen from its point, right and up, the best first."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
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


@dataclass(frozen=True, slots=True)
class CellStyle:
    """What a cell looks like in every figure: the hue is its kind's; further cells of a kind are lighter, hatched."""

    fill: tuple[float, float, float]
    edge: str
    hatch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar and its texts."""

    name: str
    look: CellStyle
    value: float | None
    span: tuple[float, float] | None = None
    """Range or interval of the value."""
    note: str = ""
    remark: str = ""
    """Second line of the note."""
    failure: str = ""
    doubtful: bool = False
    """Whether its texts stand out as those of a failure do."""

    @property
    def end(self) -> float:
        """Where the texts begin."""
        return max(self.value or 0.0, self.span[1] if self.span else 0.0)


@dataclass(frozen=True, slots=True)
class Name:
    """What is written beside a point."""

    point: tuple[float, float]
    text: str
    strong: bool


@contextmanager
def drawing() -> Iterator[None]:
    """Our style alone, whatever the user's matplotlibrc says; everything is as before at the end."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def cell_styles(kinds: Sequence[str]) -> list[CellStyle]:
    """The styles of cells of these kinds, in their order."""
    own = {kind: (backend_class(kind) or Backend).color for kind in sorted(set(kinds))}
    spare = itertools.cycle(SPARE_COLORS)
    colors = {kind: color or next(spare) for kind, color in own.items()}
    seen: Counter[str] = Counter()
    styles = []
    for kind in kinds:
        nth = seen[kind]
        seen[kind] += 1
        styles.append(CellStyle(_lighter(colors[kind], nth), colors[kind], HATCHES[nth % len(HATCHES)]))
    return styles


def _lighter(color: str, steps: int) -> tuple[float, float, float]:
    red, green, blue = (1 - (1 - channel) * 0.55**steps for channel in to_rgb(color))
    return red, green, blue


def plain(text: str) -> str:
    """Text that matplotlib draws as it is: one line, and no dollar begins a formula."""
    return " ".join(text.split()).replace("$", r"\$")


def shorten(text: str, length: int) -> str:
    """`text` in at most `length` characters, its middle left out, because names differ at their ends."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"


def wrap(text: str, width: int, lines: int) -> str:
    """`text` on at most `lines` lines of `width` characters, shortened if it has to be."""
    text = " ".join(text.split())
    for length in range(width * lines, 0, -1):
        wrapped = textwrap.wrap(shorten(text, length), width)
        if len(wrapped) <= lines:
            break
    return "\n".join(plain(line) for line in wrapped)


def new_figure(height_in: float) -> Figure:
    """A figure of its own, with no window and no global state behind it."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.02)
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def entitle(figure: Figure, run: Run, title: str, details: str) -> None:
    """The title on top; below the figure what was measured, on which model and machine, and when."""
    heading = figure.suptitle("", x=0.015, ha="left", fontsize=14, fontweight="bold")
    _fill(heading, title.splitlines(), columns=54)
    caption = figure.supxlabel("", x=0.015, ha="left", fontsize=11, color=FAINT, linespacing=1.35)
    _fill(caption, [*details.splitlines(), *_origin(run)], columns=88)


def _fill(text: Text, lines: Sequence[str], columns: int) -> None:
    """Write lines, each wrapped to at most two; of fewer columns if their letters are wide."""
    for width in range(columns, 8, -4):
        text.set_text("\n".join(wrap(line, width, 2) for line in lines))
        if text.get_window_extent().width < 0.97 * WIDTH_IN * DPI:
            return


def _origin(run: Run) -> tuple[str, str]:
    record = run.record
    dtypes = sorted({str(dtype) for dtype in run.cells["dtype"].dropna()}) or [str(record.config.get("dtype", ""))]
    day = record.started.astimezone(UTC).date().isoformat()
    return (
        f"{record.model}, {'/'.join(dtypes)}, run {record.name}, {day} UTC",
        record.hardware,
    )


def draw_bars(axes: Axes, bars: Sequence[Bar], room: float) -> None:
    """Horizontal bars from zero, the first on top, each with its texts at its end or, if it is missing, in its place.

    `room` is kept free for the texts, as a share of the longest bar.
    """
    for y, bar in enumerate(bars):
        _draw_bar(axes, y, bar)
    axes.set_yticks(range(len(bars)), [wrap(bar.name, NAME_COLUMNS, 2) for bar in bars])
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, max(bar.end for bar in bars) * (1 + room) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(2 if room > 0.5 else 5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 10_000 else f"{x:,g}"))
    axes.grid(True, axis="x")
    axes.spines["bottom"].set_visible(False)


def _draw_bar(axes: Axes, y: int, bar: Bar) -> None:
    look = bar.look
    if bar.value is not None:
        axes.barh(y, bar.value, height=0.62, color=look.fill, edgecolor=look.edge, hatch=look.hatch)
    if bar.value is not None and bar.span is not None:
        below, above = bar.value - bar.span[0], bar.span[1] - bar.value
        axes.errorbar(bar.value, y, xerr=[[below], [above]], color=INK, linewidth=1.2)
    axes.annotate(
        "\n".join(plain(text) for text in (bar.note, bar.remark, bar.failure) if text),
        (bar.end, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center_baseline",
        color=ALARM if bar.failure or bar.doubtful else INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def place_names(axes: Axes, names: Sequence[Name], obstacles: Sequence[Bbox]) -> None:
    """Write names beside their points, each in the nearest place where it covers no other name and no obstacle.

    Nor does the line from a name to its point cross another's. Obstacles are boxes in pixels; the layout is settled.
    """
    taken, lines, scale = list(obstacles), list[Path2D](), 72 / DPI
    spots = [axes.transData.transform(name.point) for name in names]
    for name, (x, y) in zip(names, spots, strict=True):
        # Among close points, a name at arm's length with a line to its own point cannot be taken for another's.
        crowded = sum(math.hypot(x - right, y - up) < CROWD_PX for right, up in spots) > 1
        weight = "bold" if name.strong else "normal"
        places = _places(x, y, _extent(axes, name.text, weight), nearest=40 if crowded else 16)
        ways = [Path2D([(x, y), ((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2)]) for place in places]
        costs = [
            _clashes(place, taken, axes.bbox) + _crossings(place, way, lines)
            for place, way in zip(places, ways, strict=True)
        ]
        box, way = places[costs.index(min(costs))], ways[costs.index(min(costs))]
        taken.append(box)
        lines.append(way)
        line = crowded or places.index(box) >= len(DIRECTIONS)
        axes.annotate(
            plain(name.text),
            name.point,
            color=INK if name.strong else FAINT,
            weight=weight,
            ha="center",
            va="center",
            xytext=((box.x0 + box.x1 - 2 * x) / 2 * scale, (box.y0 + box.y1 - 2 * y) / 2 * scale),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.8, "shrinkB": 5} if line else None,
            zorder=5,
        ).set_in_layout(False)


def _extent(axes: Axes, text: str, weight: str) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    probe = axes.text(0, 0, plain(text), weight=weight)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height


def _places(x: float, y: float, extent: tuple[float, float], nearest: int) -> list[Bbox]:
    """Boxes of that extent around a point, the nearest first."""
    width, height = extent
    return [
        Bbox.from_bounds(
            x + right * (width / 2 + gap) - width / 2, y + up * (height / 2 + gap) - height / 2, width, height
        )
        for gap in range(nearest, nearest + 240, 12)
        for right, up in DIRECTIONS
    ]


def _clashes(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> int:
    """How many boxes this one overlaps; more than all of them if it leaves the frame."""
    outside = bool(box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1)
    near = box.padded(6)
    return sum(bool(near.overlaps(other)) for other in taken) + (len(taken) + 1) * outside


def _crossings(box: Bbox, way: Path2D, lines: Sequence[Path2D]) -> int:
    """How many of the lines this one crosses, or has under its name."""
    return sum(bool(way.intersects_path(line, filled=False) or line.intersects_bbox(box)) for line in lines)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as PNG and SVG, the same bytes for the same figure.

    Raises:
        OSError: the folder is not writable.
    """
    paths = [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")]
    figure.savefig(paths[0], metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
