"""Any task of lm-evaluation-harness, from local files, through the real harness and a tiny random Llama."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import datasets
import jinja2
import lm_eval.tasks
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import Reading, RunConfig, TasksConfig
from qbench.engine.base import IN_PROCESS, Capability
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError
from qbench.machine.environment import detect
from qbench.measure import tasks
from qbench.measure.base import Context
from qbench.measure.lm_eval.tasks_data import load_tasks
from qbench.plan.cells import preflight
from qbench.records.rows import AccuracyRow, Row
from tests.support import stock
from tests.support.tiny_llama import options

SHIPPED = Path(lm_eval.tasks.__file__).parent
FOLDERS = [
    SHIPPED / name
    for name in ("arc", "hellaswag", "piqa", "truthfulqa", "gsm8k", "lambada", "wikitext", "afrimmlu/direct")
]


def arc(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions of three to five choices, some of several words."""
    rows = []
    for i in range(first, first + count):
        texts = [f"w{20 + (7 * i + 3 * j) % 90}" + f" w{30 + j} w{5 + i}" * (j % 3) for j in range(3 + i % 3)]
        labels = list("ABCDE" if i % 2 else "12345")[: len(texts)]
        words = " ".join(f"w{4 + (i + k) % 60}" for k in range(3 + i % 4))
        choices = {"text": texts, "label": labels}
        rows.append({"id": str(i), "question": words, "choices": choices, "answerKey": labels[i % len(texts)]})
    return rows


def piqa(count: int) -> list[dict[str, Any]]:
    return [
        {"goal": f"w{i + 4} w{i + 9}", "sol1": f"w{i + 50} w{i + 51}", "sol2": f"w{i + 70}", "label": i % 2}
        for i in range(count)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_lines(tmp_path / "arc" / "test.jsonl", arc(10))
    write_lines(tmp_path / "arc" / "train.jsonl", arc(6, first=40))
    write_lines(tmp_path / "piqa.jsonl", piqa(9))
    return tmp_path


@pytest.fixture
def manager() -> TaskManager:
    """Of a few folders: the index of all takes many seconds."""
    return TaskManager(include_defaults=False, include_path=list(FOLDERS))


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


Measure = Callable[..., tuple[list[AccuracyRow], list[tuple[str, int, int]]]]


@pytest.fixture
def measure(loaded: LoadedModel, folder: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch) -> Measure:
    monkeypatch.setattr(tasks, "task_manager", lambda names: manager)

    def run(*names: str, **settings: Any) -> tuple[list[AccuracyRow], list[tuple[str, int, int]]]:
        rows: list[Row] = []
        steps: list[tuple[str, int, int]] = []
        context = Context(
            identity={"run": "r", "model": "m", "backend": "fp16", "label": "fp16"},
            emit=lambda *found, unit: rows.extend(found),
            progress=lambda *step: steps.append(step),
            seed=0,
            answers=folder,
        )
        tasks.measure(TorchEngine(loaded), TasksConfig(names=names, **settings), context)
        assert all(isinstance(row, AccuracyRow) for row in rows)
        return rows, steps  # type: ignore[return-value]

    return run


@torch.no_grad()
def logprob(loaded: LoadedModel, context: str, continuation: str) -> float:
    """One plain forward of one text."""
    assert loaded.tokenizer is not None
    before, whole = (loaded.tokenizer.encode(text) for text in (context, context + continuation))
    logits = loaded.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(before), len(whole)))


def expected_arc(loaded: LoadedModel, rows: list[dict[str, Any]]) -> int:
    """Right answers, every log-probability computed by itself."""
    right = 0
    for row in rows:
        prompt = f"Question: {row['question']}\nAnswer:"
        scores = [logprob(loaded, prompt, f" {text}") for text in row["choices"]["text"]]
        right += max(range(len(scores)), key=scores.__getitem__) == row["choices"]["label"].index(row["answerKey"])
    return right


def test_an_engine_without_log_likelihoods_is_not_asked_for_them(
    measure: Measure, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of most servers; tests/test_measure_generate.py has a task that they can take."""
    monkeypatch.setattr(TorchEngine, "can", IN_PROCESS - {Capability.LOGLIKELIHOODS})
    with pytest.raises(QbenchError, match="names: arc_easy takes an engine that gives log-probabilities of a prompt"):
        measure("arc_easy", data={"arc_easy": folder / "arc"})


@pytest.mark.parametrize("engine", ["prefix", "stock"])
def test_accuracy_is_that_of_a_plain_computation(
    measure: Measure, loaded: LoadedModel, folder: Path, engine: Reading
) -> None:
    (row,), steps = measure("arc_easy", data={"arc_easy": folder / "arc"}, engine=engine, batch_size=3)
    right = expected_arc(loaded, arc(10))
    assert (row.task, row.subject, row.num_fewshot, row.partial) == ("arc_easy", "", 0, False)
    assert (row.n, row.correct, row.accuracy) == (10, right, right / 10)
    assert row.stderr == pytest.approx(math.sqrt(right / 10 * (1 - right / 10) / 9))
    assert 0 < right < 10, "a model that is always right or wrong would test nothing"
    assert (steps[1], steps[-1]) == (("arc_easy", 0, 10), ("arc_easy", 10, 10))
    assert row.forward_tokens is not None
    assert row.stock_tokens is not None
    assert (row.forward_tokens < row.stock_tokens) == (engine == "prefix"), "choices stand behind one prompt"


def test_every_name_has_its_rows_and_limit_marks_them(measure: Measure, folder: Path) -> None:
    data = {"arc_easy": folder / "arc", "piqa": folder / "piqa.jsonl"}
    rows, _ = measure("piqa", "arc_easy", data=data, limit=4)
    assert [(row.task, row.n, row.partial) for row in rows] == [("piqa", 4, True), ("arc_easy", 4, True)]


@pytest.mark.parametrize("engine", ["prefix", "stock"])
def test_examples_come_from_the_local_training_split(
    measure: Measure, loaded: LoadedModel, folder: Path, manager: TaskManager, engine: Reading
) -> None:
    settings: dict[str, Any] = {"data": {"arc_easy": folder / "arc"}, "num_fewshot": 3}
    (row,), _ = measure("arc_easy", engine=engine, **settings)
    own = load_tasks(manager, TasksConfig(names=("arc_easy",), **settings))["arc_easy"]
    reference = stock.evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=5),
        tasks=own, num_fewshot=3, task_manager=manager, bootstrap_iters=0,
    )  # fmt: skip
    prompts = [sample["arguments"][0][0] for sample in reference["samples"]["arc_easy"]]
    training = {row["question"] for row in arc(6, first=40)}
    assert all(sum(f"Question: {question}\n" in prompt for question in training) == 3 for prompt in prompts)
    assert row.num_fewshot == 3
    assert row.accuracy == reference["results"]["arc_easy"]["acc,none"]


def test_a_tag_has_a_row_for_each_of_its_tasks(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_hub(path: str, name: str) -> datasets.DatasetDict:
        assert path == "allenai/ai2_arc"
        rows = datasets.Dataset.from_list(arc(4 if name == "ARC-Easy" else 3))
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    rows, _ = measure("ai2_arc")
    assert [(row.task, row.subject, row.n) for row in rows] == [
        ("ai2_arc", "arc_challenge", 3), ("ai2_arc", "arc_easy", 4),
    ]  # fmt: skip


def test_one_greedy_word_is_scored(measure: Measure, loaded: LoadedModel, folder: Path) -> None:
    """lambada: whether the last word is what the model would say."""
    texts = [f"w{i} w{i + 3} w{i + 5} w{i + 8}" for i in range(4, 9)]
    assert loaded.tokenizer is not None
    greedy = []
    for text in texts:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([loaded.tokenizer.encode(text.rpartition(" ")[0])])).logits
        greedy.append(loaded.tokenizer.decode(int(logits[0, -1].argmax())))
    texts[:2] = [f"{text.rpartition(' ')[0]} {word}" for text, word in zip(texts[:2], greedy, strict=False)]
    path = write_lines(folder / "lambada.jsonl", [{"text": text} for text in texts])
    (row,), _ = measure("lambada_openai", data={"lambada_openai": path})
    assert (row.n, row.correct) == (5, 2)


def test_answers_that_are_partly_right_have_no_count(measure: Measure, loaded: LoadedModel, folder: Path) -> None:
    """truthfulqa_mc2: the share of probability on true answers."""
    choices, labels = ["w5 w6", "w7", "w8 w9 w10"], [1, 0, 1]
    targets = {"choices": choices, "labels": labels}
    row = {"question": "w4 w5", "mc1_targets": targets, "mc2_targets": targets}
    path = write_lines(folder / "truth.jsonl", [row])
    (found,), _ = measure("truthfulqa_mc2", data={"truthfulqa_mc2": path})
    task = TaskManager(include_defaults=False, include_path=SHIPPED / "truthfulqa").task_index["truthfulqa_mc1"]
    assert task.cfg is not None
    prompt = jinja2.Template(task.cfg["doc_to_text"]).render(row)
    likely = [math.exp(logprob(loaded, prompt, f" {choice}")) for choice in choices]
    assert found.accuracy == pytest.approx((likely[0] + likely[2]) / sum(likely), abs=1e-4)
    assert (found.n, found.correct, found.num_fewshot) == (1, None, 0)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json", "-00000-of-00001.parquet"])
def test_files_of_any_format_give_the_same(measure: Measure, folder: Path, suffix: str) -> None:
    (folder / "piqa").mkdir()
    path = folder / "piqa" / f"validation{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(piqa(1)[0]))
            writer.writeheader()
            writer.writerows(piqa(9))
    elif suffix == ".json":
        path.write_text(json.dumps(piqa(9)))
    else:
        pd.DataFrame(piqa(9)).to_parquet(path)
    (row,), _ = measure("piqa", data={"piqa": folder / "piqa"})
    (same,), _ = measure("piqa", data={"piqa": folder / "piqa.jsonl"})
    assert row.model_dump(exclude={"wall_s"}) == same.model_dump(exclude={"wall_s"})


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (("arc_eazy",), {}, r"has no task 'arc_eazy'; did you mean arc_easy\?"),
        (("wikitext",), {}, "wikitext is a task of type loglikelihood_rolling"),
        (("afrimmlu-irokobench",), {}, "afrimmlu_direct_.* is scored by f1 of the hub's `evaluate`"),
        (("ai2_arc",), {"data": {"ai2_arc": "arc"}}, "ai2_arc is a group of tasks"),
        (("piqa",), {"data": {"piqa": "arc"}}, r"arc holds no validation, where piqa has its questions .*test, train"),
        (("arc_easy",), {"data": {"arc_easy": "empty"}}, "empty: give files of one format"),
        (("arc_easy",), {"data": {"arc_easy": "mixed"}}, "mixed: give files of one format"),
        (("arc_easy",), {"data": {"arc_easy": "piqa.jsonl"}}, r"piqa\.jsonl does not fit arc_easy \("),
        (("arc_easy",), {"data": {"arc_easy": "test.jsonl"}, "num_fewshot": 2}, "no train, where arc_easy has its"),
        (("arc_easy",), {"data": {"arc_easy": "arc"}, "num_fewshot": 7}, "6 rows to choose examples from, but 7-shot"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_with_its_name(
    measure: Measure, folder: Path, names: tuple[str, ...], settings: dict[str, Any], message: str
) -> None:
    (folder / "empty").mkdir()
    write_lines(folder / "test.jsonl", arc(3))
    write_lines(folder / "mixed" / "test.jsonl", arc(3))
    write_lines(folder / "mixed" / "train.csv", arc(3))
    if "data" in settings:
        settings = settings | {"data": {name: folder / path for name, path in settings["data"].items()}}
    with pytest.raises(QbenchError, match=message):
        measure(*names, **settings)


def test_a_hub_that_cannot_be_reached_names_the_remedy(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: object, **_settings: object) -> NoReturn:
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(QbenchError, match=r"piqa: its questions cannot be read .*Couldn't reach.*measure\.tasks\.data"):
        measure("piqa")


def test_a_task_whose_library_is_missing_says_so(
    measure: Measure, folder: Path, manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_library(*_arguments: object) -> NoReturn:
        raise ModuleNotFoundError("No module named 'rouge_score'")

    monkeypatch.setattr(manager, "load", without_library)
    with pytest.raises(QbenchError, match=r"truthfulqa_mc2 needs a library .*rouge_score"):
        measure("truthfulqa_mc2")


def test_data_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    measures = {"tasks": {"names": ["piqa"], "data": {"piqa": str(tmp_path / "nowhere")}}}
    config = RunConfig.model_validate(
        {"name": "r", "model": {"demo": True}, "backends": [{"kind": "fp16"}], "measure": measures}
    )
    with pytest.raises(QbenchError, match=r"measure\.tasks\.data: no file or folder .*nowhere for piqa"):
        preflight(config, detect())
