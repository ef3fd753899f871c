"""The runs of a configuration, one after another: one, or those of its `matrix:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.config import Backend, RunConfig
from qbench.errors import QbenchError
from qbench.plan import cells as plan
from qbench.run.executor import Executor

if TYPE_CHECKING:
    from qbench.run.cells import Reporter


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that nothing speaks against."""

    config: RunConfig
    cells: list[Backend]


@dataclass(frozen=True, slots=True)
class Options:
    """What all runs share; see `qbench.run.runner.run`."""

    results: Path
    command: str
    only: tuple[str, ...] = ()
    fresh: bool = False


def plan_run(config: RunConfig, executor: Executor, only: Sequence[str]) -> Plan:
    """What a run will do, before anything is loaded.

    Raises:
        QbenchError: see `qbench.plan.cells` and the executor's `prepare`.
    """
    config = plan.resolve(config)
    cells = plan.select(config, only)
    plan.preflight(config, executor.prepare(config, cells, lambda text: None))
    return Plan(config, cells)


def describe(plans: Sequence[Plan]) -> list[str]:
    """The plans in lines, how many there are first if there are several."""
    lines = [f"{len(plans)} runs, {sum(len(one.cells) for one in plans)} cells"] if len(plans) > 1 else []
    return lines + [line for one in plans for line in plan.describe(one.config, one.cells)]


def run(
    runs: Sequence[RunConfig],
    executor: Executor,
    reporting: Callable[[], AbstractContextManager[Reporter]],
    options: Options,
) -> Iterator[tuple[Path, bool]]:
    """Run all; of each that ran, the folder and whether its cells are ok, as it ends.

    Raises:
        QbenchError: some did not run; it says why, after the others did.
    """
    from qbench.run import runner  # with pandas, which planning has no need of

    refused: list[tuple[str, QbenchError]] = []
    for config in runs:
        try:
            with reporting() as reporter:
                done = runner.run(
                    config,
                    options.results,
                    reporter,
                    command=options.command,
                    only=options.only,
                    fresh=options.fresh,
                    executor=executor,
                )
        except QbenchError as error:
            refused.append((config.name, error))
        else:
            yield done
    if len(runs) == 1 and refused:
        raise refused[0][1]
    if refused:
        lines = "\n".join(f"  {name}: {error}" for name, error in refused)
        raise QbenchError(f"{len(refused)} of {len(runs)} runs did not run:\n{lines}")
