"""A load of some seconds, for real and by a clock that the test moves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import SustainedConfig
from qbench.engine.base import Generation
from qbench.engine.torch.engine import TorchEngine, TorchSession
from qbench.engine.torch.loaded import LoadedModel
from qbench.measure import sustained
from qbench.measure.base import Context
from qbench.records.rows import Row, SustainedRow
from tests.support.frames import read_frames
from tests.support.runs import config, run
from tests.support.throughput import Script
from tests.support.tiny_llama import options

IDENTITY = {"run": "r", "model": "m", "backend": "fp16", "label": "fp16"}
SHORT = {"seq_len": 12, "new_tokens": 4}


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


def measured(loaded: LoadedModel, sampler: Script | None, folder: Path, **settings: Any) -> list[SustainedRow]:
    emitted: list[Row] = []
    context = Context(identity=IDENTITY, emit=emitted.append, progress=lambda *_: None, seed=0, answers=folder)
    sustained.measure(TorchEngine(loaded), SustainedConfig.model_validate(SHORT | settings), context, sampler)
    return [row for row in emitted if isinstance(row, SustainedRow)]


def test_windows_hold_whole_generations_and_their_decode_speed(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generations of 4 s, of which the first token takes 1 s; from the fourth on, 7 s."""
    now, made = [100.0], [0]

    def generate(session: TorchSession, prompts: np.ndarray, new_tokens: int) -> Generation:
        if new_tokens == 2:
            return Generation(np.empty((2, 0), dtype=np.int64), 0.1, (0.1,))
        made[0] += 1
        steps = (1.0, 1.0, 1.0) if made[0] <= 3 else (2.0, 2.0, 2.0)
        now[0] += 1 + sum(steps)
        return Generation(np.empty((2, 0), dtype=np.int64), 1.0, steps)

    monkeypatch.setattr(TorchSession, "generate", generate)
    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr(sustained, "time", clock)
    script = Script(["ok", "ok", "throttled", "ok"])
    rows = measured(loaded, script, tmp_path, minutes=0.5, window_s=10, batch_size=2)
    # 4 + 4 + 4 = 12 s; 7 + 7 = 14 s on top; 7 s more and the half minute is over.
    assert [(row.t_s, row.generations, row.validity) for row in rows] == [
        (12, 3, "ok"),
        (26, 2, "ok"),
        (33, 1, "throttled"),
    ]
    # 2 sequences, 3 decoded tokens in 3 s, later in 6 s.
    assert [row.tokens_per_s for row in rows] == [2, 1, 1]
    assert {(row.batch_size, row.prompt_tokens, row.new_tokens) for row in rows} == {(2, 8, 4)}


def test_a_cell_under_load_for_seconds(tiny_llama: Path, tmp_path: Path) -> None:
    measures = {
        "throughput": {**SHORT, "batch_sizes": [1], "trials": 2, "max_retries_invalid": 1},
        "sustained": {**SHORT, "minutes": 0.05, "window_s": 1, "cooldown_s": 0.01},
    }
    folder, ok, watcher = run(config(tiny_llama, [{"kind": "fp16"}], measure=measures), tmp_path)
    assert ok
    data = read_frames(folder)
    ends = list(data.sustained["t_s"])
    assert 1 <= len(ends) <= 3
    assert ends == sorted(ends)
    assert ends[-1] >= 3
    assert all(end < 3 for end in ends[:-1])
    assert (data.sustained["tokens_per_s"] > 0).all()
    assert data.sustained["validity"].notna().all()
    assert data.throughput["validity"].notna().all()
    assert set(data.throughput["attempts"]) <= {1, 2}
    summary = (folder / "summary.csv").read_text().splitlines()[0]
    assert "validity_b1" in summary
    assert "sustained_tokens_per_s" in summary
    assert [event.done for event in watcher.events if event.what == "sustained"][-1] == 3


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"window_s": 0}, {"cooldown_s": -1}, {"seq_len": 4}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SustainedConfig.model_validate(SHORT | wrong)
