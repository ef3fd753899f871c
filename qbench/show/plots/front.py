"""How a Pareto front is drawn: its steps, bands along the parts that are tied, and where no name may stand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from qbench.show.plots import style

Point = tuple[float, float]


def draw_front(axes: Axes, front: Sequence[Point]) -> None:
    """The best gain for each cost, as steps that go on to the right edge."""
    right = axes.get_xlim()[1]
    axes.plot(*zip(*steps([*front, (right, front[-1][1])]), strict=True), color=style.INK, linewidth=1.2, zorder=2)
    axes.set_xlim(right=right)


def draw_ties(axes: Axes, groups: Sequence[Sequence[Point]]) -> None:
    """A light band for each group of neighbours, along the steps of the front that join them."""
    for group in groups:
        axes.plot(
            *zip(*steps(group), strict=True),
            color=style.FAINT,
            linewidth=11,
            alpha=0.22,
            solid_capstyle="round",
            zorder=1,
        )


def obstacles(axes: Axes, points: Sequence[Point]) -> list[Bbox]:
    """What a name must not cover, in pixels: points, and every line that has been drawn."""
    boxes = [Bbox([spot, spot]).padded(9) for spot in axes.transData.transform(points)]
    for line in axes.lines:
        corners = axes.transData.transform(line.get_xydata())
        boxes += [Bbox([start, end]).padded(2) for start, end in pairwise(corners)]
    return boxes


def steps(points: Sequence[Point]) -> tuple[Point, ...]:
    """Corners of the way right and then up from each point to the next."""
    corners = list(points[:1])
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return tuple(corners)
