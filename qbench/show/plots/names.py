"""Names beside points, placed so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from qbench.show.plots.style import FAINT, INK

CROWD_PX = 70
"""Points closer than this share a crowd."""

DIRECTIONS = (
    *((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0)),
    *((1, 0.5), (1, -0.5), (0.5, 1), (0.5, -1), (-1, 0.5), (-1, -0.5), (-0.5, 1), (-0.5, -1)),
)
"""Where a name may stand as seen from its point, right and up, the best first."""

POINT_PX = 7
"""Radius of a point."""

NEAR_PX = 24
"""A name this close to its point needs no line."""


@dataclass(frozen=True, slots=True)
class Name:
    """What is written beside a point."""

    point: tuple[float, float]
    text: str
    strong: bool


def place_names(axes: Axes, names: Sequence[Name], obstacles: Sequence[Bbox]) -> None:
    """Write names beside their points, each in the nearest place where it covers no other name and no obstacle.

    Nor does the line from a name to its point cross another's, another name or another point. Obstacles are boxes in
    pixels; the layout is settled.
    """
    taken, written, lines = list(obstacles), list[Bbox](), list[Path]()
    scale = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    spots = [axes.transData.transform(name.point) for name in names]
    for name, (x, y) in zip(names, spots, strict=True):
        # Among close points, a name at arm's length with a line to its own point cannot be taken for another's.
        crowded = sum(math.hypot(x - right, y - up) < CROWD_PX for right, up in spots) > 1
        weight = "bold" if name.strong else "normal"
        others = [
            Bbox([spot, spot]).padded(POINT_PX) for spot in spots if math.hypot(x - spot[0], y - spot[1]) > 2 * POINT_PX
        ]
        least = math.inf
        for place in _places(x, y, _extent(axes, name.text, weight), nearest=40 if crowded else 16):
            to = Path([(x, y), ((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2)])
            cost = _clashes(place, taken, axes.bbox) + _crossings(place, to, lines, [*written, *others])
            if cost < least:
                least, box, way = cost, place, to
            if not cost:
                break
        taken.append(box)
        written.append(box)
        lines.append(way)
        line = crowded or not box.padded(NEAR_PX).contains(x, y)
        axes.annotate(
            name.text,
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


def obstacles(axes: Axes, points: Sequence[tuple[float, float]]) -> list[Bbox]:
    """What a name must not cover, in pixels: points, and every line and mark that has been drawn."""
    boxes = [Bbox([spot, spot]).padded(9) for spot in axes.transData.transform(points)]
    boxes += [text.get_window_extent() for text in axes.texts]
    for line in axes.lines:
        corners = axes.transData.transform(line.get_xydata())
        boxes += [Bbox([start, end]).padded(2) for start, end in pairwise(corners)]
    return boxes


def _extent(axes: Axes, text: str, weight: str) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    probe = axes.text(0, 0, text, weight=weight)
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


def _crossings(box: Bbox, way: Path, lines: Sequence[Path], others: Sequence[Bbox]) -> int:
    """How many lines this one crosses, and twice how many lie under its name or names and points on its way."""
    crossed = sum(bool(way.intersects_path(line, filled=False)) for line in lines)
    covered = sum(bool(line.intersects_bbox(box)) for line in lines)
    return crossed + 2 * (covered + sum(bool(way.intersects_bbox(other)) for other in others))
