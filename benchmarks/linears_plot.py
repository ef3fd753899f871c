"""Draws the table of `linears.py`: how many times faster than 16 bit every backend's linears are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qbench.config import backend_kinds
from qbench.machine.environment import Environment, hardware_label
from qbench.records.run import display_label
from qbench.show.plots import files, mpl

COLUMNS = 2


def draw(table: pd.DataFrame, machine: str, out: Path) -> list[Path]:
    """Write linears.png and linears.svg into `out`; returns their paths."""
    table = table.dropna(subset="seconds")
    groups = list(table["linears"].unique())
    with mpl.drawing():
        figure = mpl.new_figure(files.WIDTH_IN, 7.0)
        title = f"Linears of a block of {table['shape'].iloc[0]}: speed as a multiple of 16 bit"
        figure.suptitle(title, x=0.015, ha="left", fontsize=14)
        grid = figure.subplots(-(-len(groups) // COLUMNS), COLUMNS, sharex=True, sharey=True, squeeze=False)
        for axes, group in zip(grid.flat, groups, strict=False):
            panel(axes, table[table["linears"] == group])
            axes.set_title(group)
        grid[0, 0].legend(frameon=False)
        figure.supxlabel(f"rows of activations (batch size of a decode step)\n{machine}", fontsize=11)
        return files.save(figure, out / "linears")


def panel(axes: Axes, table: pd.DataFrame) -> None:
    """One group of linears; both axes are logarithmic."""
    seconds = table.pivot(index="batch", columns="backend", values="seconds")
    for backend in table["backend"].unique():
        ratio = seconds["fp16"] / seconds[backend]
        width, marker = (2.4, "o") if backend == "int4" else (1.4, None)
        kind = backend_kinds().get(backend)
        color, label = kind.color if kind else None, display_label(backend, backend)
        axes.plot(seconds.index, ratio, label=label, color=color, linewidth=width, marker=marker)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(seconds.index)))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(True)


def main(folder: Annotated[Path, typer.Argument(help="where linears.csv and linears.run.json are")]) -> None:
    """Draw beside the table."""
    record = json.loads((folder / "linears.run.json").read_text(encoding="utf-8"))
    machine = hardware_label(Environment.model_validate(record["environment"]))
    for path in draw(pd.read_csv(folder / "linears.csv"), machine, folder):
        typer.echo(path)


if __name__ == "__main__":
    typer.run(main)
