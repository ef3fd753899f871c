"""What numerics alone move: MMLU evaluated again by the same model at another batch size.

Other batches take other kernels and other orders of summation, which changes log-probabilities in their last bits and
now and then an answer. A difference between two cells that is no larger than that is not an effect of quantization.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pandas as pd

from qbench.analysis.formulas import count_flips
from qbench.config import NOISE_SUFFIX, NoiseFloorConfig
from qbench.engine.base import Capability, Engine
from qbench.errors import QbenchError
from qbench.measure import mmlu
from qbench.measure.base import Context
from qbench.records.answers import QUESTION
from qbench.records.rows import NoiseRow

LOGPROBS = ["logprob_a", "logprob_b", "logprob_c", "logprob_d"]


NEEDS = frozenset({Capability.LOGLIKELIHOODS})
"""Capabilities without which a cell's measure is unsupported."""


def measure(engine: Engine, config: NoiseFloorConfig, context: Context) -> None:
    """Evaluate MMLU again, keep its answers as `<label>.noise.parquet`, and emit a `NoiseRow`.

    Raises:
        QbenchError: the first evaluation has left no answers; see also `qbench.measure.mmlu.measure`.
    """
    first = context.answers / f"{context.identity['label']}.parquet"
    if context.measures.mmlu is None or not first.is_file():
        raise QbenchError(f"measure.noise_floor: no answers of measure.mmlu in {first}; it compares with them")
    before = context.measures.mmlu
    again = before.model_copy(update={"batch_size": config.batch_size or before.batch_size // 2 or 2})
    start = time.perf_counter()
    mmlu.measure(engine, again, _aside(context))
    second = first.with_name(f"{first.stem}{NOISE_SUFFIX}.parquet")
    context.emit(
        NoiseRow(
            **context.identity,
            batch_size=before.batch_size,
            repeat_batch_size=again.batch_size,
            **differences(pd.read_parquet(first), pd.read_parquet(second)),
            partial=before.partial,
            wall_s=time.perf_counter() - start,
        )
    )


def _aside(context: Context) -> Context:
    """The same way back, for answers under a name of their own and without rows."""
    identity = context.identity.copy()
    identity["label"] += NOISE_SUFFIX
    return dataclasses.replace(
        context,
        identity=identity,
        emit=lambda *_rows, unit="": None,
        progress=lambda _what, done, total: context.progress("noise floor", done, total),
    )


def differences(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    """The columns of a `NoiseRow` that come from two evaluations' answers, a row for every question in each."""
    first = first.set_index(QUESTION)
    second = second.set_index(QUESTION).loc[first.index]
    right, right_again = (answers["predicted"] == answers["gold"] for answers in (first, second))
    flips = count_flips(right.to_numpy(), right_again.to_numpy())
    return {
        "n": flips.n,
        "changed_answers": int((first["predicted"] != second["predicted"]).sum()),
        "right_to_wrong": flips.right_to_wrong,
        "wrong_to_right": flips.wrong_to_right,
        "accuracy_delta": flips.delta,
        "logprob_delta_max": float(np.abs(second[LOGPROBS].to_numpy() - first[LOGPROBS].to_numpy()).max()),
    }
