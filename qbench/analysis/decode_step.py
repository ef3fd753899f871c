"""Where a decode step's time goes: the bytes that it has to read, the least time for them, and what it took."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import cast

from qbench.config import KVCache
from qbench.machine.bandwidth import Bandwidth
from qbench.model.kv_cache import attended_tokens, recent_tokens
from qbench.plan import backtest
from qbench.plan.memory import Prediction
from qbench.records.rows import ThroughputRow
from qbench.records.run import Run
from qbench.records.trials import at_depth, by_batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeStep:
    """A decode step of a cell at one batch size: every sequence of the batch gets a token."""

    batch_size: int
    weight_bytes: int
    """Weights and buffers that it reads: all that are held but an input embedding of its own."""
    cache_bytes: float
    """Keys and values that it reads for the whole batch, mean over the steps of a generation."""
    seconds: float
    """As measured: batch_size ÷ the median of the trials' decode tokens/s."""
    bytes_per_s: float | None
    """Bandwidth of the device's memory; None where it is not known."""

    @property
    def read_bytes(self) -> float:
        """weight_bytes + cache_bytes."""
        return self.weight_bytes + self.cache_bytes

    @property
    def read_bytes_per_s(self) -> float:
        """read_bytes ÷ seconds."""
        return self.read_bytes / self.seconds

    @property
    def limit_s(self) -> float | None:
        """The least time of a step that reads every byte once: read_bytes ÷ bytes_per_s."""
        return None if self.bytes_per_s is None else self.read_bytes / self.bytes_per_s

    @property
    def limit_tokens_per_s(self) -> float | None:
        """The decode speed that this sets: batch_size ÷ limit_s."""
        return None if self.limit_s is None else self.batch_size / self.limit_s

    @property
    def times_limit(self) -> float | None:
        """seconds ÷ limit_s: 1 where memory takes all of the time, below it where caches deliver."""
        return None if self.limit_s is None else self.seconds / self.limit_s


def decode_steps(run: Run, speed: Bandwidth | None) -> dict[tuple[str, int], DecodeStep]:
    """By label and batch size, the steps of the trials that ended ok.

    Weights are those that `cells.csv` counted, where it did; lengths, cache and decode mode are those of the trials'
    rows. Only what a model's dimensions tell is predicted.

    Raises:
        QbenchError: the model is not known here, see `qbench.model.architecture.of_model`.
    """
    held = {cell.label: cell.weight_bytes for cell in run.cells}
    timed = [trial for trial in at_depth(run.throughput) if trial.status == "ok" and trial.decode_tokens_per_s]
    found = {}
    for label, predicted in backtest.predictions(run).items():
        weights, counted = predicted.weights(), held[label]
        read = weights.read_a_step if counted is None else counted - weights.unread
        for size, trials in by_batch_size(trial for trial in timed if trial.label == label).items():
            found[label, size] = DecodeStep(
                batch_size=size,
                weight_bytes=read,
                cache_bytes=_cache_bytes(predicted, trials[-1]),
                seconds=size / statistics.median(trial.decode_tokens_per_s or 0.0 for trial in trials),
                bytes_per_s=speed.bytes_per_s if speed else None,
            )
    return found


def _cache_bytes(predicted: Prediction, trial: ThroughputRow) -> float:
    """Of a batch, in a mean step of a trial; older runs name no cache, and had only the plain one."""
    cached = attended_tokens(trial.prompt_tokens, trial.new_tokens, trial.decode_mode)
    kv_cache = cast(KVCache, trial.kv_cache or "16bit")
    return predicted.step_cache_bytes(trial.batch_size, cached, kv_cache, recent_tokens(trial.new_tokens))
