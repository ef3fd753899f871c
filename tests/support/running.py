"""A run of a configuration, as `qbench run` does it."""

from collections.abc import Sequence
from pathlib import Path

import psutil

from qbench.analysis.summary_table import write_summary
from qbench.config import RunConfig
from qbench.plan.cells import make_plan
from qbench.run import runner
from qbench.run.cells import Reporter
from qbench.run.executor import Executor
from qbench.run.local import LocalExecutor


def execute(
    config: RunConfig,
    results: Path,
    reporter: Reporter,
    *,
    command: str = "",
    only: Sequence[str] = (),
    fresh: bool = False,
    executor: Executor | None = None,
) -> tuple[Path, bool]:
    """Plan and run; the run's folder, and whether all cells are ok."""
    executor = executor or LocalExecutor()
    plan = make_plan(config, executor.prepare, only)
    return runner.run(plan, results, reporter, executor=executor, command=command, summarize=write_summary, fresh=fresh)


def workers() -> list[psutil.Process]:
    """Living processes that this one's runs have started."""
    return [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
