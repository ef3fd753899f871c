"""Needle tasks: prompts, texts and scores beside stock lm-evaluation-harness, a row a length, and what is refused."""

import copy
import importlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from pydantic import ValidationError
from wonderwords import RandomWord

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.compat.lm_eval import RULER_FILES
from qbench.config import TasksConfig, needles
from qbench.engine.base import Stop, Tokens
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError
from qbench.measure import tasks
from qbench.measure.base import Context
from qbench.measure.lm_eval.needles import Source, load
from qbench.records.answers import task_file
from qbench.records.rows import AccuracyRow, Row
from tests.support import stock
from tests.support.tiny_llama import options


@pytest.fixture(scope="module", autouse=True)
def words() -> Iterator[None]:
    """A tenth of lm-evaluation-harness's words: when its needles are imported, it sorts six million pairs of them."""
    made = RandomWord.__init__

    def with_fewer(self: RandomWord) -> None:
        made(self)
        for name in ("nouns", "adjectives"):
            self._categories[name] = self._categories[name][::10]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RandomWord, "__init__", with_fewer)
        importlib.import_module("lm_eval.tasks.ruler.prepare_niah")
        yield


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(demo.MODEL_DIR, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


class Finder(TorchEngine):
    """Reads the needle in the second half of a prompt and misses it in the first."""

    def complete(self, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
        return [tuple(self.encode(self._answer(self.decode(prompt)), special=False)) for prompt in prompts]

    def _answer(self, prompt: str) -> str:
        key = re.findall(r"number for (.+?) mentioned", prompt)[-1]
        needle = re.search(rf"numbers for {re.escape(key)} is: (\d+)\.", prompt)
        assert needle
        return f" {needle[1]}." if needle.start(1) > len(prompt) / 2 else " not there"


def measure(engine: TorchEngine, folder: Path, **settings: Any) -> list[AccuracyRow]:
    rows: list[Row] = []
    context = Context(
        identity={"run": "r", "model": "m", "backend": "fp16", "label": "fp16", "host": "h"},
        emit=lambda *found, unit: rows.extend(found),
        progress=lambda *step: None,
        seed=0,
        answers=folder,
        folder=demo.MODEL_DIR,
    )
    tasks.measure(engine, TasksConfig(**settings), context)
    return [row for row in rows if isinstance(row, AccuracyRow)]


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_3"])
def test_prompts_texts_and_score_are_those_of_stock_lm_evaluation_harness(
    name: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    (row,) = measure(TorchEngine(loaded), tmp_path, names=(name,), context_lengths=(512,), limit=5, batch_size=3)
    metadata = {"pretrained": str(demo.MODEL_DIR), "max_seq_lengths": [512]}
    reference = stock.evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=4),
        tasks=[name], limit=5, bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False, include_path=str(RULER_FILES), metadata=metadata),
    )  # fmt: skip
    samples = sorted(reference["samples"][name], key=lambda sample: sample["doc_id"])
    answers = pd.read_parquet(tmp_path / task_file("fp16", f"{name}@512"))
    assert list(answers["target"]) == [str(sample["target"]) for sample in samples], "the same needles"
    assert list(answers["text"]) == [sample["resps"][0][0] for sample in samples]
    assert (row.task, row.subject, row.metric, row.n) == (f"{name}@512", "", "512,none", 5)
    assert row.accuracy == reference["results"][name]["512,none"]


def test_each_length_is_a_row_of_its_own_scored_by_the_needles_found(loaded: LoadedModel, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"names": ("niah_single_1", "niah_multikey_2"), "context_lengths": (512, 1024)}
    rows = measure(Finder(loaded), tmp_path, num_fewshot=3, limit=60, **settings)
    assert [(row.task, row.n, row.num_fewshot) for row in rows] == [
        (unit, 60, 0)
        for unit in ("niah_single_1@512", "niah_single_1@1024", "niah_multikey_2@512", "niah_multikey_2@1024")
    ]
    for row in rows:
        name, tokens = needles.split(row.task)
        assert tokens is not None
        every = load(name, tokens, Source(demo.MODEL_DIR, 0)).test_docs()
        assert len(every) == needles.QUESTIONS
        made = every.select(range(60))
        prompts = [f"{one['input']} {one['gen_prefix']}" for one in made]
        late = [p.index(f"{one['outputs'][0]}.") > len(p) / 2 for one, p in zip(made, prompts, strict=True)]
        assert row.correct == sum(late)
        assert row.accuracy == row.correct / row.n
        assert 0 < row.correct < row.n
        assert tokens / 2 < max(one["length"] for one in every) <= tokens
    assert len({row.asked_sha256 for row in rows}) == 4
    (again,) = measure(Finder(loaded), tmp_path, names=("niah_multikey_2",), context_lengths=(1024,), limit=60)
    assert again.asked_sha256 == rows[3].asked_sha256, "whatever is measured before it"


def test_needle_tasks_are_those_of_the_harness() -> None:
    assert sorted(needles.NEEDLES) == sorted(path.stem for path in RULER_FILES.glob("niah_*.yaml"))
    assert needles.split("niah_single_1@4096") == ("niah_single_1", 4096)
    assert needles.split("arc_easy") == ("arc_easy", None)


def test_lengths_multiply_needle_tasks_alone() -> None:
    config = TasksConfig(names=("niah_single_1", "arc_easy"), context_lengths=(4096, 32768))
    assert config.units() == ("niah_single_1@4096", "niah_single_1@32768", "arc_easy")
    assert TasksConfig(names=("niah_single_1",)).units() == ("niah_single_1@4096",)
    assert config.used_libraries("arc_easy") == TasksConfig.libraries
    assert set(config.used_libraries("niah_single_1@4096")) == {*TasksConfig.libraries, "wonderwords", "nltk"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ("arc_easy",), "context_lengths": (4096,)}, "names has no needle task .*niah_single_1"),
        ({"names": ("niah_single_1",), "context_lengths": (4096, 4096)}, "a length is listed twice"),
        ({"names": ("niah_single_1",), "context_lengths": (128,)}, "greater than or equal to 256"),
        ({"names": ("niah_single_1",), "data": {"niah_single_1": "x"}}, "niah_single_1 makes its own prompts"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TasksConfig(**settings)


def test_what_cannot_be_made_is_refused_with_its_remedy(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_arguments: object, **_settings: object) -> NoReturn:
        raise ConnectionError("Couldn't reach 'baber/paul_graham_essays' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        QbenchError, match=r"niah_single_2: the essays .*Couldn't reach.*niah_single_1, niah_multikey_2"
    ):
        load("niah_single_2", 512, Source(demo.MODEL_DIR, 0))
    with pytest.raises(QbenchError, match=r"context_lengths: 256 for niah_multikey_3: .*no room for the prompt"):
        load("niah_multikey_3", 256, Source(demo.MODEL_DIR, 0))
    with pytest.raises(QbenchError, match="context_lengths: 8192 tokens, more than the model's context of 4096"):
        measure(TorchEngine(loaded), tmp_path, names=("niah_single_1",), context_lengths=(8192,))


def test_a_tokenizer_that_is_code_does_not_run_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo.MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(QbenchError, match=r"code of its own; set model\.trust_remote_code"):
        load("niah_single_1", 512, Source(folder, 0))
