"""The commands that turn the figures of runs into a decision: each parses, calls one function, prints."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qbench.cli.options import Electricity, Margin, errors
from qbench.errors import QbenchError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qbench.config import SLO
    from qbench.records.run import Run

app = typer.Typer()


class WhenOpen(StrEnum):
    """What an answer that the figures leave open counts as."""

    REPORT = "report"
    PASS = "pass"
    FAIL = "fail"

    @property
    def status(self) -> int:
        """The exit status."""
        return {"report": 3, "pass": 0, "fail": 1}[self.value]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: bytes, tokens/s, fractions.")]
Inconclusive = Annotated[
    WhenOpen,
    typer.Option(help="What an inconclusive answer counts as: exit status 3 (report), 0 (pass) or 1 (fail)."),
]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Include limited evaluations.")]


class Objective(StrEnum):
    """What `recommend` optimizes among the backends that fit."""

    SPEED = "speed"
    MEMORY = "memory"
    ACCURACY = "accuracy"
    GOODPUT = "goodput"
    ENERGY = "energy"


@app.command(
    epilog="Example: `qbench recommend results/llama3-8b --max-memory 12GiB --max-drop 1.0 --batch 1`. "
    "Exit status: 0 one is named, 1 nothing fits, 2 usage, 3 one is named, but the figures do not show that it meets "
    "`--max-drop` or is as good as the best: the output says about how many questions or trials would settle it."
)
def recommend(
    results: Annotated[list[Path], typer.Argument(help="Runs' folders, or folders of runs.", show_default=False)],
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest peak memory, e.g. 12GiB.", show_default=False)
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="POINTS", help="Largest loss of accuracy against the 16-bit cell.", show_default=False
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Batch size that will be served.")] = 1,
    objective: Annotated[
        Objective, typer.Option(help="What to optimize among the backends that fit.")
    ] = Objective.SPEED,
    slo: Annotated[
        str | None,
        typer.Option(
            metavar="SLO",
            help="What --objective goodput counts by, e.g. ttft=0.5s,itl=50ms; the run's own measure.load.slo unless "
            "given.",
            show_default=False,
        ),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Hourly price of the machine, e.g. 2.50/h: adds the cost of a million tokens.",
            show_default=False,
        ),
    ] = None,
    electricity: Electricity = None,
    margin: Margin = 1.0,
    inconclusive: Inconclusive = WhenOpen.REPORT,
    allow_partial: AllowPartial = False,
    as_json: AsJson = False,
) -> None:
    """Recommend one backend: why, the runner-up, and what would change the answer."""
    from qbench.decide import recommend as recommending
    from qbench.decide.constraints import UNLIMITED, Limits
    from qbench.show import recommend as recommend_text

    with errors("nothing was changed"):
        limits = Limits(
            UNLIMITED if max_memory is None else _bytes(max_memory), UNLIMITED if max_drop is None else max_drop
        )
        prices = recommend_text.Prices(None if cost is None else _rate(cost), electricity)
        if slo is not None and objective is not Objective.GOODPUT:
            raise QbenchError(f"--slo {slo}: is what goodput counts by; add --objective goodput")
        found = recommending.recommend(
            _read_all(results), batch, objective.value, limits, allow_partial=allow_partial, margin=margin / 100,
            slo=None if slo is None else _slo(slo),
        )  # fmt: skip
    if as_json:
        _print_json(recommend_text.to_dict(found, prices))
    else:
        _print_lines(recommend_text.lines(found, prices))
    raise typer.Exit(1 if not found.pick else inconclusive.status if found.doubts else 0)


@app.command(epilog="Example: `qbench compare results/before results/after`. Exit status: 0 compared, 2 usage.")
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run's folder.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="The folder of another run of the same model.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Compare runs of different models.")] = False,
    margin: Margin = 1.0,
    allow_partial: AllowPartial = False,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two runs: hardware, versions and settings first, then figures with intervals."""
    from dataclasses import asdict

    from qbench.analysis.summary import summarize
    from qbench.decide import compare as run_comparison
    from qbench.decide.provenance import check_same_model

    with errors("nothing was changed"):
        first, second = _read(run_a), _read(run_b)
        if not force:
            check_same_model(first.record, second.record, "--force compares them all the same")
        both = (summarize(run, allow_partial=allow_partial) for run in (first, second))
        compared = run_comparison.compare_runs(*both, margin=margin / 100)
    if as_json:
        _print_json(asdict(compared))
    else:
        from qbench.show import compare as comparison_text
        from qbench.show import terminal

        comparison_text.print_comparison(terminal.make_console(), compared, margin / 100)


@app.command(
    epilog="Example: `qbench gate results/new --baseline results/main --max-slowdown 5% --max-drop 0.5`. "
    "Exit status: 0 passed, 1 worse, 2 usage, 3 inconclusive: the trials or questions show neither. "
    "`--inconclusive pass` fails on proof of a loss alone, `--inconclusive fail` asks for proof that there is none."
)
def gate(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    baseline: Annotated[
        list[Path],
        typer.Option(
            help="Baseline run; repeat with more runs of the same thing to estimate run-to-run variation.",
            show_default=False,
        ),
    ],
    max_slowdown: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Allowed loss of decode speed, e.g. 5%.", show_default=False)
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(min=0, metavar="POINTS", help="Allowed loss of accuracy, e.g. 0.5.", show_default=False),
    ] = None,
    max_memory_growth: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Allowed growth of peak memory, e.g. 2%.", show_default=False)
    ] = None,
    inconclusive: Inconclusive = WhenOpen.REPORT,
    allow_partial: AllowPartial = False,
    as_json: AsJson = False,
) -> None:
    """Exit with status 1 if a run is worse than its baseline by more than the limits, with 3 if that is not certain."""
    from dataclasses import asdict

    from qbench.decide import gate as gating

    with errors("nothing was changed"):
        limits = gating.GateLimits(
            slowdown=_share("--max-slowdown", max_slowdown),
            drop_points=max_drop,
            memory_growth=_share("--max-memory-growth", max_memory_growth),
        )
        result = gating.gate(_read(run), [_read(one) for one in baseline], limits, allow_partial=allow_partial)
    if as_json:
        _print_json({"ok": result.ok, "status": result.status, **asdict(result)})
    else:
        from qbench.show import compare as comparison_text
        from qbench.show import terminal

        comparison_text.print_gate(terminal.make_console(), result)
    raise typer.Exit({"ok": 0, "worse": 1, "inconclusive": inconclusive.status}[result.status])


@app.command(epilog="Example: `qbench card results/llama3-8b --backend int4 --out MODEL_CARD.md`")
def card(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    backend: Annotated[str, typer.Option(metavar="LABEL", help="The cell.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("MODEL_CARD.md"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    margin: Margin = 1.0,
    allow_partial: AllowPartial = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print front matter and body as JSON, write nothing.")
    ] = False,
) -> None:
    """Write the model card of a quantized checkpoint, in the hub's format, from what was measured."""
    from qbench.records.files import write_atomically
    from qbench.show.card import make_card, read_generations

    with errors("nothing was written"):
        made = make_card(_read(run), backend, read_generations(run), allow_partial=allow_partial, margin=margin / 100)
        if as_json:
            _print_json({"metadata": made.metadata, "body": made.body})
            return
        if out.exists() and not force:
            raise QbenchError(f"--out {out}: is there already; --force replaces it")
        try:
            write_atomically(out, made.text)
        except OSError as error:
            raise QbenchError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from error
    typer.echo(out)


def _read_all(folders: Iterable[Path]) -> list[Run]:
    """Every run once, however often it is named."""
    from qbench.records.run import find_runs

    found = {folder.resolve(): folder for given in folders for folder in find_runs(given)}
    return [_read(folder) for folder in found.values()]


def _read(folder: Path) -> Run:
    from qbench.records.run import read_run

    run = read_run(folder)
    for warning in run.warnings:
        typer.secho(f"warning: {warning}", err=True, fg="yellow")
    return run


def _bytes(text: str) -> int:
    """`12GiB`, `800 MB` as bytes.

    Raises:
        QbenchError: it is no size with a unit.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        if not re.search(r"[A-Za-z]", text):
            raise ValueError
        return int(TypeAdapter(ByteSize).validate_python(text))
    except (ValueError, ValidationError, OverflowError) as error:
        raise QbenchError(f"--max-memory {text}: give a size with its unit, e.g. 12GiB or 800MiB") from error


def _rate(text: str) -> float:
    """`2.50/h` as a number an hour.

    Raises:
        QbenchError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)/h", text.strip())
    if not found:
        raise QbenchError(f"--cost {text}: give a rate by the hour, e.g. 2.50/h")
    return float(found[1])


def _slo(text: str) -> SLO:
    """`ttft=0.5s,itl=50ms` as an objective.

    Raises:
        QbenchError: it is none.
    """
    from pydantic import ValidationError

    from qbench.config import SLO

    parts = [part.partition("=") for part in text.split(",")]
    try:
        return SLO.model_validate({name.strip(): value for name, _, value in parts})
    except ValidationError as error:
        raise QbenchError(f"--slo {text}: give ttft, itl or both with their units, e.g. ttft=0.5s,itl=50ms") from error


def _share(option: str, text: str | None) -> float | None:
    """`5%` as 0.05.

    Raises:
        QbenchError: it is no percentage from 0 on.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text.strip())
    if not found:
        raise QbenchError(f"{option} {text}: give percent, e.g. 5%")
    return float(found[1]) / 100


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _print_lines(found: Iterable[str]) -> None:
    for line in found:
        typer.echo(line)
