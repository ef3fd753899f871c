"""Trials and what they ran under, with a sampler that says what the test wants."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.engine.torch.engine import TorchSession
from qbench.engine.torch.loaded import LoadedModel
from qbench.measure import throughput
from tests.support.throughput import Script, measured
from tests.support.tiny_llama import options


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


def test_a_disturbed_trial_is_kept_and_marked(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = measured(loaded, Script(["ok", "foreign_load", "throttled"]), tmp_path)
    assert [(row.trial, row.validity, row.attempts) for row in rows] == [
        (0, "ok", 1),
        (1, "foreign_load", 1),
        (2, "throttled", 1),
    ]
    assert all(row.status == "ok" and row.decode_tokens_per_s for row in rows)
    assert {(row.foreign_cpu, row.steal, row.cpu_mhz) for row in rows} == {(0.01, None, 2600)}


def test_a_disturbed_trial_is_repeated_until_it_is_ok_or_the_last_is_kept(loaded: LoadedModel, tmp_path: Path) -> None:
    script = Script(["foreign_load", "ok", "ok", "foreign_load", "foreign_load", "throttled"])
    rows = measured(loaded, script, tmp_path, max_retries_invalid=2)
    assert [(row.trial, row.validity, row.attempts) for row in rows] == [
        (0, "ok", 2),
        (1, "ok", 1),
        (2, "throttled", 3),
    ]


def test_the_machine_rests_and_is_looked_at_outside_of_the_timed_region(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, generate = Script(["foreign_load", "ok"]), TorchSession.generate

    def watched(*arguments: Any) -> Any:
        script.calls.append(f"generate {arguments[-1]}")
        return generate(*arguments)

    monkeypatch.setattr(TorchSession, "generate", watched)

    def rest(seconds: float) -> None:
        script.calls.append(f"sleep {seconds:g}")

    # Only there: other threads sleep, too.
    monkeypatch.setattr(throughput, "time", SimpleNamespace(sleep=rest))
    measured(loaded, script, tmp_path, trials=1, max_retries_invalid=1, cooldown_s=1.5)
    trial = ["sleep 1.5", "sample", "generate 4", "since"]
    assert script.calls[-8:] == [*trial, *trial]
    assert not {"sample", "since"} & set(script.calls[:-8]), "nothing is looked at before the first trial"


def test_the_real_sampler_fills_the_columns(loaded: LoadedModel, tmp_path: Path) -> None:
    (row,) = measured(loaded, None, tmp_path, trials=1, seq_len=128, new_tokens=100)
    assert row.validity
    assert row.foreign_cpu is not None
    assert 0 <= row.foreign_cpu <= 1
    assert (row.gpu_sm_mhz, row.foreign_gpu_pids, row.attempts) == (None, None, 1)
