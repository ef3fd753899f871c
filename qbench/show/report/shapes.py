"""What a plot shows, before anything is drawn: bars, or points and lines in a plane."""

from __future__ import annotations

from dataclasses import dataclass

from qbench.show.plots.style import CellStyle

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A backend's bar, or the reason why it has none."""

    backend: str
    look: CellStyle
    value: float | None
    span: Point | None = None
    """Range or interval of the value."""
    beside: float | None = None
    """A second figure, drawn as a diamond: see `BarChart.beside`."""
    text: str
    hover: str
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Bars on one axis from zero."""

    title: str
    axis: str
    bars: tuple[Bar, ...]
    line: tuple[float, str] | None = None
    """A value that means something, and its name: chance, the ceiling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Panels below each other."""

    key: str
    details: str
    panels: tuple[Panel, ...]
    beside: str = ""
    """What the diamonds are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A backend's point in a plane, or on its line."""

    x: float
    y: float
    span: Point | None
    """Of y."""
    hover: str
    doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """A backend's points."""

    backend: str
    look: CellStyle
    dots: tuple[Dot, ...]
    strong: bool = False
    """Whether it is on the Pareto front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneChart:
    """Points or lines of every backend, and the Pareto front where there is one."""

    key: str
    details: str
    x_axis: str
    y_axis: str
    trails: tuple[Trail, ...]
    front: tuple[Point, ...] = ()
    """Corners of its steps."""
    connected: bool = False
    """Whether a backend's points are a line; y begins at 0 then."""
    x_ticks: tuple[float, ...] = ()
    """The values of x, on a logarithmic axis; none for an axis with ticks of its own."""


Chart = BarChart | PlaneChart
