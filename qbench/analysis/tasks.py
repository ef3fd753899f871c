"""How the cells do in the tasks of lm-evaluation-harness, each compared with the reference question by question."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qbench.analysis.effects import Accuracy
from qbench.analysis.equivalence import MARGIN
from qbench.analysis.paired import compare_answers
from qbench.records.run import Run


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A cell in a task; of a tag or group, in all of its tasks together."""

    task: str
    metric: str
    """`exact_match,strict-match`: a metric of lm-evaluation-harness, and the filter before it."""
    label: str
    accuracy: Accuracy


def task_results(run: Run, *, allow_partial: bool = False, margin: float = MARGIN) -> tuple[TaskResult, ...]:
    """Every cell in every task whose questions are right or wrong, in the order of the tables.

    The cells of one task are one family of tests: Holm's correction and the intervals' confidence are over them. Those
    over part of the questions are left out, unless `allow_partial`; so are runs that have not kept the answers.
    """
    return tuple(found for task in run.task_answers for found in _of(run, task, allow_partial, margin))


def _of(run: Run, task: str, allow_partial: bool, margin: float) -> list[TaskResult]:
    answers, reference = run.task_answers[task], run.reference
    pairs = [(reference, label) for label in answers if label != reference] if reference else []
    compared = compare_answers(answers, pairs, margin)
    results = []
    for label, right in answers.items():
        rows = [row for row in run.accuracy if (row.task, row.label) == (task, label)]
        partial = any(row.partial for row in rows)
        if partial and not allow_partial:
            continue
        accuracy = Accuracy(
            correct=sum(right.values()), n=len(right), questions=task, asked={},
            truncated=sum(row.truncated or 0 for row in rows), partial=partial, right=right,
        )  # fmt: skip
        difference = compared.get((str(reference), label))
        metric = "/".join(sorted({row.metric for row in rows if row.metric}))
        results.append(TaskResult(task, metric, label, replace(accuracy, difference=difference)))
    return results
