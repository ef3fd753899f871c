"""The child process of one cell: `python -m qbench.run.worker OUT_DIR`, with the job on standard input
(`qbench.run.job`).

Reads the job before it imports torch and transformers, because the job says which libraries the cell can do without.
The rest is in `qbench.run.cell`.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from qbench.compat import lean
from qbench.run.job import Job, receive


def main() -> None:
    """Read the job and measure its cell."""
    job = Job.model_validate_json(receive())
    # Imported modules stay: looking for garbage among them, during the imports and at exit, takes seconds.
    gc.disable()
    lean.import_transformers(needed(job))

    from qbench.run.cell import Cell

    gc.freeze()
    gc.enable()
    try:
        Cell(job, Path(sys.argv[1])).run()
    finally:
        gc.unfreeze()  # nanobind takes what is frozen at the end for leaks
        gc.disable()  # spares the first of the interpreter's collections at exit


def needed(job: Job) -> set[str]:
    """The distributions that the cell or one of its measures names."""
    measures = job.config.measure.of(job.backend).values()
    return {name for user in measures for name in user.used_libraries()} | {*job.backend.used_libraries}


if __name__ == "__main__":
    main()
