"""What was predicted of a run beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from qbench.config import RunConfig, TimedGeneration
from qbench.config.target import Target
from qbench.machine.bandwidth import Bandwidth
from qbench.model.architecture import of_model
from qbench.plan.engines import predict
from qbench.plan.forecast import ceiling
from qbench.plan.memory import Prediction
from qbench.records.run import Run
from qbench.records.trials import at_depth

COLUMNS = (
    "label", "measure", "batch_size", "predicted_bytes", "measured_bytes", "predicted_tokens_per_s",
    "measured_tokens_per_s",
)  # fmt: skip


def compare(run: Run, speed: Bandwidth | None = None) -> pd.DataFrame:
    """Predicted beside measured: a row for each cell's first forward, and for each of its batch sizes.

    Args:
        speed: of the machine that was measured, for the ceiling of the decode speed.

    Returns:
        The columns `COLUMNS`; bytes are peaks, tokens/s medians over trials that ended ok. The kernel is taken for the
        one that ran. What was not measured has no row.

    Raises:
        QbenchError: the model is not known here, see `qbench.model.architecture.of_model`.
    """
    config = RunConfig.model_validate(run.record.config)
    peaks = run.cells.drop_duplicates("label", keep="last").set_index("label")["peak_memory_bytes"]
    rows: list[dict[str, Any]] = []
    for label, predicted in predictions(run).items():
        if not pd.isna(peaks[label]):
            rows.append(_forward(config, predicted, int(peaks[label])))
        rows += _generations(config, predicted, run.throughput, speed)
    return pd.DataFrame(rows, columns=list(COLUMNS)).convert_dtypes()


def predictions(run: Run) -> dict[str, Prediction]:
    """By label, the model as each cell held it, with the kernel that ran; cells that were not loaded have none.

    Raises:
        QbenchError: as of `compare`.
    """
    config = RunConfig.model_validate(run.record.config)
    model = of_model(config.model)
    backends = {backend.label: backend for backend in config.backends}
    found = {}
    for cell in run.cells.drop_duplicates("label", keep="last").to_dict("records"):
        if cell["label"] not in backends or pd.isna(cell["kernel"]):
            continue
        target = Target(
            device="cpu" if cell["device"] == "cpu" else "cuda",
            value_bytes=4 if cell["dtype"] == "float32" else 2,
            cpu_features=run.record.environment.cpu_features,
            device_map_auto=config.device_map == "auto",
            kernel=str(cell["kernel"]),
        )
        if predicted := predict(model, backends[cell["label"]], target):
            found[str(cell["label"])] = predicted
    return found


def _forward(config: RunConfig, predicted: Prediction, measured_bytes: int) -> dict[str, Any]:
    memory = config.measure.memory
    return {
        "label": predicted.backend.label,
        "measure": "memory",
        "batch_size": memory.batch_size,
        "predicted_bytes": predicted.generation_bytes(
            memory.batch_size, memory.seq_len, memory.seq_len, predicted.backend.kv_cache
        ),
        "measured_bytes": measured_bytes,
    }


def _generations(
    config: RunConfig, predicted: Prediction, throughput: pd.DataFrame, speed: Bandwidth | None
) -> Iterator[dict[str, Any]]:
    timed, label = config.measure.of(predicted.backend).get("throughput"), predicted.backend.label
    if not isinstance(timed, TimedGeneration):
        return
    trials = at_depth(throughput[(throughput["label"] == label) & (throughput["status"] == "ok")])
    for size in sorted(set(trials["batch_size"])):
        same = trials[trials["batch_size"] == size]
        yield {
            "label": label,
            "measure": "throughput",
            "batch_size": int(size),
            "predicted_bytes": predicted.generation_bytes(
                int(size), timed.prompt_tokens, timed.seq_len, timed.kv_cache
            ),
            "measured_bytes": int(same["peak_memory_bytes"].max()),
            "predicted_tokens_per_s": None if speed is None else ceiling(predicted, timed, int(size), speed),
            "measured_tokens_per_s": float(same["decode_tokens_per_s"].median()),
        }
