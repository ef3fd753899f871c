"""Continuations against transformers' own `generate`, and their way into the run's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import GenerationsConfig, RunConfig, load
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError
from qbench.measure import generations
from qbench.measure.base import Context
from qbench.records.rows import GenerationRow, Row
from qbench.run.folder import RunFolder
from tests.support.runs import config, run
from tests.support.tiny_llama import options, save_tiny_llama

IDENTITY = {"run": "r", "model": "m", "backend": "fp16", "label": "fp16"}
PROMPTS = ("w4 w5 w6", "w7", "w8 nowhere w9")


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


def rows(loaded: LoadedModel, settings: GenerationsConfig, folder: Path) -> tuple[list[Row], list[tuple]]:
    emitted: list[Row] = []
    steps: list[tuple] = []
    context = Context(
        identity=IDENTITY, emit=emitted.append, progress=lambda *step: steps.append(step), seed=0, answers=folder
    )
    generations.measure(TorchEngine(loaded), settings, context)
    return emitted, steps


def test_every_prompt_is_continued_as_transformers_generate_does(loaded: LoadedModel, tmp_path: Path) -> None:
    found, steps = rows(loaded, GenerationsConfig(prompts=PROMPTS, new_tokens=9), tmp_path)
    assert len(found) == len(PROMPTS)
    for row, prompt in zip(found, PROMPTS, strict=True):
        assert isinstance(row, GenerationRow)
        ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = loaded.model.generate(ids, max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=0)[0]
        assert row.token_ids == tuple(expected[ids.shape[1] :].tolist())
        assert row.prompt == prompt
        assert row.label == "fp16"
        assert loaded.tokenizer.decode(expected) == loaded.tokenizer.decode(ids[0]) + row.text
    assert steps == [("generations", done, 3) for done in range(4)]


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    bare = fp16.load(options(save_tiny_llama(tmp_path, tokenizer=False), tmp_path), FP16(), None)
    with pytest.raises(QbenchError, match=r"measure\.generations: the model has no tokenizer"):
        rows(bare, GenerationsConfig(), tmp_path)


def test_the_space_before_a_continuation_is_kept() -> None:
    """Tokenizers of this kind drop the space that begins a text."""
    core = Tokenizer(models.WordLevel({"▁<unk>": 0, "▁one": 1, "▁two": 2, "▁three": 3}, unk_token="▁<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.decode([2, 3]) == "two three"
    assert generations.continuation(tokenizer, [1], [2, 3]) == " two three"


@given(st.text(max_size=30), st.data())
def test_prompt_and_continuation_make_the_text(text: str, data: st.DataObject) -> None:
    """Wherever a text is cut between tokens that are whole characters."""
    ids = TOKENIZER(text)["input_ids"]
    cut = data.draw(st.integers(0, len(ids)))
    found = generations.continuation(TOKENIZER, ids[:cut], ids[cut:])
    if "\N{REPLACEMENT CHARACTER}" not in TOKENIZER.decode(ids[:cut]):
        assert TOKENIZER.decode(ids[:cut]) + found == TOKENIZER.decode(ids)


TOKENIZER = AutoTokenizer.from_pretrained(demo.MODEL_DIR)


def test_defaults_are_five_prompts_and_smoke_has_five_of_its_own_world() -> None:
    assert len(set(GenerationsConfig().prompts)) == 5
    assert GenerationsConfig().new_tokens == 32
    smoke = load.load(Path(__file__).parents[1] / "configs" / "smoke.yaml").measure.generations
    assert smoke is not None
    assert len(set(smoke.prompts)) == 5
    known = demo.HELDOUT_TEXT.read_text() + demo.CALIBRATION_TEXT.read_text()
    for prompt in smoke.prompts:
        words = prompt.replace("?", " ").replace(":", " ").replace(",", " ").split()
        assert [word for word in words if word not in known] == []


@pytest.mark.parametrize("settings", [{"prompts": []}, {"prompts": [""]}, {"new_tokens": 0}, {"promts": ["a"]}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GenerationsConfig.model_validate(settings)


def test_random_weights_have_nothing_to_say() -> None:
    with pytest.raises(ValidationError, match=r"measure\.generations: a model with random weights has nothing to say"):
        RunConfig.model_validate(
            {
                "name": "r",
                "model": {"shape": "llama-3-8b", "weights": "random"},
                "backends": [{"kind": "fp16"}],
                "measure": {"generations": {}},
            }
        )


UNITS = {"fp16": {"cell": "k"}}
"""A run of one cell that has measured nothing."""


def test_a_run_writes_a_line_a_prompt_and_fresh_removes_them(tiny_llama: Path, tmp_path: Path) -> None:
    measures = {"generations": {"prompts": PROMPTS, "new_tokens": 4}}
    settings = config(tiny_llama, [{"kind": "fp16"}, {"kind": "int4"}], measure=measures)
    folder, ok, _ = run(settings, tmp_path)
    assert ok
    lines = [json.loads(line) for line in (folder / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["label"], line["prompt"]) for line in lines] == [(c, p) for c in ("fp16", "int4") for p in PROMPTS]
    assert list(lines[0]) == ["run", "model", "backend", "label", "host", "prompt", "text", "token_ids"]
    assert {len(line["token_ids"]) for line in lines} == {4}
    assert [GenerationRow.model_validate(line).text for line in lines] == [line["text"] for line in lines]
    written = RunFolder(folder, settings, {}, UNITS)
    written.make(fresh=True)
    assert not (folder / "generations.jsonl").exists()


def test_a_run_without_the_measure_has_no_such_file(tmp_path: Path, tiny_llama: Path) -> None:
    folder = RunFolder(tmp_path, config(tiny_llama, [{"kind": "fp16"}]), {}, UNITS)
    folder.make(fresh=False)
    folder.write_tables()
    assert not (tmp_path / "generations.jsonl").exists()


def test_lines_of_a_cell_that_is_measured_anew_do_not_stay(tmp_path: Path, tiny_llama: Path) -> None:
    folder = RunFolder(tmp_path, config(tiny_llama, [{"kind": "fp16"}]), {}, UNITS)
    folder.make(fresh=False)
    (tmp_path / "generations.jsonl").write_text("{}\n")
    folder.write_tables()
    assert (tmp_path / "generations.jsonl").read_text() == ""
