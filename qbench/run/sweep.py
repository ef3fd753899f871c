"""The runs of a configuration, one after another: one, or those of its `matrix:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from qbench.errors import QbenchError
from qbench.plan.cells import Plan
from qbench.run import runner
from qbench.run.cells import Reporter
from qbench.run.executor import Executor


def run(
    plans: Sequence[Plan],
    results: Path,
    reporting: Callable[[], AbstractContextManager[Reporter]],
    *,
    executor: Executor,
    command: str,
    summarize: Callable[[Path], None],
    fresh: bool = False,
) -> Iterator[tuple[Path, bool]]:
    """Run all; of each that ran, the folder and whether its cells are ok, as it ends. See `qbench.run.runner.run`.

    Raises:
        QbenchError: some did not run; it says why, after the others did.
    """
    refused: list[tuple[str, QbenchError]] = []
    for plan in plans:
        try:
            with reporting() as reporter:
                done = runner.run(
                    plan, results, reporter, executor=executor, command=command, summarize=summarize, fresh=fresh
                )
        except QbenchError as error:
            refused.append((plan.config.name, error))
        else:
            yield done
    if len(plans) == 1 and refused:
        raise refused[0][1]
    if refused:
        lines = "\n".join(f"  {name}: {error}" for name, error in refused)
        raise QbenchError(f"{len(refused)} of {len(plans)} runs did not run:\n{lines}")
