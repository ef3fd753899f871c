"""`qbench report`: runs as one HTML page and a BENCHMARK.md.

Run ─ view.data ─▶ RunReport ─ tables ─▶ Table ─────────▶ page, markdown
                       └────── plots.charts ─▶ Chart ───▶ page, drawn by plotly and as an image

"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from qbench.analysis.equivalence import MARGIN
from qbench.errors import QbenchError
from qbench.machine.bandwidth import Bandwidth
from qbench.records.files import write_atomically
from qbench.records.redact import Redactor
from qbench.records.run import Run
from qbench.show.report import markdown, page
from qbench.show.view import data


def write(
    runs: Sequence[Run],
    out: Path,
    *,
    allow_partial: bool = False,
    rate: float | None = None,
    margin: float = MARGIN,
    electricity: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write the page to `out` and BENCHMARK.md beside it.

    Args:
        rate: read bandwidth of the machine that was measured, bytes a second, where the runs do not tell it.
        margin: the loss of accuracy, a fraction, that counts as none.
        electricity: the price of a kWh; adds what a million tokens cost, where energy was counted.
        progress: hears how many charts are drawn, and of how many.

    Returns:
        The files written.

    Raises:
        QbenchError: `out` is no HTML file or cannot be written, the BENCHMARK.md beside it is somebody else's, or
            `rate` is given for runs of different machines.
    """
    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise QbenchError(f"--out {out}: expected the name of an HTML file, e.g. report.html")
    table = out.with_name("BENCHMARK.md")
    if table.exists() and not table.read_text(encoding="utf-8", errors="replace").startswith(markdown.MARK):
        raise QbenchError(f"{table} is there already and no report's; give --out in another folder")
    counts = Counter(run.record.name for run in runs)
    speed = None if rate is None else Bandwidth(rate, "given")
    reports = [
        data.collect(
            run,
            title=_title(run, counts),
            allow_partial=allow_partial,
            speed=speed,
            margin=margin,
            electricity=electricity,
        )
        for run in runs
    ]
    machines = sorted({report.machine for report in reports})
    if rate is not None and len(machines) > 1:
        raise QbenchError(f"--bandwidth: the runs are of different machines ({', '.join(machines)}); report them apart")
    files = {out: page.render(reports, progress), table: markdown.render(reports)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            write_atomically(path, text)
    except OSError as error:
        raise QbenchError(f"--out {out}: cannot be written ({error.strerror})") from error
    return list(files)


def _title(run: Run, counts: Counter[str]) -> str:
    """The run's name, with its folder where another has the same."""
    name = run.record.name
    return name if counts[name] == 1 else Redactor.here().text(f"{name} ({run.folder})")
