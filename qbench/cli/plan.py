"""The commands before a run: what it will need, a configuration to begin with, and the schema of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.options import Config, Only, Set, errors
from qbench.errors import QbenchError

app = typer.Typer()

NOTHING_WRITTEN = "nothing was written"

Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory of the device, e.g. 12GiB; by default this machine's."),
]


@app.command(epilog="Example: `qbench plan configs/llama3-8b.yaml --memory 24GiB --bandwidth 1TB/s`")
def plan(
    config: Config,
    only: Only = None,
    overrides: Set = None,
    memory: Memory = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="RATE", help="Memory bandwidth, e.g. 1.5TB/s; by default that of the data sheet, or measured."
        ),
    ] = None,
    flips: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Guess of the answers that turn right or wrong: sets what difference in accuracy will show.",
        ),
    ] = 5.0,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array of the runs, in bytes and seconds.")] = False,
) -> None:
    """Show what will run, with predicted memory and decode speed, without loading anything."""
    from qbench.config import matrix
    from qbench.machine import environment
    from qbench.machine.bandwidth import parse_bytes, parse_rate
    from qbench.plan import forecast
    from qbench.show import forecast as forecast_table
    from qbench.show import terminal

    with errors():
        machine = environment.detect()
        memory_bytes = parse_bytes(memory) if memory else None
        rate = parse_rate(bandwidth) if bandwidth else None
        predicted = [
            forecast.make(run, machine, only=only or (), memory_bytes=memory_bytes, rate=rate)
            for run in matrix.load(config, overrides or ())
        ]
    if json:
        typer.echo(forecast_table.to_json(predicted, flips / 100))
        return
    console = terminal.make_console()
    for one in predicted:
        forecast_table.show(console, one, flips / 100)


@app.command(epilog="Example: `qbench init mine.yaml --model meta-llama/Meta-Llama-3-8B-Instruct --memory 24GiB --yes`")
def init(
    path: Annotated[Path, typer.Argument(help="The YAML file to write.")] = Path("qbench.yaml"),
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Hub id, folder, shipped shape, or `demo`.", show_default=False),
    ] = None,
    memory: Memory = None,
    backends: Annotated[
        str | None,
        typer.Option(metavar="KINDS", help="Comma-separated; by default those that fit in memory."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not prompt.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented configuration for a model and this machine."""
    from qbench.machine import environment
    from qbench.machine.bandwidth import parse_bytes
    from qbench.plan import starter
    from qbench.show import terminal

    with errors(NOTHING_WRITTEN):
        starter.check_path(path, force=force)
        asks = not yes and terminal.is_attended()
        if model is None:
            model = typer.prompt("Model (hub id, folder, shipped shape, or demo)", default="demo") if asks else "demo"
        machine = environment.detect()
        if memory is None and asks:
            memory = typer.prompt("Memory of the device", default=f"{starter.memory_of(machine) / 2**30:.1f}GiB")
        choice = starter.choose(model, machine, memory_bytes=parse_bytes(memory) if memory else None)
        if backends is None and asks:
            backends = typer.prompt("Backends", default=",".join(choice.backends))
        if backends is not None:
            choice = choice.with_backends([kind.strip() for kind in backends.split(",")])
        starter.write(path, choice, force=force)
    typer.echo(f"{path}: {', '.join(choice.backends)} on {model}; next: qbench plan {path}")


@app.command(epilog="Example: `qbench schema --out qbench.config.schema.json`")
def schema(
    out: Annotated[Path | None, typer.Option(help="Write to a file instead.", show_default=False)] = None,
) -> None:
    """Print the JSON Schema of a configuration, for editors."""
    from qbench.config import schema as schemas

    if out is None:
        typer.echo(schemas.text(), nl=False)
        return
    with errors(NOTHING_WRITTEN):
        try:
            out.write_text(schemas.text(), encoding="utf-8")
        except OSError as error:
            raise QbenchError(f"--out {out}: cannot be written ({error.strerror})") from error
    typer.echo(f"{out}; an editor takes it from a first line `# yaml-language-server: $schema={out}`")
