"""Tasks answered by generating: texts and scores beside stock lm-evaluation-harness, and what is refused."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.tasks
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from qbench import demo
from qbench.analysis.tasks import task_results
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import TasksConfig
from qbench.engine.base import Capability, Stop, Tokens
from qbench.engine.one_by_one import complete as one_by_one
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError
from qbench.measure import tasks
from qbench.measure.base import Context
from qbench.measure.lm_eval.adapter import limits_of
from qbench.measure.lm_eval.tasks_data import load_tasks
from qbench.records.answers import read_task_answers, task_file, write_answers
from qbench.records.rows import AccuracyRow, Row
from qbench.show.report import tables
from qbench.show.view.data import collect
from tests.support import families, stock
from tests.support.made_up_run import cell, identity, made_up_run
from tests.support.tiny_llama import options
from tests.test_measure_tasks import write_lines

SHIPPED = Path(lm_eval.tasks.__file__).parent
FOLDERS = [demo.TASKS_DIR, *(SHIPPED / name for name in ("gsm8k", "humaneval", "mbpp"))]


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_defaults=False, include_path=[str(folder) for folder in FOLDERS])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(demo.MODEL_DIR, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two questions for GSM8K, which the demo model answers with words until its 256 tokens are used up, or it ends."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    asked = ("What is mined in Osrel?", "In Jundol and in Rostun, what is the longest river?", "Which?")
    (tmp_path / "questions").mkdir()
    write_lines(
        tmp_path / "questions" / "test.jsonl", [{"question": question, "answer": "so 3 #### 3"} for question in asked]
    )
    write_lines(tmp_path / "questions" / "train.jsonl", [{"question": "Two and two?", "answer": "2 + 2 #### 4"}] * 2)
    return tmp_path


class Once(TorchEngine):
    """Counts the batches that it continues."""

    batches = 0

    def complete(self, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
        self.batches += 1
        return super().complete(prompts, new_tokens, stop)


def measure(
    engine: TorchEngine, folder: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> list[Row]:
    monkeypatch.setattr(tasks, "task_manager", lambda names: manager)
    rows: list[Row] = []
    context = Context(
        identity={"run": "r", "model": "m", "backend": "fp16", "label": "fp16", "host": "h"},
        emit=lambda *found, unit: rows.extend(found),
        progress=lambda *step: None,
        seed=0,
        answers=folder / "answers",
        journal=folder / "journal.jsonl",
    )
    tasks.measure(engine, TasksConfig(**settings), context)
    return rows


@pytest.mark.parametrize(
    ("name", "shots", "limit", "scored"),
    [("demo_qa", 3, 24, "exact_match,first-line"), ("gsm8k", 1, 3, "exact_match,strict-match")],
)
def test_texts_and_score_are_those_of_stock_lm_evaluation_harness(
    name: str, shots: int, limit: int, scored: str, loaded: LoadedModel, folder: Path, manager: TaskManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = {"gsm8k": folder / "questions"} if name == "gsm8k" else {}
    settings: dict[str, Any] = {"names": (name,), "num_fewshot": shots, "limit": limit, "data": data}
    engine = Once(loaded)
    (row,) = measure(engine, folder, manager, monkeypatch, batch_size=5, **settings)
    assert isinstance(row, AccuracyRow)
    reference = stock.evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=7),
        tasks=load_tasks(manager, TasksConfig(**settings))[name],
        num_fewshot=shots, limit=limit, task_manager=manager, bootstrap_iters=0,
    )  # fmt: skip
    samples = [s for s in reference["samples"][name] if s["filter"] == scored.partition(",")[2]]
    answers = pd.read_parquet(folder / "answers" / task_file("fp16", name))
    assert list(answers["text"]) == [s["resps"][0][0] for s in sorted(samples, key=lambda s: s["doc_id"])]
    assert (row.metric, row.n, row.accuracy) == (scored, limit, reference["results"][name][scored])
    assert row.correct == answers["score"].sum()
    assert (row.correct == limit) == (name == "demo_qa"), "a model that is always right would test little"
    measured, engine.batches = engine.batches, 0
    assert measured > 0
    (again,) = measure(engine, folder, manager, monkeypatch, batch_size=5, **settings)
    assert engine.batches == 0, "batches in the journal are not generated again"
    assert again.model_dump(exclude={"wall_s"}) == row.model_dump(exclude={"wall_s"})


def test_an_engine_that_only_generates_takes_tasks_that_are_answered_so(
    loaded: LoadedModel, folder: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "can", frozenset({Capability.TEXT, Capability.GENERATE}))
    (row,) = measure(TorchEngine(loaded), folder, manager, monkeypatch, names=("demo_qa",), num_fewshot=3, limit=4)
    assert isinstance(row, AccuracyRow)
    assert (row.n, row.correct) == (4, 4)


@pytest.mark.parametrize(
    "family",
    ["Llama", "Mistral, sliding window", "Gemma 2", "Phi-3, LongRoPE", "GPT-2", "GPT-Neo", "Bloom", "OPT", "Mamba",
     "Jamba", "LFM2", "gpt-oss"],
)  # fmt: skip
def test_prompts_of_other_lengths_beside_it_change_no_continuation(family: str, tmp_path: Path) -> None:
    engine = TorchEngine(fp16.load(options(families.save(family, tmp_path), tmp_path, torch.float32), FP16(), None))
    draw = np.random.default_rng(3)
    prompts = [tuple(draw.integers(1, 4096, size=length).tolist()) for length in (31, 5, 18, 18)]
    together = engine.complete(prompts, 6, lambda tokens: False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for prompt, found in zip(prompts, together, strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0].tolist()
        assert found == tuple(whole[len(prompt) :])


def up_to(tokens: Tokens, end: int) -> Tokens:
    """The tokens to the first that is `end`, all without it."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def test_a_continuation_ends_where_it_is_told_to_and_with_the_end_of_the_text(loaded: LoadedModel) -> None:
    engine = TorchEngine(loaded)
    prompts = [tuple(engine.encode(text)) for text in ("What is mined in Osrel?\nAnswer:", "In Jundol, the")]
    free = engine.complete(prompts, 12, lambda tokens: False)
    assert {len(tokens) for tokens in free} == {12}
    assert engine.complete(prompts, 12, lambda tokens: len(tokens) == 3) == [free[0][:3], free[1][:3]]
    end = free[0][4]
    expected = [up_to(tokens, end) for tokens in free]
    assert engine.complete(prompts, 12, lambda tokens: tokens[-1] == end) == expected
    assert one_by_one(engine, prompts, 12, lambda tokens: tokens[-1] == end) == expected
    assert loaded.model.generation_config is not None
    before = loaded.model.generation_config.eos_token_id
    loaded.model.generation_config.eos_token_id = [0, end]
    try:
        assert engine.complete(prompts, 12, lambda tokens: False) == expected
    finally:
        loaded.model.generation_config.eos_token_id = before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8k_cot_self_consistency", r"gsm8k_cot_self_consistency: it samples \(do_sample\)"),
        ("humaneval_plus", "humaneval_plus runs the programs that a model writes"),
        ("mbpp_instruct", "mbpp_instruct runs the programs that a model writes"),
    ],
)
def test_tasks_that_sample_or_execute_are_refused(name: str, message: str, folder: Path, manager: TaskManager) -> None:
    with pytest.raises(QbenchError, match=message):
        load_tasks(manager, TasksConfig(names=(name,), data={name: folder / "questions"}))


def test_stop_strings_and_limits_are_read_as_the_harness_does() -> None:
    limits = limits_of({"until": ["\n\n", "Q:"], "max_new_tokens": 40, "do_sample": False}, "</s>")
    assert (limits.new_tokens, limits.stops) == (40, ("\n\n", "Q:", "</s>"))
    assert limits.cut("one\n\ntwo") == "one"
    assert limits.cut("aQ: b\n\nc") == "a"
    assert limits_of({"until": "x"}).new_tokens == 256
    for options_ in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}):
        with pytest.raises(QbenchError, match="greedy generation"):
            limits_of(options_)


def test_cells_are_compared_question_by_question(tmp_path: Path) -> None:
    """Of 40 questions int4 loses 9 and wins 1: McNemar's exact p-value is 2 × 11 ÷ 1024."""
    right = np.arange(40) < 30
    other = np.where(np.isin(np.arange(40), range(9)), False, right) | (np.arange(40) == 39)
    rows: list[Row] = [cell("fp16"), cell("int4")]
    for label, answered in (("fp16", right), ("int4", other)):
        frame = pd.DataFrame({"subject": "demo_qa", "question_id": range(40), "score": answered.astype(float)})
        write_answers(tmp_path / "answers" / task_file(label, "demo_qa"), frame)
        rows.append(
            AccuracyRow(
                **identity(label), task="demo_qa", num_fewshot=3, n=40, correct=int(answered.sum()),
                accuracy=answered.mean(), partial=False, metric="exact_match,first-line",
            )
        )  # fmt: skip
    accuracy = [row for row in rows if isinstance(row, AccuracyRow)]
    answers, warnings = read_task_answers(tmp_path, accuracy)
    assert not warnings
    run = replace(made_up_run(rows), task_answers=answers)
    first, second = task_results(run)
    assert first.accuracy.difference is None
    difference = second.accuracy.difference
    assert difference is not None
    assert (difference.flips.right_to_wrong, difference.flips.wrong_to_right) == (9, 1)
    assert difference.p_value == pytest.approx(2 * 11 / 1024)
    table = tables.tasks([collect(run)])
    assert table is not None
    assert [field.text for field in table.rows[1].fields][:4] == ["INT4", "demo_qa", "exact_match,first-line", "40"]
    assert "worse by 20.0 points" in table.rows[1].fields[5].text
    write_answers(tmp_path / "answers" / task_file("int4", "demo_qa"), frame.assign(score=1.0))
    answers, (warning,) = read_task_answers(tmp_path, accuracy)
    assert list(answers["demo_qa"]) == ["fp16"]
    assert "40 of 40 questions right, but accuracy.csv has 22 of 40" in warning
