"""What was predicted of a run beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from qbench.config import RunConfig, TimedGeneration
from qbench.config.target import Target
from qbench.machine.bandwidth import Bandwidth
from qbench.model.architecture import of_model
from qbench.plan.engines import predict
from qbench.plan.forecast import ceiling
from qbench.plan.memory import Prediction
from qbench.records.run import Run
from qbench.records.trials import at_depth, by_batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """Of a cell's first forward, or of its generations at a batch size."""

    label: str
    batch_size: int | None
    """None of the first forward."""
    predicted_bytes: int
    """Peaks."""
    measured_bytes: int
    predicted_tokens_per_s: float | None = None
    """The ceiling; None where the bandwidth is not known."""
    measured_tokens_per_s: float | None = None
    """Median over trials that ended ok."""


def compare(run: Run, speed: Bandwidth | None = None) -> list[Backtest]:
    """Predicted beside measured, for each cell's first forward and each of its batch sizes.

    The kernel is taken for the one that ran. What was not measured is left out.

    Args:
        speed: of the machine that was measured, for the ceiling of the decode speed.

    Raises:
        QbenchError: the model is not known here, see `qbench.model.architecture.of_model`.
    """
    config = RunConfig.model_validate(run.record.config)
    peaks = {cell.label: cell.peak_memory_bytes for cell in run.cells}
    found: list[Backtest] = []
    for label, predicted in predictions(run).items():
        if (peak := peaks[label]) is not None:
            found.append(_forward(config, predicted, peak))
        found += _generations(config, predicted, run, speed)
    return found


def predictions(run: Run) -> dict[str, Prediction]:
    """By label, the model as each cell held it, with the kernel that ran; cells that were not loaded have none.

    Raises:
        QbenchError: as of `compare`.
    """
    config = RunConfig.model_validate(run.record.config)
    model = of_model(config.model)
    backends = {backend.label: backend for backend in config.backends}
    found = {}
    for cell in run.cells:
        if cell.label not in backends or cell.kernel is None:
            continue
        target = Target(
            device="cpu" if cell.device == "cpu" else "cuda",
            value_bytes=4 if cell.dtype == "float32" else 2,
            cpu_features=run.record.environment.cpu_features,
            device_map_auto=config.device_map == "auto",
            kernel=cell.kernel,
        )
        if predicted := predict(model, backends[cell.label], target):
            found[cell.label] = predicted
    return found


def _forward(config: RunConfig, predicted: Prediction, measured_bytes: int) -> Backtest:
    memory = config.measure.memory
    return Backtest(
        label=predicted.backend.label,
        batch_size=None,
        predicted_bytes=predicted.generation_bytes(
            memory.batch_size, memory.seq_len, memory.seq_len, predicted.backend.kv_cache
        ),
        measured_bytes=measured_bytes,
    )


def _generations(config: RunConfig, predicted: Prediction, run: Run, speed: Bandwidth | None) -> Iterator[Backtest]:
    timed, label = config.measure.of(predicted.backend).get("throughput"), predicted.backend.label
    if not isinstance(timed, TimedGeneration):
        return
    ok = (trial for trial in at_depth(run.throughput) if trial.label == label and trial.status == "ok")
    for size, trials in by_batch_size(ok).items():
        yield Backtest(
            label=label,
            batch_size=size,
            predicted_bytes=predicted.generation_bytes(size, timed.prompt_tokens, timed.seq_len, timed.kv_cache),
            measured_bytes=max(trial.peak_memory_bytes or 0 for trial in trials),
            predicted_tokens_per_s=None if speed is None else ceiling(predicted, timed, size, speed),
            measured_tokens_per_s=statistics.median(trial.decode_tokens_per_s or 0.0 for trial in trials),
        )
