"""From a run to a `RunReport`: everything that plots, page and BENCHMARK.md say of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from qbench.analysis.effects import section
from qbench.analysis.paired import tied
from qbench.analysis.subjects import subjects
from qbench.analysis.summary import CellSummary, Speed, known, summarize
from qbench.errors import QbenchError
from qbench.machine import bandwidth
from qbench.machine.bandwidth import Bandwidth
from qbench.plan import backtest
from qbench.records.redact import Redactor
from qbench.records.run import Run
from qbench.show.phrases import remarks, truncations
from qbench.show.view import facts
from qbench.show.view.facts import Record
from qbench.show.view.records import RunReport

ONE_BYTE_A_SECOND = Bandwidth(1.0, "a unit")
"""With it, a ceiling in tokens/s is the tokens that reading one byte makes."""


def collect(
    run: Run, *, title: str | None = None, allow_partial: bool = False, speed: Bandwidth | None = None
) -> RunReport:
    """Everything that is reported of a run.

    Args:
        title: the run's name unless given.
        allow_partial: also accuracies and divergences over part of the questions or text.
        speed: of the machine that was measured, where the caller knows it; else that of the data sheet of the GPU
            that run.json names, or on a CPU the fastest that the run's workers have read.
    """
    record, notes = run.record, list[str]()
    speed = speed or _bandwidth(run, notes)
    predictions = _predictions(run, speed, notes)
    summary = summarize(run, allow_partial=allow_partial)
    cells = [_with_predictions(cell, predictions) for cell in summary.cells]
    names = {cell.label: cell.name for cell in cells}
    reference = run.reference
    answered = [cell.label for cell in cells if cell.accuracy]
    found = subjects(run, reference, answered, names) if reference else ()
    notes += facts.unreported(run, cells, allow_partial)
    dtypes = sorted({str(dtype) for dtype in run.cells["dtype"].dropna()}) or [str(record.config.get("dtype", ""))]
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
        reference=names.get(reference) if reference else None,
        ties=frozenset(frozenset(names[label] for label in pair) for pair in tied(run, answered)),
        settings=facts.settings(run, cells),
        bandwidth=speed,
        tried=facts.tried(run),
        failures=tuple(facts.failures(run, names)),
        doubts=(*truncations(cells), *remarks(cells), *(Redactor.here().text(text) for text in run.warnings)),
        notes=tuple(notes),
    )


def _with_predictions(cell: CellSummary, predictions: Mapping[tuple[str, int | None], Record]) -> CellSummary:
    def complete(speed: Speed) -> Speed:
        found = predictions.get((cell.label, speed.batch_size), {})
        tokens_per_s, tokens_a_byte = speed.tokens_per_s, found.get("tokens_a_byte")
        return replace(
            speed,
            predicted_bytes=found.get("predicted_bytes"),
            ceiling_tokens_per_s=found.get("predicted_tokens_per_s"),
            read_bytes_per_s=tokens_per_s / tokens_a_byte if tokens_per_s and tokens_a_byte else None,
        )

    first_forward = predictions.get((cell.label, None), {})
    return replace(cell, predicted_bytes=first_forward.get("predicted_bytes"), speeds=tuple(map(complete, cell.speeds)))


def _bandwidth(run: Run, notes: list[str]) -> Bandwidth | None:
    """Of the GPU, by its data sheet, or as measured in the run; None, with a note, where its files do not tell it."""
    gpus = sorted(set(run.cells["device"].dropna()) - {"cpu"})
    if run.cells["host"].nunique() > 1:
        notes.append("bandwidth ceiling left out: the cells were measured on several machines")
        return None
    if gpus:
        found = bandwidth.of_gpu(gpus[0]) if len(gpus) == 1 else None
        if found is None:
            notes.append(
                f"bandwidth ceiling left out: no data sheet of {' and '.join(gpus)} is known; give --bandwidth"
            )
        return found
    readings = run.cells["read_bytes_per_s"].dropna()
    if not readings.empty:
        return Bandwidth(float(readings.max()), f"fastest of {len(readings)} readings, one before each cell")
    notes.append("bandwidth ceiling left out: this run did not record how fast its CPU reads; give --bandwidth")
    return None


def _predictions(run: Run, speed: Bandwidth | None, notes: list[str]) -> dict[tuple[str, int | None], Record]:
    """By label and batch size, peak, ceiling and tokens a byte; of the first forward under None."""
    try:
        rows = backtest.compare(run, speed).to_dict("records")
        units = backtest.compare(run, ONE_BYTE_A_SECOND)["predicted_tokens_per_s"]
    except (QbenchError, ValidationError) as error:
        unread = "its configuration names what this installation of qbench does not know"
        reason = unread if isinstance(error, ValidationError) else str(error)
        notes.append(f"predictions and bandwidth left out: {reason}")
        return {}
    found = {}
    for row, unit in zip(rows, units, strict=True):
        size = None if row["measure"] == "memory" else int(row["batch_size"])
        found[row["label"], size] = known(row | {"tokens_a_byte": unit})
    return found
