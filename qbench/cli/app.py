"""The command line: parses, calls one function, prints."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qbench import __version__
from qbench.cli import decide, export, plan, report, serve, votes
from qbench.cli.options import Config, Margin, Only, Set, complete_label, leave_on_sigterm
from qbench.cli.options import errors as _errors
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.run.executor import Executor

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which LLM quantization backend to use on your hardware: memory, tokens/s and accuracy of the same loaded "
    "checkpoint, side by side.\n\nStart with `qbench run configs/smoke.yaml`.",
    epilog="Exit status: 0 all cells ok, 1 some cell or measure failed, 2 usage or configuration, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qbench {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""
    # A terminal or a pipe of another encoding gets what it has, and never a traceback after hours.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@app.command(epilog="Example: `qbench run configs/smoke.yaml --only fp16 --only int4 --set measure.mmlu.limit=20`")
def run(
    config: Config,
    results: Annotated[Path, typer.Option(help="Folder for results; each run gets a folder of its name.")] = Path(
        "results"
    ),
    only: Only = None,
    overrides: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: delete what was measured before.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="Where cells run: on this machine, or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="The Ray cluster: auto (the one of this machine), local (this machine alone), HOST:PORT or "
            "ray://HOST:PORT.",
            show_default="auto",
        ),
    ] = None,
    margin: Margin = 1.0,
) -> None:
    """Measure every backend of a configuration. A rerun measures only what is missing or failed."""
    from qbench.config import matrix
    from qbench.plan import cells
    from qbench.show import terminal

    out = terminal.make_console()
    all_ok = True
    with _errors(), _executor(executor, address) as where:
        plans = [cells.make_plan(one, where.prepare, only or ()) for one in matrix.load(config, overrides or ())]
        if dry_run:
            for line in cells.describe_all(plans):
                out.print(line, markup=False)
            return
        from qbench.analysis.summary_table import write_summary
        from qbench.records.run import read_run
        from qbench.run import sweep
        from qbench.show import progress, tables

        if fresh and not yes:
            _confirm_deletion([results / plan.config.name for plan in plans])
        leave_on_sigterm()
        for folder, ok in sweep.run(
            plans,
            results,
            lambda: progress.reporting(out),
            executor=where,
            command=shlex.join(["qbench", *sys.argv[1:]]),
            summarize=partial(write_summary, margin=margin / 100),
            fresh=fresh,
        ):
            tables.print_results(out, read_run(folder), margin / 100)
            out.print(f"results in {folder}; plots: qbench plot {folder}", markup=False)
            all_ok = all_ok and ok
    raise typer.Exit(0 if all_ok else 1)


@app.command(
    epilog="Example: `qbench quantize configs/llama3-8b.yaml --out llama3-8b-int4`, then "
    "`qbench run configs/llama3-8b.yaml --set backends.int4.checkpoint=llama3-8b-int4`"
)
def quantize(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.", show_default=False)],
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The int4 cell, where there are several.",
            show_default=False,
            autocompletion=complete_label,
        ),
    ] = None,
    overrides: Set = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing checkpoint.")] = False,
) -> None:
    """Quantize a configuration's int4 cell once, into a folder that later runs load."""
    from qbench.config import load
    from qbench.run import quantize as export
    from qbench.show import progress
    from qbench.show.terminal import make_console
    from qbench.text import human_bytes

    terminal = make_console()
    with _errors("nothing was written"):
        chosen = load.load(config, overrides or ())
        leave_on_sigterm()
        with progress.reporting(terminal) as reporter:
            written = export.quantize(chosen, out, reporter, label=cell, force=force)
    size = human_bytes(written.bytes)
    terminal.print(f"{written.folder}: {size}, {written.bits_per_weight:.2f} bits a weight", markup=False)
    terminal.print(
        f"use it: qbench run {config} --set backends.{written.label}.checkpoint={written.folder}", markup=False
    )


@app.command(epilog="Example: `qbench plot results/smoke` or, for all runs, `qbench plot results/`")
def plot(
    results: Annotated[Path, typer.Argument(help="A run's folder, or a folder of runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for plots; each run gets a folder of its name.")] = Path("plots"),
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Include limited evaluations, marked as partial.")
    ] = False,
    margin: Margin = 1.0,
) -> None:
    """Draw every chart that a run has figures for, as PNG and SVG: memory, tokens/s, accuracy, their trade-offs."""
    from qbench.records.run import find_runs, read_run

    with _errors():
        found = find_runs(results)
        from qbench.show import progress, terminal
        from qbench.show.plots import files
        from qbench.show.view.data import collect

        for folder in found:
            run_data = read_run(folder)
            for warning in run_data.warnings:
                typer.secho(f"warning: {warning}", err=True, fg="yellow")
            if not allow_partial and any(row.partial for row in run_data.accuracy if row.task == "mmlu"):
                typer.secho(f"note: {folder}: its limited accuracy is left out; --allow-partial draws it", err=True)
            report = collect(run_data, allow_partial=allow_partial, margin=margin / 100)
            with progress.counted(terminal.make_console(), f"drawing {report.title}") as drawn:
                paths = files.write(report, out / folder.resolve().name, drawn)
            for path in paths:
                typer.echo(path)


@app.command(epilog="Example: `qbench backends`")
def backends() -> None:
    """Check which backends work here, and how to fix those that do not."""
    from qbench.config import kind_names
    from qbench.plan import backends as availability
    from qbench.show import progress, terminal

    out = terminal.make_console()
    kinds = kind_names()
    found = progress.followed(out, availability.probe(kinds), "importing each backend", len(kinds))
    out.print(availability.table(sorted(found, key=lambda one: kinds.index(one.kind))))


@app.command(epilog="Example: `qbench validate configs/llama3-8b.yaml --set measure.mmlu.limit=20`")
def validate(config: Config, overrides: Set = None) -> None:
    """Check a configuration without running it."""
    from qbench.config import matrix
    from qbench.plan import cells

    with _errors():
        runs = matrix.load(config, overrides or ())
        for run in runs:
            cells.check_models(run)
    for run in runs:
        labels = ", ".join(backend.label for backend in run.backends)
        typer.echo(f"{config} is valid: {run.name}, {run.model.name}, cells {labels}")


app.add_typer(plan.app)
app.add_typer(report.app)
app.add_typer(export.app)
app.add_typer(decide.app)
app.add_typer(serve.app)
app.add_typer(votes.app)

cache_app = typer.Typer(no_args_is_help=True, help="Manage the cache of quantized checkpoints.")
app.add_typer(cache_app, name="cache")


@cache_app.command("ls", epilog="Example: `qbench cache ls`")
def cache_ls() -> None:
    """List the cached checkpoints with their keys and sizes."""
    from qbench.run import checkpoints
    from qbench.show import terminal

    terminal.make_console().print(terminal.cache_table(checkpoints.entries(), checkpoints.folder()))


@cache_app.command("rm", epilog="Example: `qbench cache rm 3f2a`, or `qbench cache rm --all`")
def cache_rm(
    chosen: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="A key, or the beginning of one.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every checkpoint.")] = False,
) -> None:
    """Delete cached checkpoints; the next run that needs one makes it again."""
    from qbench.run import checkpoints
    from qbench.text import human_bytes

    with _errors("what was deleted is gone, the rest is there"):
        if bool(chosen) == everything:
            raise QbenchError("cache rm: name keys, or --all; `qbench cache ls` shows them")
        found = checkpoints.entries() if everything else [checkpoints.find(key) for key in chosen or ()]
        for entry in found:
            size = human_bytes(entry.bytes)
            checkpoints.remove(entry)
            typer.echo(f"{entry.manifest.key}: deleted, {size}")


@cache_app.command("verify", epilog="Example: `qbench cache verify`")
def cache_verify() -> None:
    """Verify every cached checkpoint against its hashes. Exit status 1 if one is damaged."""
    from qbench.run import checkpoints

    damaged = {entry.manifest.key: entry.damaged() for entry in checkpoints.entries()}
    for key, files in damaged.items():
        state = f"damaged: {', '.join(files)}; the next run that needs it makes it again" if files else "ok"
        typer.echo(f"{key}: {state}")
    raise typer.Exit(1 if any(damaged.values()) else 0)


@contextmanager
def _executor(kind: Literal["local", "ray"], address: str | None) -> Iterator[Executor]:
    """The executor of that kind; `address` is that of a Ray cluster.

    Raises:
        QbenchError: there is no such cluster, or Ray is not installed.
    """
    if kind == "local":
        if address is not None:
            raise QbenchError(f"--address {address}: belongs to --executor ray")
        from qbench.run.local import LocalExecutor

        yield LocalExecutor()
        return
    from qbench.run.ray.executor import connect

    with connect(address or "auto") as executor:
        yield executor


def _confirm_deletion(folders: list[Path]) -> None:
    """Ask before runs are deleted; where nobody can answer, `--yes` has to.

    Raises:
        QbenchError: nobody can answer.
    """
    from qbench.show import terminal

    found = ", ".join(str(folder) for folder in folders if (folder / "run.json").exists())
    if not found:
        return
    if not terminal.is_attended():
        raise QbenchError(f"--fresh deletes the run in {found}; pass --yes when not running interactively")
    typer.confirm(f"Delete the run in {found} and measure all of it again?", abort=True)
