"""The command that lets others ask a loaded cell."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from qbench.cli.options import Config, Set, complete_label, errors, leave_on_sigterm
from qbench.errors import QbenchError

app = typer.Typer()


@app.command(
    epilog="Example: `qbench serve configs/smoke.yaml --cell int4`, then "
    "`curl http://127.0.0.1:8000/v1/models`. Ctrl-C ends it."
)
def serve(
    config: Config,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="A cell to serve, as a model of that name; may be repeated. Needed where there are several.",
            show_default=False,
            autocompletion=complete_label,
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Two cells to serve side by side, on a page that also takes blind votes.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[Path, typer.Option(help="File for conversations and votes of --compare.")] = Path(
        "results/side-by-side.sqlite"
    ),
    overrides: Set = None,
    host: Annotated[str, typer.Option(help="Address to listen at; any but this machine's own needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for one that is free.")] = 8000,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the token that requests must carry.", show_default=False
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Requests to a cell that are computed together; others wait.")
    ] = 8,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Most tokens of prompt and answer.", show_default="the model's, up to 4096"),
    ] = None,
) -> None:
    """Serve cells of a configuration by an OpenAI-compatible API, from qbench's own engines."""
    try:
        from qbench.serve import server
        from qbench.serve.page import add_page
    except ImportError as error:
        raise typer.BadParameter(f"{error}; `pip install 'qbench-llm[serve]'` installs it") from error
    from qbench.compat import lean
    from qbench.config import load
    from qbench.plan import cells as planning
    from qbench.run.local import LocalExecutor
    from qbench.run.quantize import quiet_libraries
    from qbench.serve.store import Store
    from qbench.serve.turns import Compared
    from qbench.show import progress
    from qbench.show.terminal import make_console

    out = make_console()
    with errors("nothing is served any more"), TemporaryDirectory(prefix="qbench-serve-") as work, ExitStack() as stack:
        token = server.read_token(host, token_env)
        chosen = load.load(config, overrides or ())
        wanted = list(dict.fromkeys([*(cell or ()), *(compare or ())]))
        if not wanted and len(chosen.backends) > 1:
            labels = ", ".join(backend.label for backend in chosen.backends)
            raise QbenchError(f"--cell: name at least one of {labels}, or two with --compare")
        if compare and compare[0] == compare[1]:
            raise QbenchError(f"--compare {' '.join(compare)}: name two different cells")
        planning.select(chosen, cell or (), option="--cell")
        planning.select(chosen, compare or (), option="--compare")
        plan = planning.make_plan(chosen, LocalExecutor().prepare, wanted)
        kept = stack.enter_context(closing(Store.open(store))) if compare else None
        leave_on_sigterm()
        with server.bind(host, port) as bound:
            lean.import_transformers({name for one in plan.cells for name in one.used_libraries})
            with quiet_libraries():
                from qbench.serve import cells
                from qbench.serve.api import create_app
                from qbench.serve.batching import Loop

            cells.check(plan.cells)
            with progress.reporting(out) as reporter:
                found = cells.load(plan, reporter, Path(work), sequences=max_batch, context=context)
            loop = Loop([one.queue for one in found.values()])
            try:
                models = {label: one.model for label, one in found.items()}
                api = create_app(models, token=token)
                out.print(f"serving {', '.join(found)} at {server.url(bound)}; Ctrl-C ends it", markup=False)
                if compare and kept:
                    two = {label: models[label] for label in compare}
                    prompts = chosen.measure.generations.prompts if chosen.measure.generations else ()
                    add_page(api, Compared(two, chosen.model.name, kept, prompts), token=token)
                    out.print(f"{' and '.join(two)} side by side: {server.url(bound).removesuffix('v1')}", markup=False)
                server.run(api, bound)
            finally:
                loop.stop()
