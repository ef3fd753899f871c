"""From a run to a `RunReport`: everything that plots, page and BENCHMARK.md say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from qbench.analysis.decode_step import DecodeStep, decode_steps
from qbench.analysis.effects import section
from qbench.analysis.equivalence import MARGIN
from qbench.analysis.figures import CellSummary, Speed
from qbench.analysis.paired import tied
from qbench.analysis.subjects import subjects
from qbench.analysis.summary import summarize
from qbench.analysis.tasks import task_results
from qbench.errors import QbenchError
from qbench.machine import bandwidth
from qbench.machine.bandwidth import Bandwidth
from qbench.plan import backtest
from qbench.plan.backtest import Backtest
from qbench.records.redact import Redactor
from qbench.records.run import Run
from qbench.show.phrases import crossovers, cut_prompts, remarks, truncations
from qbench.show.verdicts import reading
from qbench.show.view import facts
from qbench.show.view.records import RunReport

Predicted = Mapping[tuple[str, int | None], Backtest]
"""By label and batch size, peak and ceiling; of the first forward under None."""

Steps = Mapping[tuple[str, int], DecodeStep]


def collect(
    run: Run,
    *,
    title: str | None = None,
    allow_partial: bool = False,
    speed: Bandwidth | None = None,
    margin: float = MARGIN,
    electricity: float | None = None,
) -> RunReport:
    """Everything that is reported of a run.

    Args:
        title: the run's name unless given.
        allow_partial: also accuracies and divergences over part of the questions or text.
        speed: of the machine that was measured, where the caller knows it; else the fastest that the run's workers
            have measured, or what the data sheet of their GPU says.
        margin: the loss of accuracy, a fraction, that counts as none.
        electricity: the price of a kWh.
    """
    record, notes = run.record, list[str]()
    speed = speed or _bandwidth(run, notes)
    predictions, steps = _predictions(run, speed, notes)
    summary = summarize(run, allow_partial=allow_partial, margin=margin)
    cells = [_with_predictions(cell, predictions, steps) for cell in summary.cells]
    names = {cell.label: cell.name for cell in cells}
    reference = run.reference
    answered = [cell.label for cell in cells if cell.accuracy]
    found = subjects(run, reference, answered, names) if reference else ()
    results = task_results(run, allow_partial=allow_partial, margin=margin)
    tasks = tuple((names[result.label], result) for result in results if result.label in names)
    notes += facts.unreported(run, cells, allow_partial, {result.task for result in results})
    dtypes = sorted({cell.dtype for cell in run.cells if cell.dtype}) or [str(record.config.get("dtype", ""))]
    return RunReport(
        title=title or record.name,
        model=record.model,
        machine=record.hardware,
        dtype="/".join(dtypes),
        day=f"{record.started:%Y-%m-%d}",
        commands=tuple(facts.commands(record)),
        demo=section(run, "mmlu").get("data") == "demo",
        configuration=json.dumps(record.config, indent=2, ensure_ascii=False),
        environment=tuple(facts.environment(record.environment)),
        batch_sizes=summary.batch_sizes,
        cells=tuple(cells),
        subjects=found,
        tasks=tasks,
        reference=names.get(reference) if reference else None,
        ties=frozenset(frozenset(names[label] for label in pair) for pair in tied(run, answered)),
        settings=facts.settings(run, cells),
        bandwidth=speed,
        electricity=electricity,
        reading=tuple(reading(cells)),
        crossovers=tuple(crossovers(cells, names.get(reference) if reference else None)),
        tried=facts.tried(run),
        failures=tuple(facts.failures(run, names)),
        doubts=(
            *truncations(cells),
            *cut_prompts(tasks),
            *remarks(cells),
            *(Redactor.here().text(text) for text in run.warnings),
        ),
        notes=tuple(notes),
    )


def _with_predictions(cell: CellSummary, predictions: Predicted, steps: Steps) -> CellSummary:
    def complete(speed: Speed) -> Speed:
        found = predictions.get((cell.label, speed.batch_size))
        return replace(
            speed,
            predicted_bytes=found.predicted_bytes if found else None,
            ceiling_tokens_per_s=found.predicted_tokens_per_s if found else None,
            step=steps.get((cell.label, speed.batch_size)),
        )

    forward = predictions.get((cell.label, None))
    first = forward.predicted_bytes if forward else None
    return replace(cell, predicted_bytes=first, speeds=tuple(map(complete, cell.speeds)))


def _bandwidth(run: Run, notes: list[str]) -> Bandwidth | None:
    """As measured in the run, else of the GPU by its data sheet; None, with a note, where neither is known."""
    gpus = sorted({cell.device for cell in run.cells if cell.device} - {"cpu"})
    if len(run.hosts) > 1 or len(gpus) > 1:
        notes.append("bandwidth ceiling left out: the cells were measured on several machines or GPUs")
        return None
    sheet = bandwidth.of_gpu(gpus[0]) if gpus else None
    readings = [cell.read_bytes_per_s for cell in run.cells if cell.read_bytes_per_s is not None]
    if readings:
        what = ("copy", "copies") if gpus else ("reading", "readings")
        many = f"fastest of {len(readings)} {what[1]}, one before each cell"
        source = many if len(readings) > 1 else f"one {what[0]}, before the cell"
        return Bandwidth(max(readings), source, sheet.flops if sheet else None)
    if sheet is None:
        device = f"GPU copies, and no data sheet of {gpus[0]} is known" if gpus else "CPU reads"
        notes.append(f"bandwidth ceiling left out: this run did not record how fast its {device}; give --bandwidth")
    return sheet


def _predictions(run: Run, speed: Bandwidth | None, notes: list[str]) -> tuple[Predicted, Steps]:
    """What the plan says of the run, and what its decode steps read; nothing, with a note, of an unknown model."""
    try:
        found = {(one.label, one.batch_size): one for one in backtest.compare(run, speed)}
        return found, decode_steps(run, speed)
    except (QbenchError, ValidationError) as error:
        unread = "its configuration names what this installation of qbench does not know"
        reason = unread if isinstance(error, ValidationError) else str(error)
        notes.append(f"predictions and bandwidth left out: {reason}")
        return {}, {}
