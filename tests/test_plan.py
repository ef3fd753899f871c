from pathlib import Path

import pytest

from qbench.config import PerplexityConfig
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.plan import cells
from qbench.plan.cells import Plan
from tests.support.runs import run_config

TWO = [{"kind": "fp16"}, {"kind": "int4"}]


@pytest.fixture(scope="module")
def laptop() -> environment.Environment:
    return environment.detect().model_copy(update={"gpus": ()})


def test_cells_keep_the_order_of_the_configuration() -> None:
    config = run_config(backends=TWO)
    assert [cell.label for cell in cells.select(config)] == ["fp16", "int4"]
    assert [cell.label for cell in cells.select(config, ["int4", "fp16"])] == ["fp16", "int4"]
    assert [cell.label for cell in cells.select(config, ["int4"])] == ["int4"]


def test_the_reference_runs_first_where_cells_are_compared_with_it() -> None:
    backends = [{"kind": "int4"}, {"kind": "fp16"}, {"kind": "nf4"}, {"kind": "fp16", "label": "again"}]
    compared = run_config(backends=backends, measure={"perplexity": {}})
    alone = run_config(backends=backends, measure={"perplexity": {"divergence": False}})
    firsts = {name: set[str]() for name in ("compared", "alone")}
    for seed in range(50):
        for name, settings in (("compared", compared), ("alone", alone)):
            settings = settings.model_copy(update={"seed": seed})
            firsts[name].add(cells.shuffle(settings, settings.backends)[0].label)
    assert firsts == {"compared": {"fp16"}, "alone": {"int4", "fp16", "nf4", "again"}}
    without = [cell for cell in compared.backends if cell.label != "fp16"]
    assert {cell.label for cell in cells.shuffle(compared, without)} == {"int4", "nf4", "again"}


def test_the_text_of_perplexity_is_resolved_by_the_model() -> None:
    measure = {"perplexity": {"window": 64}}
    resolved = cells.resolve(run_config(measure=measure)).measure.perplexity
    assert resolved == PerplexityConfig(text="demo", window=64)
    other = cells.resolve(run_config(model={"id": "a/b"}, measure=measure)).measure.perplexity
    assert other == PerplexityConfig(text="wikitext2", window=64)
    given = run_config(measure={"perplexity": {"text": "x.txt"}})
    assert cells.resolve(given) == given


def test_only_must_name_a_cell() -> None:
    with pytest.raises(QbenchError, match=r"--only int8: no such cell; did you mean int4\? \(there are: fp16, int4\)"):
        cells.select(run_config(backends=TWO), ["int8"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cuda"}, "no NVIDIA GPU is visible"),
        ({"measure": {"mmlu": {"data": "/nowhere"}}}, "measure.mmlu.data: no folder /nowhere"),
        ({"measure": {"throughput": {"decode": "graph"}}}, "measure.throughput.decode: graph needs a CUDA device"),
        ({"measure": {"sustained": {"decode": "graph"}}}, "measure.sustained.decode: graph needs a CUDA device"),
        ({"calibration": {"text": "/nowhere.txt"}}, "calibration.text: no file /nowhere.txt"),
        ({"measure": {"perplexity": {"text": "/nowhere.raw"}}}, "measure.perplexity.text: no file /nowhere.raw"),
        ({"backends": [{"kind": "fp16", "python": "/nowhere"}]}, "backends.fp16.python: no interpreter"),
        (
            {"model": {"shape": "llama-3-9b", "weights": "random"}},
            "unknown shape 'llama-3-9b'; did you mean llama-3-8b",
        ),
    ],
)
def test_what_cannot_work_is_refused_first(
    laptop: environment.Environment, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(QbenchError, match=words.replace("?", r"\?")):
        cells.preflight(run_config(**changes), laptop)


def test_needle_tasks_need_their_libraries_and_a_context_that_holds_them(laptop: environment.Environment) -> None:
    config = run_config(measure={"tasks": {"names": ["niah_single_1", "piqa"], "context_lengths": [512, 8192]}})
    bare = laptop.model_copy(update={"versions": {"nltk": "3.10"}})
    with pytest.raises(QbenchError, match=r"niah_single_1 needs wonderwords; pip install 'qbench-llm\[ruler\]'"):
        cells.preflight(config, bare)
    cells.preflight(run_config(measure={"tasks": {"names": ["piqa"]}}), bare)
    with pytest.raises(QbenchError, match="context_lengths: 8192 tokens, more than the model's context of 4096; ask"):
        cells.check_lengths(config)
    cells.check_lengths(run_config(measure={"tasks": {"names": ["niah_single_1"], "context_lengths": [4096]}}))


def test_what_can_work_is_not_refused(laptop: environment.Environment, tmp_path: Path) -> None:
    cells.preflight(run_config(measure={"mmlu": {"data": str(tmp_path)}}), laptop)
    gpu = environment.GPU(name="x", memory_bytes=1)
    cells.preflight(run_config(device="cuda:0"), laptop.model_copy(update={"gpus": (gpu,)}))


def test_the_description_names_cells_and_measures_with_their_settings() -> None:
    config = run_config(backends=TWO, measure={"throughput": {"seq_len": 64, "new_tokens": 8}})
    text = "\n".join(cells.describe(Plan(config, config.backends, environment.detect())))
    assert "cell int4: int4 (bits 4, group_size 128, " in text
    assert "seq_len 64" in text
    assert "mmlu" not in text
