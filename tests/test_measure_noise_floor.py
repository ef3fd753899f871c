"""The noise floor of the demo model, measured by itself and in whole runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.backends.int4 import Int4
from qbench.config import MeasureConfig, NoiseFloorConfig, load
from qbench.engine.torch.engine import TorchEngine
from qbench.errors import QbenchError
from qbench.measure import mmlu, noise_floor
from qbench.measure.base import Context
from qbench.records.rows import NoiseRow, Row
from tests.support.frames import read_frames
from tests.support.runs import run, run_config
from tests.support.tiny_llama import options

SUBJECTS = ("invented_birds", "invented_rivers")
MMLU = {"data": "demo", "subjects": SUBJECTS[:1], "limit": 3, "batch_size": 2}


def answers(predicted: list[int], gold: list[int], logprob_a: list[float]) -> pd.DataFrame:
    """Questions 0, 1, … of one subject; B, C and D have the log-probability −2."""
    others = {f"logprob_{letter}": -2.0 for letter in "bcd"}
    columns = {"question_id": range(len(gold)), "predicted": predicted, "gold": gold, "logprob_a": logprob_a}
    return pd.DataFrame({"subject": "law", **columns, **others})


def test_differences_by_hand() -> None:
    first = answers([0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [-1.0, -3.0, -3.0, -3.0, -1.0])
    # 0 is lost; 2 is won; 3 moves from one wrong answer to another.
    second = answers([1, 1, 0, 2, 0], [0, 1, 0, 0, 0], [-2.25, -3.0, -1.5, -3.0, -1.0])
    expected = {
        "n": 5,
        "changed_answers": 3,
        "right_to_wrong": 1,
        "wrong_to_right": 1,
        "accuracy_delta": 0.0,
        "logprob_delta_max": 1.5,
    }
    assert noise_floor.differences(first, second) == expected
    assert noise_floor.differences(first, second.iloc[::-1]) == expected


def context(folder: Path, rows: list[Row], steps: list[str], measures: MeasureConfig) -> Context:
    return Context(
        identity={"run": "r", "model": "m", "backend": "fp16", "label": "fp16"},
        emit=rows.append,
        progress=lambda what, _done, _total: steps.append(what),
        seed=0,
        answers=folder,
        measures=measures,
    )


def test_the_second_evaluation_has_another_batch_size_and_leaves_answers_and_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = TorchEngine(fp16.load(options(demo.MODEL_DIR, tmp_path, torch.float32), FP16(), None))
    measures = MeasureConfig.model_validate({"mmlu": MMLU | {"subjects": SUBJECTS, "batch_size": 4}, "noise_floor": {}})
    assert measures.mmlu is not None
    sizes: list[int] = []
    evaluate = mmlu.measure

    def spy(loaded, config, context) -> None:  # type: ignore[no-untyped-def]
        sizes.append(config.batch_size)
        evaluate(loaded, config, context)

    monkeypatch.setattr(mmlu, "measure", spy)
    rows: list[Row] = []
    steps: list[str] = []
    here = context(tmp_path / "answers", rows, steps, measures)
    mmlu.measure(loaded, measures.mmlu, here)
    subjects = len(rows)
    noise_floor.measure(loaded, NoiseFloorConfig(), here)
    assert sizes == [4, 2]
    assert set(steps) == {"mmlu", "noise floor"}
    (row,) = rows[subjects:]
    assert isinstance(row, NoiseRow)
    assert (row.label, row.batch_size, row.repeat_batch_size, row.n, row.partial) == ("fp16", 4, 2, 6, True)
    files = {path.name: pd.read_parquet(path) for path in here.answers.iterdir()}
    assert set(files) == {"fp16.parquet", "fp16.noise.parquet"}
    logprobs = [files[name][[f"logprob_{letter}" for letter in "abcd"]].to_numpy() for name in sorted(files)]
    assert row.logprob_delta_max == abs(logprobs[0] - logprobs[1]).max()
    assert row.logprob_delta_max < 0.5, "the second evaluation is of something else"


def test_without_first_answers_there_is_nothing_to_compare(tmp_path: Path) -> None:
    loaded = TorchEngine(fp16.load(options(demo.MODEL_DIR, tmp_path, torch.float32), FP16(), None))
    measures = MeasureConfig.model_validate({"mmlu": MMLU})
    with pytest.raises(QbenchError, match=r"measure\.noise_floor: no answers of measure\.mmlu"):
        noise_floor.measure(loaded, NoiseFloorConfig(), context(tmp_path / "answers", [], [], measures))


def test_it_is_measured_of_16_bit_cells_after_mmlu() -> None:
    measures = MeasureConfig.model_validate({"noise_floor": {}, "mmlu": {}, "throughput": {}})
    assert list(measures.of(FP16())) == ["memory", "throughput", "mmlu", "noise_floor"]
    assert list(measures.of(Int4())) == ["memory", "throughput", "mmlu"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measure": {"noise_floor": {}}}, "repeats measure.mmlu, which is not there; add mmlu"),
        ({"measure": {"mmlu": {"batch_size": 4}, "noise_floor": {"batch_size": 4}}}, "must differ from that of mmlu"),
        ({"backends": [{"kind": "int4"}]}, "needs a cell of 16 bits; add `kind: fp16`"),
        ({"backends": [{"kind": "fp16"}, {"kind": "fp16", "label": "fp16.noise"}]}, "no label may end so"),
        ({"measure": {"mmlu": {}, "noise_floor": {"batch_size": 0}}}, "greater than or equal to 1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        run_config(**{"measure": {"mmlu": {}, "noise_floor": {}}} | changes)


def test_true_in_a_file_asks_for_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: c\nmodel: {demo: true}\nbackends: [{kind: fp16}]\nmeasure: {mmlu: true, noise_floor: true}\n"
    )
    assert load.load(path).measure.noise_floor == NoiseFloorConfig()


def test_a_limited_run_leaves_a_noise_floor_and_never_enters_the_summary(tmp_path: Path) -> None:
    measure = {"memory": {"seq_len": 8}, "mmlu": MMLU, "noise_floor": {"batch_size": 1}}
    backends = [{"kind": "fp16"}, {"kind": "int4"}]
    settings = run_config(backends=backends, measure=measure, threads=1, dtype="float32")
    folder, ok, _ = run(settings, tmp_path)
    assert ok
    data = read_frames(folder)
    assert data.warnings == ()
    assert data.noise[["label", "batch_size", "repeat_batch_size", "n"]].values.tolist() == [["fp16", 2, 1, 3]]
    assert set(data.answers) == {"fp16", "int4"}
    assert list(data.accuracy["partial"]) == [True, True]
    summary = pd.read_csv(folder / "summary.csv")
    accuracy = [column for column in summary.columns if column.startswith("mmlu")]
    assert len(accuracy) == 18
    assert summary[accuracy].isna().all(axis=None)
    assert summary["mmlu_delta"].isna().all()


def test_nan_is_an_error_row_that_says_so(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo.MODEL_DIR, model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    measure = {"memory": {"seq_len": 8}, "mmlu": {"data": "demo", "subjects": SUBJECTS[:1], "limit": 1}}
    settings = run_config(model={"path": str(model)}, measure=measure, threads=1, dtype="float32")
    folder, ok, _ = run(settings, tmp_path)
    assert not ok
    row = pd.read_csv(folder / "summary.csv").iloc[0]
    assert row["status"] == "error"
    assert "mmlu, first in mmlu_invented_birds: the model's logits are NaN" in row["error"]
    assert pd.isna(row["mmlu"])
    assert not list((folder / "answers").iterdir())
