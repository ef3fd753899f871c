"""What commands share: arguments with their completion, and how errors end a command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from qbench.errors import QbenchError


def complete_config(incomplete: str) -> list[str]:
    """YAML files and folders that begin so; those of configs/, too, while nothing is typed."""
    typed = Path(incomplete)
    folder, start = (typed, "") if incomplete.endswith("/") or not incomplete else (typed.parent, typed.name)
    found = []
    for path in sorted(folder.expanduser().glob(f"{start}*")):
        shown = str(folder / path.name)
        if path.is_dir() and not path.name.startswith("."):
            found.append(f"{shown}/")
        elif path.suffix in (".yaml", ".yml"):
            found.append(shown)
    return found if incomplete else [*(str(path) for path in sorted(Path("configs").glob("*.yaml"))), *found]


def complete_label(context: typer.Context, incomplete: str) -> list[str]:
    """Labels of the configuration's cells, those that are named already left out."""
    from qbench.config import matrix

    # An option that still lacks its value leaves the arguments before it unparsed.
    given = context.params.get("config") or next(iter(context.args), None)
    try:
        runs = matrix.load(Path(given)) if given else []
    except QbenchError:
        return []
    named = context.params.get("only") or ()
    labels = dict.fromkeys(cell.label for run in runs for cell in run.backends)
    return [label for label in labels if label.startswith(incomplete) and label not in named]


Config = Annotated[
    Path,
    typer.Argument(
        help="YAML file; the shipped ones are in configs/.", show_default=False, autocompletion=complete_config
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the YAML by dotted path; may be repeated."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="LABEL", help="Only this cell; may be repeated.", autocompletion=complete_label),
]

Margin = Annotated[
    float,
    typer.Option(min=0, metavar="POINTS", help="Loss of accuracy that counts as none: 'no worse than ...'."),
]

Electricity = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="PRICE",
        help="Price of a kWh, e.g. 0.30: adds the electricity of a million tokens, where energy was counted.",
        show_default=False,
    ),
]


@contextmanager
def errors(interrupted: str = "finished rows are kept, the same command goes on with the rest") -> Iterator[None]:
    """What the user can mend ends with a message and status 2, Ctrl-C with 130; anything else is our own fault."""
    try:
        yield
    except QbenchError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.secho(f"interrupted: {interrupted}", err=True)
        raise typer.Exit(130) from error


def leave_on_sigterm() -> None:
    """As after Ctrl-C: end what was started, write the tables and remove what is half done before going."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
