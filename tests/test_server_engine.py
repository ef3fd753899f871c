"""`kind: server` with llama.cpp's own HTTP server, and with servers that do something wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AutoTokenizer

from qbench import demo
from qbench.backends import fp16, server
from qbench.engine.base import Capability, Query
from qbench.engine.server import logprobs
from qbench.engine.server.engine import ServerEngine
from qbench.engine.server.prompts import Prompts
from qbench.engine.torch.engine import TorchEngine
from qbench.errors import QbenchError
from qbench.model.load import LoadOptions
from tests.support.cli import qbench
from tests.support.fault_server import serving
from tests.support.frames import Frames, read_frames
from tests.support.runs import cells_here

COMMAND = ["python", "-m", "qbench.compat.xllamacpp", "{gguf}", "--port={port}", "--parallel=4", "--threads=1"]
KEY = "a-key-that-nobody-may-see"


def options(work: Path) -> LoadOptions:
    return LoadOptions(folder=demo.MODEL_DIR, device=torch.device("cpu"), dtype=torch.float32, work=work)


def config(**settings: Any) -> server.Server:
    return server.CONFIG.model_validate({"kind": "server", **settings})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerEngine]:
    """llama.cpp's server with the demo model in 16 bit."""
    work = tmp_path_factory.mktemp("server")
    engine = server.load(options(work), config(command=[*COMMAND, "--context=256"], gguf="F16"), None)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    return TorchEngine(fp16.load(options(tmp_path_factory.mktemp("fp16")), fp16.CONFIG(), None))


def test_it_says_what_it_can_and_nothing_that_it_cannot_know(engine: ServerEngine) -> None:
    about = engine.about
    assert about.kernel.startswith("llama.cpp ")
    assert about.kernel.endswith("model.gguf F16")
    assert (about.weight_bytes, about.dtype, about.effective_bits_per_weight, about.lm_head_bits) == (None,) * 4
    assert (about.vocab_size, about.max_position_embeddings) == (4096, 256)  # a slot's context
    beyond = {Capability.SCORE, Capability.KV_CACHE, Capability.DEPTH, Capability.STREAM}
    assert engine.can == frozenset(Capability) - beyond
    with pytest.raises(QbenchError, match="decode: graph is a mode of the torch engine"):
        engine.decode_mode("graph")


def test_completions_are_those_of_torch_and_end_where_they_do(engine: ServerEngine, reference: TorchEngine) -> None:
    texts = ("In Jundol, the highest mountain is", "What is mined in Osrel?\nAnswer:", "Travelers to Gorhap learn that")
    prompts = [tuple(reference.encode(text)) for text in texts]

    def stop(tokens: Sequence[int]) -> bool:
        return any(end in reference.decode(tokens) for end in (".", "\n"))

    found, expected = (each.complete(prompts, 12, stop) for each in (engine, reference))
    assert [engine.decode(tokens) for tokens in found] == [reference.decode(tokens) for tokens in expected]
    assert any(stop(tokens) for tokens in found)
    assert len({len(tokens) for tokens in found}) > 1


def test_log_likelihoods_are_those_of_torch_on_the_same_weights(engine: ServerEngine, reference: TorchEngine) -> None:
    """16-bit keys and values in llama.cpp's cache are the difference that is left."""
    stem = tuple(reference.encode("Question: Which language do people speak in Borland?\nAnswer:"))
    long = tuple(reference.encode(" It is the language of the mountains.", special=False))
    rare = [Query(stem, (token,)) for token in (17, 300, 2000, 4095)]
    queries = [*rare, Query(stem, long), Query(stem[:4], stem[4:9])]
    found, expected = {}, {}
    for answers in engine.loglikelihoods(queries, batch_size=4, share=True).batches:
        found |= answers
    for answers in reference.loglikelihoods(queries, batch_size=4, share=False).batches:
        expected |= answers
    for query in queries:
        assert found[query][0] == pytest.approx(expected[query][0], abs=0.03 * len(query.answer))
        assert found[query][1] == expected[query][1]


def test_generations_are_those_of_torch_and_as_long_as_asked(engine: ServerEngine, reference: TorchEngine) -> None:
    prompt = np.array([reference.encode("The capital of")])
    found = engine.session(1, 64).generate(prompt, 12)
    expected = reference.session(1, 64).generate(prompt, 12)
    assert found.texts == (reference.decode(expected.tokens[0].tolist()),)
    assert len(found.step_s) == len(found.itl_s or ()) == 11
    assert found.ttft_s > 0


def test_requests_are_counted_at_every_batch_size(engine: ServerEngine) -> None:
    prompts = np.random.default_rng(0).integers(4096, size=(6, 40))
    session = engine.session(6, 48)  # six at a time, four of them at once
    for _ in range(2):  # the second time from the same prompts, which nothing may have kept
        found = session.generate(prompts, 8)
        assert len(found.step_s) == 7
        assert len(found.itl_s or ()) == 6 * 7
        assert all(seconds >= 0 for seconds in found.step_s)
    with pytest.raises(QbenchError, match="answered 400"):
        session.generate(np.random.default_rng(0).integers(4096, size=(1, 300)), 8)


def test_peak_memory_is_that_of_the_server_and_not_ours(engine: ServerEngine) -> None:
    prompts = np.random.default_rng(1).integers(4096, size=(2, 40))
    [peak] = engine.peak_memory(lambda: engine.session(2, 48).generate(prompts, 8))
    [process] = engine._processes()
    assert process.pid != os.getpid()
    assert 8 << 20 < process.memory_info().rss <= peak < 1 << 30


def test_a_prompt_in_words_has_as_many_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL_DIR)
    prompts = Prompts(tokenizer, 4096, as_ids=False, added=1)
    for tokens in (2, 33, 400):
        ids = np.random.default_rng(tokens).integers(4096, size=tokens).tolist()
        first, second = prompts(ids), prompts(ids)
        assert isinstance(first, str)
        assert first != second
        assert prompts.count(first) == prompts.count(str(second)) == tokens - 1
    ids = tokenizer("The capital of")["input_ids"]
    assert Prompts(tokenizer, 4096, as_ids=False)(ids) == "The capital of"


def test_a_prompt_that_comes_again_begins_otherwise() -> None:
    prompts = Prompts(None, 10)
    assert [prompts([9, 5, 6]) for _ in range(3)] == [[9, 5, 6], [0, 5, 6], [1, 5, 6]]


def test_vllms_prompt_logprobs_are_summed_over_the_answer() -> None:
    """The form of vLLM's answer, written down by hand."""

    async def post(fields: Any) -> dict[str, Any]:
        assert (fields["prompt"], fields["prompt_logprobs"]) == ([5, 6, 7, 8], 0)
        tokens = [None, {"6": {"logprob": -9.0, "rank": 3}}, {"7": {"logprob": -0.5, "rank": 1}},
                  {"8": {"logprob": -2.0, "rank": 2}}]  # fmt: skip
        return {"choices": [{"text": "x", "prompt_logprobs": tokens}]}

    assert asyncio.run(logprobs.by_prompt(post, [Query((5, 6), (7, 8))], 10)) == [(-2.5, False)]
    assert asyncio.run(logprobs.by_prompt(post, [Query((5, 6, 7), (8,))], 10)) == [(-2.0, False)]


def test_a_server_that_takes_text_only_gets_text(tmp_path: Path) -> None:
    with serving("text_only") as other:
        tokenizer = AutoTokenizer.from_pretrained(demo.MODEL_DIR)
        other.count = lambda text: 1 + len(tokenizer(text, add_special_tokens=False)["input_ids"])
        engine = server.load(options(tmp_path), config(url=other.url), None)
        engine.session(2, 48).generate(np.random.default_rng(0).integers(4096, size=(2, 40)), 8)
        engine.close()
        assert [type(request["prompt"]) for request in other.seen[-2:]] == [str, str]
    assert Capability.LOGLIKELIHOODS not in engine.can
    assert Capability.PEAK_MEMORY in engine.can  # by the process that listens: this one


@pytest.mark.parametrize(
    ("fault", "settings", "words"),
    [
        ("none", {"model": "other"}, r"backends.server.model: other is not served \(there is: m\)"),
        ("unauthorized", {}, r"refuses requests without a key \(401\); name the variable .* `api_key_env:`"),
        ("unauthorized", {"api_key_env": "MINE"}, r"refuses the key in MINE \(401\); check it"),
        ("no_stream", {}, "does not stream"),
        ("early", {}, "stopped after 4 of 8 tokens"),
        ("wrong_usage", {}, "generated 56 tokens: 8 were asked for"),
        ("hang", {"request_timeout_s": 0.3}, "no answer within 0.3 s"),
    ],
)
def test_a_server_that_cannot_be_measured_is_refused_when_it_is_loaded(
    fault: str, settings: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", KEY)
    with serving(fault) as other, pytest.raises(QbenchError, match=words) as error:
        server.load(options(tmp_path), config(url=other.url, **settings), None)
    assert KEY not in str(error.value)


def test_a_model_of_another_vocabulary_is_another_model(engine: ServerEngine, tiny_llama: Path, tmp_path: Path) -> None:
    other = LoadOptions(folder=tiny_llama, device=torch.device("cpu"), dtype=torch.float32, work=tmp_path)
    with pytest.raises(QbenchError, match=r"has 4096 tokens, and the run's model .*: another model is behind it"):
        server.load(other, config(url=engine.endpoint.url), None)


def test_a_url_that_does_not_answer_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match=r"backends.server: http://127.0.0.1:9 does not answer"):
        server.load(options(tmp_path), config(url="http://127.0.0.1:9"), None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of url and command (found neither)"),
        ({"url": "http://h", "command": ["x", "{port}"]}, "exactly one of url and command (found both)"),
        ({"command": ["vllm", "serve"]}, "has no {port}"),
        ({"command": ["x", "{port}", "{gguf}"]}, "say which with `gguf:`"),
        ({"url": "http://me:pass@h"}, "holds a password"),
        ({"url": "localhost:8000"}, "is no address"),
        ({"url": "http://h", "api_key_env": "sk-12345678"}, "is no name of an environment variable"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**settings)
    assert words in error.value.errors()[0]["msg"]


RUN = {
    "name": "r",
    "model": {"demo": True},
    "dtype": "float32",
    "threads": 1,
    "backends": [
        {"kind": "server", "label": "real", "gguf": "Q8_0", "command": [*COMMAND, "--context=700"]},
        {"kind": "server", "label": "ends", "command": ["python", "-c", "import sys; sys.exit('no {port}')"]},
    ],
    "measure": {
        "memory": {"seq_len": 64},
        "throughput": {
            "batch_sizes": [1, 3], "seq_len": 24, "new_tokens": 8, "warmup": 0, "trials": 1, "kv_cache": "16bit",
        },
        "mmlu": {"data": "demo", "limit": 1, "num_fewshot": 1, "batch_size": 4},
        "perplexity": {"text": "demo", "window": 128, "limit": 2, "divergence": False},
        "generations": {"prompts": ["The capital of"], "new_tokens": 8},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """A run of a server that works, of one that ends at once, and of one that refuses the key."""
    folder = tmp_path_factory.mktemp("server-run")
    with serving("unauthorized") as other:
        keyed = {"kind": "server", "label": "keyed", "url": other.url, "api_key_env": "MINE"}
        (folder / "r.yaml").write_text(yaml.safe_dump(RUN | {"backends": [*RUN["backends"], keyed]}))  # type: ignore[misc]
        # The key goes to a worker, as it would; the other cells are measured in this process.
        done = subprocess.run(
            [sys.executable, "-m", "qbench", "run", "r.yaml", "--only", "keyed"],
            cwd=folder, env=os.environ | {"MINE": KEY}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    with cells_here() as patch:
        patch.setenv("MINE", KEY)
        others = qbench("run", "r.yaml", "--only", "real", "--only", "ends", cwd=folder)
    (folder / "output").write_text(done.stdout + done.stderr)
    assert (done.returncode, others.returncode) == (1, 1), done.stdout + done.stderr + others.stdout + others.stderr
    return read_frames(folder / "results" / "r")


def cell(run: Frames, label: str) -> pd.Series[Any]:
    return run.cells.set_index("label").loc[label]


def test_a_run_measures_a_server_like_any_cell(run: Frames) -> None:
    row = cell(run, "real")
    assert (row["status"], row["bits"]) == ("ok", 8)
    assert row[["weight_bytes", "dtype", "threads", "effective_bits_per_weight", "peak_rss_bytes"]].isna().all()
    assert row["unsupported"] == "perplexity: the engine cannot do what it needs: score"
    assert 8 << 20 < row["peak_memory_bytes"] < 1 << 30
    trials = run.throughput[run.throughput["label"] == "real"]
    assert trials["decode_mode"].tolist() == ["server", "server"]
    assert (trials[["decode_tokens_per_s", "ttft_s", "itl_p50_s", "peak_memory_bytes"]] > 0).all().all()
    assert len(run.accuracy[run.accuracy["label"] == "real"]) == 12
    lines = (run.folder / "generations.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["text"].strip()
    assert "server: " in (run.folder / "logs" / "real.log").read_text()


def test_a_run_says_why_a_server_could_not_be_measured(run: Frames) -> None:
    assert "ended by itself with status 1; its last lines: no " in cell(run, "ends")["error"]
    assert "refuses the key in MINE (401)" in cell(run, "keyed")["error"]


def test_the_key_is_in_no_file_of_a_run(run: Frames) -> None:
    files = [path for path in run.folder.parents[1].rglob("*") if path.is_file()]
    assert any(path.name == "cells.csv" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_nothing_is_left_running_after_ctrl_c(tmp_path: Path) -> None:
    hangs = {"kind": "server", "label": "hangs", "command": ["python", "-c", "import time; time.sleep(600)", "{port}"]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RUN | {"backends": [hangs]}))
    runner = psutil.Popen(
        [sys.executable, "-m", "qbench", "run", "r.yaml"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(started := runner.children(recursive=True)) < 3:  # worker, guard, server
        assert runner.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    runner.send_signal(signal.SIGINT)
    runner.wait(30)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
