"""An engine without torch, as another distribution brings it, takes the measures with torch's figures."""

import numpy as np
import pandas as pd
import pytest
import yaml

from qbench import demo
from qbench.engine.base import IN_PROCESS, Capability, Query
from qbench.records.answers import task_file
from tests.support.cli import qbench
from tests.support.frames import Frames, read_frames
from tests.support.numpy_engine import NumpyEngine
from tests.support.plugin import install_example, installed
from tests.support.runs import cells_here

SETTINGS = {
    "name": "r",
    "model": {"demo": True},
    "dtype": "float32",
    "backends": [{"kind": "fp16"}, {"kind": "numpy"}],
    "measure": {
        "memory": {"seq_len": 64},
        "throughput": {
            "batch_sizes": [1, 3], "seq_len": 24, "new_tokens": 8, "warmup": 0, "trials": 1, "kv_cache": "16bit",
        },
        "perplexity": {"text": "demo", "window": 128, "limit": 6},
        "mmlu": {"data": "demo", "limit": 2, "num_fewshot": 1},
        "tasks": {"names": ["demo_qa"], "limit": 5},
        "generations": {"prompts": ["The capital of", "Who"], "new_tokens": 12},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    folder = tmp_path_factory.mktemp("numpy")
    (folder / "r.yaml").write_text(yaml.safe_dump(SETTINGS))
    with cells_here(), installed(install_example(folder / "site", "numpy_engine")):
        done = qbench("run", "r.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_frames(folder / "results" / "r")


def test_perplexity_is_that_of_torch_and_nothing_diverges(run: Frames) -> None:
    rows = run.perplexity.set_index("label")
    assert rows.loc["numpy", "perplexity"] == pytest.approx(rows.loc["fp16", "perplexity"], rel=1e-5)
    assert abs(rows.loc["numpy", "kl_mean"]) < 1e-6
    assert rows.loc["numpy", "top1_agreement"] > 0.999


def test_answers_are_generated_as_by_torch(run: Frames) -> None:
    """One prompt after the other, to the limit, and cut: torch continues them side by side."""
    torch, numpy = (
        pd.read_parquet(run.folder / "answers" / task_file(label, "demo_qa")) for label in ("fp16", "numpy")
    )
    assert list(numpy["text"]) == list(torch["text"])
    assert numpy["score"].all()


def test_questions_are_answered_as_by_torch(run: Frames) -> None:
    torch, numpy = (pd.read_parquet(run.folder / "answers" / f"{label}.parquet") for label in ("fp16", "numpy"))
    columns = [f"logprob_{letter}" for letter in "abcd"]
    np.testing.assert_allclose(numpy[columns], torch[columns], atol=1e-4)
    assert list(numpy["predicted"]) == list(torch["predicted"])


def test_generations_are_those_of_torch(run: Frames) -> None:
    lines = pd.read_json(run.folder / "generations.jsonl", lines=True)
    torch, numpy = (list(lines[lines["label"] == label]["token_ids"]) for label in ("fp16", "numpy"))
    assert numpy == torch


def test_memory_and_speed_are_rows_like_any_other(run: Frames) -> None:
    cell = run.cells.set_index("label").loc["numpy"]
    # 4,196,608 weights of 4 bytes, and at least the cache of 64 tokens: 2 x 4 layers x 2 heads x 64 x 4 bytes x 64.
    assert cell["weight_bytes"] == 4_196_608 * 4
    assert cell["peak_memory_bytes"] > cell["weight_bytes"] + 262_144
    assert (cell["status"], cell["dtype"], cell["decode_mode"]) == ("ok", "float32", "eager")
    assert cell["kernel"] == f"numpy {np.__version__}"
    trials = run.throughput[run.throughput["label"] == "numpy"]
    assert list(trials["batch_size"]) == [1, 3]
    assert (trials["decode_tokens_per_s"] > 0).all()


def test_a_batch_and_a_cache_change_no_token() -> None:
    """Greedy decoding over the cache against reading everything again for each token."""
    engine = NumpyEngine(demo.MODEL_DIR)
    prompts = np.random.default_rng(0).integers(engine.about.vocab_size, size=(3, 9))
    found = engine.session(3, 14).generate(prompts, 5)
    filled = engine.session(3, 14).generate(prompts[:, 4:], 5, after=prompts[:, :4])
    assert filled.tokens.tolist() == found.tokens.tolist()
    for prompt, tokens in zip(prompts, found.tokens, strict=True):
        read = list(prompt)
        for token in tokens:
            assert engine.session(1, 20).generate(np.array([read]), 1).tokens[0, 0] == token
            read.append(token)
    assert len(found.step_s) == 4


def test_what_an_engine_cannot_do_it_says() -> None:
    engine = NumpyEngine(demo.MODEL_DIR)
    assert IN_PROCESS - engine.can == {Capability.KV_CACHE, Capability.STREAM}


def test_the_log_likelihood_of_an_answer_is_the_sum_over_its_tokens() -> None:
    engine = NumpyEngine(demo.MODEL_DIR)
    window = np.array([5, 99, 1234, 17, 3])
    whole = engine.score(window).truth
    asked = [Query((5, 99), (1234, 17, 3)), Query((5, 99, 1234), (17,))]
    found = {q: a for batch in engine.loglikelihoods(asked, batch_size=2, share=True).batches for q, a in batch.items()}
    assert found[asked[0]][0] == pytest.approx(whole[1:].sum(), abs=1e-5)
    assert found[asked[1]][0] == pytest.approx(whole[2], abs=1e-5)
