"""The command that counts the votes of people."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.options import errors

app = typer.Typer()


@app.command(epilog="Example: `qbench votes`, after `qbench serve configs/smoke.yaml --compare int4 fp16`")
def votes(
    store: Annotated[
        Path | None,
        typer.Argument(help="The file of `qbench serve --store`.", show_default="results/side-by-side.sqlite"),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(min=0, max=100, metavar="POINTS", help="Lead, in percent of all votes, that counts as none."),
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: counts, fractions.")] = False,
) -> None:
    """Which backend people prefer by their blind votes: the exact sign test, its interval, and a verdict."""
    from qbench.serve.store import DEFAULT, Store

    with errors("nothing was changed"):
        path = store or DEFAULT
        with closing(Store.read(path)) as opened:
            tallies, sides = opened.tallies(), opened.tallies_by_side()
        from qbench.show import terminal
        from qbench.show import votes as vote_text

        pairs = vote_text.judge_pairs(tallies, sides, margin / 100)
        if as_json:
            typer.echo(json.dumps(vote_text.to_dict(pairs), indent=2, allow_nan=False))
        elif pairs:
            terminal.make_console().print(vote_text.table(pairs))
        else:
            terminal.make_console().print(
                f"{path} holds no votes yet: switch to Blind on the page, and vote", markup=False
            )
