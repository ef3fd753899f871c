"""Models and files that would give wrong figures: each ends in the right figure, or in a sentence and not with ok."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from rich.console import Console
from safetensors.torch import load_file, save_file

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.config import RunConfig
from qbench.decide.constraints import Limits
from qbench.decide.recommend import recommend
from qbench.engine.base import Query
from qbench.engine.torch.engine import TorchEngine
from qbench.measure.lm_eval.adapter import EngineLM
from qbench.measure.lm_eval.mmlu_data import read_questions
from qbench.show.tables import print_results
from qbench.show.view.data import collect
from tests.support.families import save
from tests.support.frames import Frames, read_frames
from tests.support.runs import run
from tests.support.tiny_llama import options

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
TIMED = {"batch_sizes": [1], "seq_len": 24, "new_tokens": 4, "warmup": 0, "trials": 1}
ASKED = {"data": "demo", "subjects": ["invented_birds"], "limit": 2}


def measured(folder: Path, model: Path, kinds: list[str], **settings: Any) -> Frames:
    measure = {"memory": {"seq_len": 16}, **settings.pop("measure", {})}
    config = {
        "name": "r", "model": {"path": str(model)}, "dtype": "float32", "backends": [{"kind": kind} for kind in kinds],
        "measure": measure, **settings,
    }  # fmt: skip
    return read_frames(run(RunConfig.model_validate(config), folder / "results")[0])


def changed(folder: Path, name: str, value: float) -> Path:
    """The demo model with all of a tensor set to `value`."""
    model = Path(shutil.copytree(demo.MODEL_DIR, folder / "model"))
    weights = load_file(model / "model.safetensors")
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_computes_no_numbers_is_an_error_whatever_is_measured(tmp_path: Path, value: float) -> None:
    model = changed(tmp_path, "model.norm.weight", value)
    found = measured(tmp_path, model, ["fp16"], measure={"throughput": TIMED, "generations": {"new_tokens": 2}})
    (cell,) = found.cells.to_dict("records")
    assert cell["status"] == "error"
    assert "logits are NaN or infinite" in cell["error"]
    assert "Try another dtype" in cell["error"]
    assert found.throughput.empty
    assert recommend([found.run], 1, "memory", Limits()).pick is None


def test_a_loss_that_no_number_holds_is_said_and_leaves_the_rest(tmp_path: Path) -> None:
    model = changed(tmp_path, "model.norm.weight", 1e6)
    found = measured(
        tmp_path,
        model,
        ["fp16"],
        measure={"throughput": TIMED, "perplexity": {"text": "demo", "window": 64, "limit": 1}},
    )
    (cell,) = found.cells.to_dict("records")
    assert cell["status"] == "ok"
    assert "nats a token, whose exponential no number holds" in cell["failed"]
    assert list(found.throughput["status"]) == ["ok"]


@pytest.mark.parametrize("kind", ["nf4", "int4"])
def test_experts_that_stay_in_16_bits_are_no_figure_of_the_backend(tmp_path: Path, kind: str) -> None:
    found = measured(tmp_path, save("gpt-oss", tmp_path / "model"), [kind], measure={"throughput": TIMED})
    (cell,) = found.cells.to_dict("records")
    assert cell["status"] == "error"
    assert cell["error"].startswith("89% of the weights in GptOssForCausalLM's blocks are not quantized")
    assert "mlp.experts.gate_up_proj" in cell["error"]
    # Experts have 3 x 4 x 3 x 64 x 128 weights in 32 bits, attention 3 x 3 x 64 x 64 in four and a bit.
    assert 27 < cell["effective_bits_per_weight"] < 30
    assert found.throughput.empty


def test_a_run_in_float32_is_not_called_fp16(tmp_path: Path) -> None:
    found = measured(tmp_path, demo.MODEL_DIR, ["fp16"], measure={"throughput": TIMED})
    from qbench.analysis.summary import summarize

    (cell,) = summarize(found.run).cells
    assert (cell.name, cell.row.bits, cell.bits_per_weight) == ("FP32", 32, 32)
    assert summarize(found.run).reference is not None


def test_an_output_embedding_in_8_bits_of_a_tied_model_answers(tmp_path: Path) -> None:
    backends = [{"kind": "int4", "lm_head": "int8"}]
    found = measured(tmp_path, demo.MODEL_DIR, [], backends=backends, measure={"mmlu": ASKED, "throughput": TIMED})
    (cell,) = found.cells.to_dict("records")
    assert (cell["status"], cell["lm_head_bits"]) == ("ok", 8), cell["failed"]
    assert list(found.accuracy["n"]) == [2]


def test_no_call_of_an_engine_changes_the_model(tmp_path: Path) -> None:
    """A checkpoint whose configuration says tied and whose file has an output embedding of its own, as some have."""
    model = Path(shutil.copytree(demo.MODEL_DIR, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].roll(1, 0).clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    loaded = fp16.load(options(model, tmp_path, torch.float32), FP16(label="fp16"), None)
    engine = TorchEngine(loaded)
    prompt = np.arange(2 * 8).reshape(2, 8)
    queries = [Query((1, 2, 3, 4), (5,)), Query((1, 2, 3, 4), (6, 7))]
    calls: dict[str, Callable[[], object]] = {
        "generate": lambda: engine.session(2, 12).generate(prompt, 4),
        "quantized cache": lambda: engine.session(2, 12, kv_cache="int8").generate(prompt, 4),
        "peak memory": lambda: engine.peak_memory(lambda: engine.session(2, 12, decode="eager").generate(prompt, 1)),
        "score": lambda: engine.score(np.arange(20), top_k=4),
        "shared": lambda: list(engine.loglikelihoods(queries, batch_size=2, share=True).batches),
        "plain": lambda: list(engine.loglikelihoods(queries, batch_size=2, share=False).batches),
        "lm-eval": lambda: EngineLM(engine, 2, share=True).loglikelihood(
            [Instance("loglikelihood", {}, ("Birds sing", " loudly"), 0)]
        ),
    }
    expected = loaded.model(torch.from_numpy(prompt)).logits
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    for name, call in calls.items():
        call()
        after = loaded.model.state_dict()
        assert after.keys() == before.keys(), name
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items()), name
        assert torch.equal(loaded.model(torch.from_numpy(prompt)).logits, expected), name


def test_a_tokenizer_of_another_model_is_named(tmp_path: Path) -> None:
    """Its tokens go beyond the embedding, which fails in the middle of a forward otherwise."""
    model = Path(shutil.copytree(demo.MODEL_DIR, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | {"vocab_size": 300}))
    found = measured(tmp_path, model, ["fp16"], measure={"mmlu": ASKED, "throughput": TIMED})
    (cell,) = found.cells.to_dict("records")
    assert re.search(r"mmlu: the tokenizer has a token \d+, and the model's embedding 300 rows", cell["failed"])
    assert list(found.throughput["status"]) == ["ok"]


def test_prompts_that_lose_examples_are_counted(tmp_path: Path) -> None:
    """Five examples do not fit into 96 tokens."""
    model = Path(shutil.copytree(demo.MODEL_DIR, tmp_path / "model"))
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(content | {"max_position_embeddings": 96}))
    found = measured(tmp_path, model, ["fp16"], measure={"mmlu": ASKED})
    assert list(found.accuracy["truncated"]) == [2]
    console = Console(file=io.StringIO(), width=200)
    print_results(console, found.run)
    line = "truncated (FP32): 2 of 2 questions lost examples to the model's context"
    assert line in console.file.getvalue()  # type: ignore[attr-defined]
    assert any(line in doubt for doubt in collect(found.run, allow_partial=True).doubts)
    whole = measured(tmp_path / "whole", demo.MODEL_DIR, ["fp16"], measure={"mmlu": ASKED})
    assert list(whole.accuracy["truncated"]) == [0]
    assert list(whole.accuracy["shared_prefixes"]) == [True]


@pytest.mark.parametrize("measure", ["memory", "throughput", "sustained"])
def test_lengths_beyond_the_context_are_refused_before_anything_is_loaded(tmp_path: Path, measure: str) -> None:
    config = {
        "name": "r",
        "model": {"demo": True},
        "backends": [{"kind": "fp16"}],
        "measure": {measure: {"seq_len": 99999}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(config))
    for command, status in (("plan", 0), ("run", 2)):  # a plan may be for another machine, and says it in a line
        done = qbench(tmp_path, command, "r.yaml")
        assert done.returncode == status
        said = " ".join((done.stdout + done.stderr).split())
        assert f"measure.{measure}.seq_len: 99999 tokens, more than the model's context of" in said
    assert not (tmp_path / "results").exists()


def test_a_mark_of_the_byte_order_is_no_part_of_a_question(tmp_path: Path) -> None:
    plain = 'What is it?,a,b,c,d,A\n"Quoted, with a comma",a,b,c,d,B\n'
    for name, text in (("plain", plain), ("quoted", '"Quoted, first",a,b,c,d,B\n')):
        path = tmp_path / f"{name}.csv"
        path.write_text(text, encoding="utf-8")
        expected = read_questions(path, "s")
        path.write_text(text, encoding="utf-8-sig")
        assert read_questions(path, "s") == expected


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize(
    "command",
    [
        ["plan", "configs/smoke.yaml"],
        ["recommend", "results/published/smoke-xeon-2core"],
        ["compare", "results/published/smoke-xeon-2core", "results/published/smoke-xeon-2core"],
        ["gate", "results/published/smoke-xeon-2core", "--baseline", "results/published/smoke-xeon-2core",
         "--max-drop", "1"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_output_of_another_encoding_ends_in_no_traceback(command: list[str], encoding: str) -> None:
    done = qbench(PUBLISHED.parents[1], *command, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout) > 40


def qbench(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qbench", *command], cwd=folder, env=os.environ | environment, capture_output=True,
        text=True, errors="replace", check=False,
    )  # fmt: skip
