"""The command that hands out the weights of a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli.options import Config, Set, complete_label, errors

app = typer.Typer()


@app.command(
    epilog="Example: `qbench export configs/tinyllama.yaml --set 'backends=[{kind: gguf}]' --out tinyllama-gguf`"
)
def export(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder for the file and its model card.", show_default=False)],
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The cell, where there are several.",
            show_default=False,
            autocompletion=complete_label,
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="gguf: for llama.cpp, Ollama and LM Studio; mlx: for mlx-lm.")
    ] = "gguf",
    overrides: Set = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write the weights of a cell, as a run measures them, for other programs."""
    from qbench.config import load
    from qbench.run import export as exporting
    from qbench.show import progress
    from qbench.show.terminal import make_console
    from qbench.text import human_bytes

    terminal = make_console()
    with errors("what was written is incomplete"):
        chosen = load.load(config, overrides or ())
        with progress.reporting(terminal) as reporter:
            written = exporting.export(chosen, out, reporter, label=cell, to=to, force=force)
    terminal.print(f"{written.file}: {human_bytes(written.bytes)}; README.md says how to run it", markup=False)
