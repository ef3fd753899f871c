"""What a chart shows, before anything is drawn: bars, or points and lines over two axes."""

from __future__ import annotations

from dataclasses import dataclass

from qbench.show.plots.style import CellStyle

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A backend's bar, or the reason why it has none."""

    backend: str
    look: CellStyle
    value: float | None
    span: Pair | None = None
    """Range or interval of the value."""
    beside: float | None = None
    """A second figure, drawn as a diamond: see `BarChart.beside`."""
    text: str
    remark: str = ""
    """What stands below the text where there is room."""
    hover: str
    doubtful: bool = False

    @property
    def end(self) -> float:
        """Where the text begins."""
        return max(self.value or 0.0, self.beside or 0.0, self.span[1] if self.span else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Bars on one axis from zero."""

    title: str = ""
    axis: str
    bars: tuple[Bar, ...]
    line: tuple[float, str] | None = None
    """A value that means something, and its name: chance, the ceiling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """Panels below each other."""

    title: str
    details: tuple[str, ...]
    """How it was measured and what the marks are, a phrase each."""
    panels: tuple[Panel, ...]
    beside: str = ""
    """What the diamonds are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A backend's point, alone or on its line."""

    x: float
    y: float
    span: Pair | None = None
    """Of y."""
    hover: str
    mark: str = ""
    """What stands above a point that is not to be trusted, or that shows something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A backend's points."""

    backend: str
    look: CellStyle
    points: tuple[Point, ...]
    strong: bool = False
    """Whether it is on the Pareto front."""
    legend: str = ""
    """Its line in a legend with room for a sentence; its name unless given."""
    level: float | None = None
    """A value of y that lasts, drawn as a dashed line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScatterChart:
    """Points or lines of every backend, and the Pareto front where there is one."""

    title: str
    details: tuple[str, ...]
    x_axis: str
    y_axis: str
    series: tuple[Series, ...]
    front: tuple[Pair, ...] = ()
    """Corners of its steps."""
    ties: tuple[tuple[Pair, ...], ...] = ()
    """Stretches of the front whose backends do not differ, by their corners."""
    connected: bool = False
    """Whether a backend's points are a line; y begins at 0 then."""
    x_ticks: tuple[float, ...] = ()
    """The values of x, on a logarithmic axis; none for an axis with ticks of its own."""


Chart = BarChart | ScatterChart
