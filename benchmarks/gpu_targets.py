"""What the tables of `gpu.py` say against what the project aims at on Hopper.

python benchmarks/gpu_targets.py FOLDER
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from qbench.analysis.decode_step import decode_steps
from qbench.machine.bandwidth import Bandwidth
from qbench.records.run import read_run

BLOCK = {1: 2.9, 8: 2.9, 32: 1.9, 64: 1.3}
"""By rows, how many times faster than FP16 the linears of a block of Llama-3-8B are in INT4, at least."""

OF_COPY = 0.85
"""Share of the bandwidth of a copy at which the first linear of the MLP reads its weight, at least."""

DECODE = {1: 2.2, 8: 1.8, 32: 1.2}
"""By batch size, INT4's tokens/s over FP16's for Llama-3-8B's shape at seq_len 2048, at least."""

LIMIT = {1: 1.25, 32: 1.6}
"""By batch size, FP16's time for a decode step over that in which a copy moves its bytes, at most."""

GROUP_SIZE = 128
Row = dict[str, Any]


def table(out: Path, run: str) -> list[Row]:
    """A row for each target, without a figure where its table is missing.

    `run` names the folder of the model's run with captured steps; that with compiled ones is beside it.
    """
    runs = {"": out / run, ", compiled": out / f"{run}-compiled"}
    of_runs = [row for how, folder in runs.items() for row in (*_decode(folder, how), *_limits(out, folder, how))]
    return [*_blocks(out), _gate_up(out), *of_runs]


def _row(target: str, bound: float, measured: float | None, *, at_most: bool = False) -> Row:
    known = measured is not None and math.isfinite(measured)
    met = None if not known else measured <= bound if at_most else measured >= bound
    sign = "≤" if at_most else "≥"
    return {"what": target, "target": f"{sign} {bound:g}", "measured": measured if known else None, "met": met}


def _read(file: Path) -> pd.DataFrame | None:
    return pd.read_csv(file) if file.is_file() else None


def _blocks(out: Path) -> Iterator[Row]:
    found = _read(out / "blocks.csv")
    for rows, bound in BLOCK.items():
        at = found[found["rows"] == rows]["vs_cublas"] if found is not None else ()
        name = f"INT4 over FP16, linears of a block, {rows} rows"
        yield _row(name, bound, float(at.iloc[0]) if len(at) else None)


def _gate_up(out: Path) -> Row:
    products, copied = _read(out / "products.csv"), _read(out / "bandwidth.csv")
    share = None
    if products is not None and copied is not None:
        ours = products[products["kernel"].isin(("product", "wgmma")) & (products["relative_error"] < 1e-3)]
        ours = ours[(ours["linear"] == "gate_up") & (ours["rows"] == 1)]
        if len(ours):
            best = ours.loc[ours["us"].idxmin()]
            weights = best["out_features"] * best["in_features"]
            read = weights / 2 + 4 * weights / GROUP_SIZE  # codes, and a scale and an offset in 16 bits a group
            share = float(read / (best["us"] * 1e-6) / copied["copy_bytes_per_s"].iloc[0])
    return _row("gate_up at 1 row, share of the copy's bandwidth", OF_COPY, share)


def _decode(run: Path, how: str) -> Iterator[Row]:
    found = _read(run / "summary.csv")
    cells = found.set_index("label") if found is not None else None
    for batch, bound in DECODE.items():
        column, ratio = f"decode_tokens_per_s_b{batch}", None
        if cells is not None and {"int4", "fp16"} <= set(cells.index) and column in cells:
            ratio = float(cells.loc["int4", column] / cells.loc["fp16", column])
        yield _row(f"INT4 over FP16, tokens/s at batch {batch}{how}", bound, ratio)


def _limits(out: Path, run: Path, how: str) -> Iterator[Row]:
    steps, copied = {}, _read(out / "bandwidth.csv")
    if (run / "run.json").is_file() and copied is not None:
        speed = Bandwidth(float(copied["copy_bytes_per_s"].iloc[0]), "copies on this device")
        steps = decode_steps(read_run(run), speed)
    for batch, bound in LIMIT.items():
        step = steps.get(("fp16", batch))
        name = f"FP16, a decode step over its bandwidth limit, batch {batch}{how}"
        yield _row(name, bound, step.times_limit if step else None, at_most=True)


def show(rows: list[Row]) -> Table:
    """As printed."""
    shown = Table("what", "target", "measured", "met", title="measured against target")
    for row in rows:
        measured = "not measured" if row["measured"] is None else f"{row['measured']:.2f}"
        met = {None: "–", True: "[green]yes[/]", False: "[red]no[/]"}[row["met"]]
        shown.add_row(row["what"], row["target"], measured, met)
    return shown


def main(out: Annotated[Path, typer.Argument(help="folder of gpu.py")], run: str = "llama3-8b-shape") -> None:
    """Write targets.csv, and print it."""
    rows = table(out, run)
    pd.DataFrame(rows).to_csv(out / "targets.csv", index=False)
    Console(width=120).print(show(rows))


if __name__ == "__main__":
    typer.run(main)
