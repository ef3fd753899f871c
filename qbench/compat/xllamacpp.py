"""llama.cpp's own HTTP server out of xllamacpp's wheel, which brings no program for it.

    python -m qbench.compat.xllamacpp model.gguf --port 8080 --parallel 8 --context 4096

The options are those of `llama-server` by the same names, as far as xllamacpp has them.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer
import xllamacpp


def main(
    model: Annotated[Path, typer.Argument(help="The GGUF file.", exists=True, dir_okay=False)],
    port: Annotated[int, typer.Option(help="Of 127.0.0.1.")],
    parallel: Annotated[int, typer.Option(help="Requests that are answered at a time.")] = 1,
    context: Annotated[int, typer.Option(help="Tokens of each of them, prompt and answer.")] = 2048,
    threads: Annotated[int | None, typer.Option(help="That compute; llama.cpp's choice unless given.")] = None,
) -> None:
    """Serve a GGUF file on 127.0.0.1 until the process is ended."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = parallel
    params.n_ctx = parallel * context
    params.kv_unified = False
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(f"{model.name} at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    typer.run(main)
