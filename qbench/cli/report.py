"""The command that shows runs to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.options import Electricity, Margin, errors

app = typer.Typer()


@app.command(epilog="Example: `qbench report results/llama3-8b` or, side by side, `qbench report results/a results/b`")
def report(
    results: Annotated[
        list[Path], typer.Argument(help="Runs' folders, or folders of runs, side by side.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The page; BENCHMARK.md is written beside it.")] = Path("report.html"),
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Read bandwidth of the machine that was measured, e.g. 60GB/s; a GPU's is known by its name.",
        ),
    ] = None,
    electricity: Electricity = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Include limited evaluations, marked as partial.")
    ] = False,
    margin: Margin = 1.0,
) -> None:
    """Write runs as one HTML page, which needs no network, and as BENCHMARK.md."""
    from qbench.machine.bandwidth import parse_rate
    from qbench.records.run import find_runs, read_run

    with errors("nothing was written"):
        rate = parse_rate(bandwidth) if bandwidth else None
        folders = {folder.resolve(): folder for path in results for folder in find_runs(path)}
        from qbench.show import progress, terminal
        from qbench.show import report as reports

        runs = [read_run(folder) for folder in folders.values()]
        with progress.counted(terminal.make_console(), "drawing charts") as drawn:
            paths = reports.write(
                runs,
                out,
                allow_partial=allow_partial,
                rate=rate,
                margin=margin / 100,
                electricity=electricity,
                progress=drawn,
            )
        for path in paths:
            typer.echo(path)
