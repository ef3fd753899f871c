"""The page: one HTML file with everything in it, which opens from a disk and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from qbench import __version__
from qbench.show.plots import mpl, plotly
from qbench.show.plots.charts import CHARTS, ChartKind, charts
from qbench.show.plots.shapes import Chart
from qbench.show.report import load_tables, speed_tables, tables
from qbench.show.view.records import RunReport


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart of a run in the page."""

    id: str
    run: int
    title: str
    """The run's."""
    details: str
    still: str
    """As a data URL."""


@dataclass(frozen=True, slots=True)
class Section:
    """A plot of all runs."""

    key: str
    title: str
    words: str
    charts: tuple[Drawn, ...]


Place = tuple[str, int]
"""A chart's key and the number of its run."""


def render(reports: Sequence[RunReport], progress: Callable[[int, int], None] = lambda done, total: None) -> str:
    """The page's HTML; `progress` hears how many charts are drawn as images, which takes nearly all of the time."""
    found = {(kind.key, i): chart for i, report in enumerate(reports) for kind, chart in charts(report)}
    stills: dict[Place, str] = {}
    for place, chart in found.items():
        progress(len(stills), len(found))
        stills[place] = _data_url(mpl.svg(chart))
    library, script = (_script(source) for source in (get_plotlyjs(), _file("page.js")))
    environment = Environment(
        loader=PackageLoader("qbench.show.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        reports=reports,
        backends=list(dict.fromkeys(cell.name for report in reports for cell in report.cells)),
        summary=tables.summary(reports),
        verdicts=tables.verdicts(reports),
        tasks=tables.tasks(reports),
        sections=[
            _section(kind, reports, found, stills) for kind in CHARTS if any(key == kind.key for key, _ in found)
        ],
        timed=speed_tables.speeds(reports),
        loaded=speed_tables.sustained(reports),
        levels=load_tables.levels(reports),
        rates=load_tables.found(reports),
        depths=speed_tables.depths(reports),
        steps=speed_tables.steps(reports),
        bandwidths=speed_tables.step_bandwidths(reports),
        heat=[table for i, report in enumerate(reports) if (table := tables.subjects(report, i))],
        predicted=tables.predictions(reports),
        loading=tables.loading(reports),
        environment=tables.environments(reports),
        charts=[{"id": f"plot-{key}-{i}", "figure": plotly.figure(chart)} for (key, i), chart in found.items()],
        plotly=library,
        script=script,
        style=Markup(_file("colors.css", "qbench.show") + _file("page.css")),
        policy=_policy(library, script),
        version=__version__,
    )


def _section(
    kind: ChartKind, reports: Sequence[RunReport], found: dict[Place, Chart], stills: dict[Place, str]
) -> Section:
    drawn = tuple(
        Drawn(f"plot-{key}-{i}", i, reports[i].title, "; ".join(chart.details), stills[key, i])
        for (key, i), chart in found.items()
        if key == kind.key
    )
    return Section(kind.key, kind.title, kind.explanation, drawn)


def _file(name: str, package: str = "qbench.show.report") -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _script(source: str) -> Markup:
    """A script as it stands in an element; our own and plotly's, never a run's."""
    source = source.replace("\r\n", "\n")
    if "</script" in source.lower():
        raise ValueError("a script must not hold the end of its own element")
    return Markup(source)


def _policy(*scripts: str) -> str:
    """Nothing is fetched, and no script runs but these (W3C, Content Security Policy Level 3)."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _data_url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
