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

DIRECTIONS = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0))
"""Where a name may stand as seen from its point, right and up, the best first."""


@dataclass(frozen=True, slots=True)
class Name:
    """What is written beside a point."""

    point: tuple[float, float]
    text: str
    strong: bool


def place_names(axes: Axes, names: Sequence[Name], obstacles: Sequence[Bbox]) -> None:
    """Write names beside their points, each in the nearest place where it covers no other name and no obstacle.

    Nor does the line from a name to its point cross another's. Obstacles are boxes in pixels; the layout is settled.
    """
    taken, lines, scale = list(obstacles), list[Path](), 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    spots = [axes.transData.transform(name.point) for name in names]
    for name, (x, y) in zip(names, spots, strict=True):
        # Among close points, a name at arm's length with a line to its own point cannot be taken for another's.
        crowded = sum(math.hypot(x - right, y - up) < CROWD_PX for right, up in spots) > 1
        weight = "bold" if name.strong else "normal"
        places = _places(x, y, _extent(axes, name.text, weight), nearest=40 if crowded else 16)
        ways = [Path([(x, y), ((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2)]) for place in places]
        costs = [
            _clashes(place, taken, axes.bbox) + _crossings(place, way, lines)
            for place, way in zip(places, ways, strict=True)
        ]
        box, way = places[costs.index(min(costs))], ways[costs.index(min(costs))]
        taken.append(box)
        lines.append(way)
        line = crowded or places.index(box) >= len(DIRECTIONS)
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
    """What a name must not cover, in pixels: points, and every line that has been drawn."""
    boxes = [Bbox([spot, spot]).padded(9) for spot in axes.transData.transform(points)]
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


def _crossings(box: Bbox, way: Path, lines: Sequence[Path]) -> int:
    """How many of the lines this one crosses, or has under its name."""
    return sum(bool(way.intersects_path(line, filled=False) or line.intersects_bbox(box)) for line in lines)
