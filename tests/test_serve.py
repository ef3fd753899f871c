"""`qbench serve`: answers against stock transformers, requests that share a batch, what goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from qbench import demo
from qbench.config import RunConfig
from qbench.engine.base import Floats
from qbench.engine.torch.stepper import RowStepper, SerialStepper
from qbench.errors import NotFiniteError, QbenchError
from qbench.plan.cells import make_plan
from qbench.run.local import LocalExecutor
from qbench.serve import batching, cells, server
from qbench.serve.api import create_app
from qbench.serve.batching import Batch, Loop
from qbench.serve.model import Model
from qbench.serve.sampling import Sampler, probabilities
from qbench.serve.served import Request, Sampling
from qbench.serve.text import Detokenizer, Stops
from tests.support.watchers import Watcher

CONFIG = {
    "name": "served",
    "model": {"demo": True},
    "dtype": "float32",
    "device": "cpu",
    "backends": [{"kind": "fp16"}, {"kind": "int4"}],
    "measure": {"memory": {"seq_len": 64}},
}
PROMPTS = (
    "In Jundol, the highest mountain is",
    "Travelers to Gorhap learn that people speak",
    "Of Naruth they say",
    "What is mined in Osrel?\nAnswer:",
    "Once",
    "The river of Rostun is long and those who live there",
)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, cells.Loaded]]:
    """Two cells of the demo model, three requests at once each."""
    plan = make_plan(RunConfig.model_validate(CONFIG), LocalExecutor().prepare)
    found = cells.load(plan, Watcher(), tmp_path_factory.mktemp("work"), sequences=3, context=512)
    loop = Loop([one.queue for one in found.values()])
    yield found
    loop.stop()


@contextmanager
def served(models: dict[str, Model], token: str | None = None) -> Iterator[str]:
    """A real server of its own thread; its address."""
    with server.bind("127.0.0.1", 0) as bound:
        bound.listen()
        config = uvicorn.Config(create_app(models, token=token), log_level="warning", lifespan="off")
        one = uvicorn.Server(config)
        thread = threading.Thread(target=one.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield server.url(bound)
        finally:
            one.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def client(loaded: dict[str, cells.Loaded]) -> Iterator[httpx.Client]:
    with served({label: one.model for label, one in loaded.items()}) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def stock() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.MODEL_DIR)


def complete(client: httpx.Client, prompt: Any, **options: Any) -> dict[str, Any]:
    body = {"model": "fp16", "prompt": prompt, "temperature": 0, "return_token_ids": True} | options
    answer = client.post("/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chunks(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body | {"stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def generated(model: Any, ids: list[int], new_tokens: int) -> list[int]:
    """What transformers alone says."""
    with torch.inference_mode():
        found = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=new_tokens)
    rest: list[int] = found[0, len(ids) :].tolist()
    return rest


def test_requests_that_share_a_batch_get_what_transformers_generates_for_them_alone(
    client: httpx.Client, stock: Any, tokenizer: Any
) -> None:
    lengths = (40, 5, 23, 31, 60, 12)
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        found = list(
            pool.map(lambda pair: complete(client, pair[0], max_tokens=pair[1]), zip(PROMPTS, lengths, strict=True))
        )
    for prompt, length, answer in zip(PROMPTS, lengths, found, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        expected = generated(stock, ids, length)
        [choice] = answer["choices"]
        assert choice["token_ids"] == expected
        assert choice["text"] == tokenizer.decode(expected, skip_special_tokens=True)
        ended = expected[-1] == tokenizer.eos_token_id
        assert choice["finish_reason"] == ("stop" if ended else "length")
        assert answer["usage"] == {
            "prompt_tokens": len(ids),
            "completion_tokens": len(expected),
            "total_tokens": len(ids) + len(expected),
        }


def test_several_prompts_of_one_request_keep_their_order(client: httpx.Client, tokenizer: Any) -> None:
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:3]]
    together = complete(client, ids, max_tokens=8, model="int4")
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2]
    for own, choice in zip(ids, together["choices"], strict=True):
        alone = complete(client, own, max_tokens=8, model="int4")
        assert alone["choices"][0]["token_ids"] == choice["token_ids"]


def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client) -> None:
    options = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_tokens": 30, "ignore_eos": True, "logprobs": 2}
    whole = complete(client, PROMPTS[0], **options)
    again = complete(client, PROMPTS[0], **options)
    assert again["choices"] == whole["choices"]
    body = {"model": "fp16", "prompt": PROMPTS[0], "return_token_ids": True, **options}
    *pieces, last = chunks(client, "/completions", body | {"stream_options": {"include_usage": True}})
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert last["usage"]["completion_tokens"] == 30
    choices = [piece["choices"][0] for piece in pieces]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [token for choice in choices for token in choice["token_ids"]] == whole["choices"][0]["token_ids"]
    for name, values in whole["choices"][0]["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][name]] == values
    assert [choice["finish_reason"] for choice in choices] == [None] * 29 + ["length"]


def test_logprobs_of_a_prompt_are_those_of_float64(client: httpx.Client, stock: Any, tokenizer: Any) -> None:
    ids = tokenizer(PROMPTS[5])["input_ids"]
    answer = complete(client, ids, max_tokens=0, echo=True, logprobs=3, return_tokens_as_token_ids=True)
    found = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"] == tokenizer.decode(ids)
    assert found["tokens"] == [f"token_id:{token}" for token in ids]
    assert answer["usage"]["completion_tokens"] == 0
    double = AutoModelForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float64)
    with torch.inference_mode():
        expected = double(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    truth = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(truth.tolist(), abs=1e-4)
    for place, row in enumerate(expected):
        top = row.topk(3)
        given = found["top_logprobs"][place + 1]
        values = [given[f"token_id:{token}"] for token in top.indices.tolist()]
        assert values == pytest.approx(top.values.tolist(), abs=1e-4)
    answer = complete(client, ids, max_tokens=1, prompt_logprobs=0)
    first, *told = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    assert [one[str(token)]["logprob"] for one, token in zip(told, ids[1:], strict=True)] == pytest.approx(
        truth.tolist(), abs=1e-4
    )
    best = expected.argmax(-1).tolist()
    assert [one[str(token)]["rank"] == 1 for one, token in zip(told, ids[1:], strict=True)] == [
        token == likely for token, likely in zip(ids[1:], best, strict=True)
    ]


def test_a_stop_string_ends_an_answer_before_it(client: httpx.Client) -> None:
    text = complete(client, PROMPTS[0], max_tokens=40, ignore_eos=True)["choices"][0]["text"]
    stop = text[20:26]  # over the borders of tokens
    answer = complete(client, PROMPTS[0], max_tokens=40, ignore_eos=True, stop=["never said", stop])
    assert answer["choices"][0]["text"] == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 40
    body = {"model": "fp16", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 40, "ignore_eos": True, "stop": stop}
    streamed = chunks(client, "/completions", body)
    assert "".join(one["choices"][0]["text"] for one in streamed) == text[: text.index(stop)]


def test_a_chat_is_the_completion_of_what_its_template_makes(loaded: dict[str, cells.Loaded], tokenizer: Any) -> None:
    of = loaded["fp16"].model
    own = AutoTokenizer.from_pretrained(demo.MODEL_DIR, chat_template=TEMPLATE)
    model = Model(of._engine, of._queue, own, of.context, of.facts)
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    with served({"talks": model}) as url, httpx.Client(base_url=url) as client:
        body = {"model": "talks", "messages": messages, "temperature": 0, "max_tokens": 12}
        answer = client.post("/chat/completions", json=body).json()
        prompt = tokenizer("<system>Be short.<user>Hi<assistant>", add_special_tokens=False)["input_ids"]
        expected = complete(client, prompt, model="talks", max_tokens=12)
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected["choices"][0]["text"]}
        assert answer["usage"] == expected["usage"]
        streamed = chunks(client, "/chat/completions", body)
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(one["choices"][0]["delta"]["content"] for one in streamed) == expected["choices"][0]["text"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("completions", {"prompt": "a " * 600}, 400, "the context has 512 tokens"),
        ("completions", {"prompt": "a", "max_tokens": 512}, 400, "the context has 512 tokens"),
        ("completions", {"prompt": [4096]}, 400, "token 4096"),
        ("completions", {"prompt": []}, 400, "prompt: give a text"),
        ("completions", {"prompt": [True]}, 400, "prompt: give a text"),
        ("completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
        ("completions", {"prompt": "a", "min_p": 0.5}, 400, "min_p: not supported"),
        ("completions", {"prompt": "a", "n": 2}, 400, "n: not supported"),
        ("completions", {"prompt": "a", "model": "other"}, 404, "served are: fp16, int4"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}, 400, "no chat template"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("completions", {"prompt": "a" * 10_000_000}, 413, "too large"),
        ("nothing", {}, 404, "/v1/completions"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post(f"/{path}", json={"model": "fp16"} | body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_models_are_listed_with_what_is_known_of_them(client: httpx.Client) -> None:
    listed = client.get("/models").json()["data"]
    assert [one["id"] for one in listed] == ["fp16", "int4"]
    assert listed[0]["max_model_len"] == 512
    assert listed[1]["qbench"]["weight_bytes"] < listed[0]["qbench"]["weight_bytes"]


def test_a_token_is_asked_for_and_not_repeated(loaded: dict[str, cells.Loaded]) -> None:
    async def ask(path: str, **headers: str) -> httpx.Response:
        app = create_app({"fp16": loaded["fp16"].model}, token="hush")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(path, headers=headers)

    assert asyncio.run(ask("/v1/models", authorization="Bearer hush")).status_code == 200
    for headers in ({}, {"authorization": "Bearer hus"}):
        refused = asyncio.run(ask("/v1/models", **headers))
        assert refused.status_code == 401
        assert "hush" not in refused.text
    assert asyncio.run(ask("/health")).status_code == 200


def test_a_server_without_a_token_does_not_answer_under_other_names(client: httpx.Client) -> None:
    assert client.get("/models", headers={"host": "elsewhere.example"}).status_code == 400


def test_addresses_are_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QbenchError, match="--token-env"):
        server.read_token("0.0.0.0", None)
    monkeypatch.setenv("SERVE_TOKEN", "")
    with pytest.raises(QbenchError, match="SERVE_TOKEN"):
        server.read_token("0.0.0.0", "SERVE_TOKEN")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(QbenchError, match="is in use"):
            server.bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(
    client: httpx.Client, loaded: dict[str, cells.Loaded], stream: bool
) -> None:
    queue = loaded["fp16"].queue
    assert isinstance(queue, Batch)
    body = {"model": "fp16", "prompt": [5, 6, 7], "max_tokens": 500, "ignore_eos": True, "stream": stream}
    leaves = nullcontext() if stream else pytest.raises(httpx.ReadTimeout)
    patience = httpx.Timeout(60, read=60 if stream else 0.3)
    with (
        httpx.Client(base_url=client.base_url, timeout=patience) as own,
        leaves,
        own.stream("POST", "/completions", json=body) as answer,
    ):
        next(answer.iter_lines())
        assert queue.running == 1
    deadline = time.monotonic() + 20
    while queue.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert queue.running == 0


class Faulty:
    """A stepper of three words whose sequence 1 computes NaN in its second step."""

    def __init__(self) -> None:
        self.steps = 0
        self.inside: set[int] = set()

    def join(self, prompt: tuple[int, ...]) -> tuple[int, Floats]:
        if prompt == (9,):
            raise RuntimeError("no memory for this one")
        self.inside.add(len(self.inside))
        return len(self.inside) - 1, np.array([0, 1, 0], np.float32)

    def step(self, tokens: dict[int, int]) -> Floats:
        self.steps += 1
        logits = np.tile(np.array([0, 1, 0], np.float32), (len(tokens), 1))
        if self.steps == 2:
            logits[list(tokens).index(1)] = np.nan
        return logits

    def leave(self, sequence: int) -> None:
        self.inside.remove(sequence)

    def close(self) -> None: ...


def test_what_goes_wrong_in_one_request_ends_that_one_alone() -> None:
    batch, said = Batch(Faulty(), 3, ends=[0]), {}
    for prompt in ((1,), (2,), (9,)):
        said[prompt] = []
        request = Request(prompt=prompt, max_tokens=5, sampling=Sampling(temperature=0))
        batch.submit(batching.Ticket(request, said[prompt].append, Sampler(request.sampling)))
    while batch.advance():
        pass
    assert [token.id for token in said[1,]] == [1] * 5
    assert isinstance(said[2,][-1], NotFiniteError)
    assert isinstance(said[9,][-1], RuntimeError)
    assert batch.running == 0


@pytest.mark.parametrize("stepper", ["rows", "serial"])
def test_sequences_come_and_go_without_changing_the_others(stock: Any, stepper: str) -> None:
    prompts = [tuple(range(5, 5 + length)) for length in (300, 2, 40, 7)]
    made = RowStepper(stock, 3, 400) if stepper == "rows" else SerialStepper(stock)
    found: dict[int, list[int]] = {}

    def join(prompt: tuple[int, ...]) -> int:
        sequence, logits = made.join(prompt)
        found[prompt[-1]] = [int(logits.argmax())]
        return sequence

    running = {join(prompt): prompt[-1] for prompt in prompts[:3]}
    for step in range(12):
        logits = made.step({sequence: found[name][-1] for sequence, name in running.items()})
        for name, row in zip(running.values(), logits, strict=True):
            found[name].append(int(row.argmax()))
        if step == 4:
            gone = next(iter(running))
            made.leave(gone)
            del running[gone]
            running[join(prompts[3])] = prompts[3][-1]
    stock.generation_config.eos_token_id = None
    try:
        for prompt in prompts:
            mine = found[prompt[-1]]
            assert mine == generated(stock, list(prompt), len(mine))
    finally:
        stock.generation_config.eos_token_id = 0


def test_models_with_sliding_windows_are_stepped_as_they_generate() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.3, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    made = SerialStepper(model)
    prompts = [(5, 6, 7), tuple(range(20, 40))]
    found: list[list[int]] = []
    for prompt in prompts:
        found.append([int(made.join(prompt)[1].argmax())])
    for _ in range(15):
        for own, row in zip(found, made.step({0: found[0][-1], 1: found[1][-1]}), strict=True):
            own.append(int(row.argmax()))
    assert found == [generated(model, list(prompt), 16) for prompt in prompts]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 0.8), (2.0, 12, 0.5)])
def test_tokens_are_drawn_from_the_distribution_that_transformers_has(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)
    scores = torch.from_numpy(logits)[None].double()
    scores = TopKLogitsWarper(top_k or 50)(None, TemperatureLogitsWarper(temperature)(None, scores))
    scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores.softmax(-1)[0].numpy()
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=3)
    assert probabilities(logits, sampling) == pytest.approx(expected, abs=1e-12)
    sampler = Sampler(sampling)
    drawn = np.bincount([sampler(logits) for _ in range(5000)], minlength=50)
    kept = expected > 0
    assert drawn[~kept].sum() == 0
    assert stats.chisquare(drawn[kept], expected[kept] * 5000).pvalue > 1e-3


def test_text_comes_in_whole_characters_and_nothing_of_a_stop_string() -> None:
    said = "naïve 🙂 ok".encode()
    text = Detokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    pieces = [text.add(byte) for byte in said]
    assert "".join(pieces) == said.decode()
    assert "\ufffd" not in "".join(pieces)
    stops = Stops(["END"])
    assert [stops.add(piece) for piece in ("aE", "NE", "NDb")] == ["a", "EN", ""]
    assert stops.found


def test_ctrl_c_ends_the_command_and_frees_its_port(tmp_path: Path) -> None:
    config = tmp_path / "served.yaml"
    config.write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "qbench", "serve", str(config), "--cell", "fp16", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if "serving" in line)
        url = next(word for word in line.split() if word.startswith("http")).rstrip(";")
        body = {"model": "fp16", "prompt": [5, 6], "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/completions", json=body) as answer:
            next(answer.iter_lines())
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
    finally:
        process.kill()
        process.stdout.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")
