"""Models like Llama in NumPy and float32: an engine of its own in one file, and the backend that loads it.

It is the smallest engine that takes every measure: weights from safetensors, a cache of keys and values, batches. A
quantized cache it does not have, and says so by leaving it out of `can`.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from safetensors import deserialize
from tokenizers import Tokenizer

from qbench.config import Backend
from qbench.engine import one_by_one, prefix_groups
from qbench.engine.base import (
    IN_PROCESS,
    About,
    Answer,
    Capability,
    Decode,
    Floats,
    Generation,
    Ints,
    Journal,
    KVCache,
    Loglikelihoods,
    Pieces,
    Query,
    Scores,
    Stop,
    Tokens,
)
from qbench.errors import QbenchError


class CONFIG(Backend):
    """A cell of this kind has no options."""

    install: ClassVar[str] = "pip install qbench-numpy"
    libraries: ClassVar[tuple[str, ...]] = ("qbench", "numpy", "qbench-numpy")
    kind: Literal["numpy"] = "numpy"

    @property
    def weight_bits(self) -> int:
        return 32


def load(options: Any, config: CONFIG, calibration: object) -> NumpyEngine:
    """The checkpoint of `options.folder`, in float32 whatever the run's dtype is."""
    return NumpyEngine(options.folder)


class Cache:
    """Keys and values [layers, batch_size, heads, seq_len, head_dim], filled from the left."""

    def __init__(self, model: Llama, batch_size: int, seq_len: int) -> None:
        shape = (model.layers, batch_size, model.kv_heads, seq_len, model.head_dim)
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.length = 0


class Llama:
    """The forward of transformers' `modeling_llama.py`, without biases and with plain rotary positions."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if self.config["model_type"] != "llama" or self.config.get("attention_bias") or self.config.get("mlp_bias"):
            raise QbenchError("backends.numpy: only models of the type llama without biases; choose another backend")
        self.layers: int = self.config["num_hidden_layers"]
        self.heads: int = self.config["num_attention_heads"]
        self.kv_heads: int = self.config["num_key_value_heads"]
        self.head_dim: int = self.config.get("head_dim") or self.config["hidden_size"] // self.heads
        self.weights = dict(_tensors(folder))
        self.head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        theta = (self.config.get("rope_parameters") or self.config)["rope_theta"]
        self._frequencies = theta ** -(np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim)

    def forward(self, tokens: Ints, cache: Cache) -> Floats:
        """Hidden states [batch_size, n, hidden_size] of tokens [batch_size, n], which are appended to the cache."""
        first, last = cache.length, cache.length + tokens.shape[1]
        angles = np.outer(np.arange(first, last, dtype=np.float32), self._frequencies)
        rotation = [np.concatenate([part, part], -1).astype(np.float32) for part in (np.cos(angles), np.sin(angles))]
        hidden = np.arange(last)[None, :] > np.arange(first, last)[:, None]  # what a token may not see
        x = self.weights["model.embed_tokens.weight"][tokens]
        for layer in range(self.layers):
            x = x + self._attention(
                self._norm(x, f"model.layers.{layer}.input_layernorm"), layer, cache, rotation, hidden
            )
            x = x + self._mlp(self._norm(x, f"model.layers.{layer}.post_attention_layernorm"), layer)
        cache.length = last
        return self._norm(x, "model.norm")

    def _attention(self, x: Floats, layer: int, cache: Cache, rotation: list[Floats], hidden: Any) -> Floats:
        batch, n, _ = x.shape

        def heads(name: str, count: int) -> Floats:
            out = x @ self.weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"].T
            return out.reshape(batch, n, count, self.head_dim).transpose(0, 2, 1, 3)

        query, key = _rotate(heads("q", self.heads), *rotation), _rotate(heads("k", self.kv_heads), *rotation)
        cache.keys[layer, :batch, :, cache.length : cache.length + n] = key
        cache.values[layer, :batch, :, cache.length : cache.length + n] = heads("v", self.kv_heads)
        seen = slice(0, cache.length + n)
        shared = self.heads // self.kv_heads  # query heads that read the same keys
        keys = np.repeat(cache.keys[layer, :batch, :, seen], shared, axis=1)
        values = np.repeat(cache.values[layer, :batch, :, seen], shared, axis=1)
        scores = query @ keys.swapaxes(-1, -2) / np.float32(np.sqrt(self.head_dim))
        scores[..., hidden] = -np.inf
        out = (np.exp(_log_softmax(scores)) @ values).transpose(0, 2, 1, 3).reshape(batch, n, -1)
        return out @ self.weights[f"model.layers.{layer}.self_attn.o_proj.weight"].T

    def _mlp(self, x: Floats, layer: int) -> Floats:
        gate, up, down = (
            self.weights[f"model.layers.{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up", "down")
        )
        gated = x @ gate
        return (gated / (1 + np.exp(-gated)) * (x @ up)) @ down

    def _norm(self, x: Floats, name: str) -> Floats:
        scale = np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(self.config["rms_norm_eps"]))
        return x / scale * self.weights[f"{name}.weight"]


class NumpySession:
    """A cache of a fixed size."""

    def __init__(self, model: Llama, batch_size: int, seq_len: int) -> None:
        self._model = model
        self._cache = Cache(model, batch_size, seq_len)

    def generate(self, prompts: Ints, new_tokens: int, *, after: Ints | None = None) -> Generation:
        """See `qbench.engine.base.Session`."""
        self._cache.length, read = 0, prompts
        if after is not None:
            self._model.forward(after, self._cache)
        tokens, times = np.empty((len(prompts), new_tokens), np.int64), [time.perf_counter()]
        for i in range(new_tokens):
            last = self._model.forward(read, self._cache)[:, -1]
            read = (last @ self._model.head.T).argmax(-1)[:, None]
            tokens[:, i] = read[:, 0]
            times.append(time.perf_counter())
        ttft_s, *step_s = np.diff(times).tolist()
        return Generation(tokens, ttft_s, tuple(step_s))

    def close(self) -> None:
        """Nothing but the cache is held."""
        del self._cache


class NumpyEngine:
    """See `qbench.engine.base.Engine`."""

    can = IN_PROCESS - {Capability.KV_CACHE, Capability.STREAM}

    def __init__(self, folder: Path) -> None:
        self._model = Llama(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @cached_property
    def about(self) -> About:
        config = self._model.config
        return About(
            kernel=f"numpy {np.__version__}",
            dtype="float32",
            device="cpu",
            weight_bytes=sum(weight.nbytes for weight in self._model.weights.values()),
            effective_bits_per_weight=32,
            vocab_size=config["vocab_size"],
            lm_head_bits=32,
            context=config["max_position_embeddings"],
            bos_token_id=config.get("bos_token_id"),
            eos_token_id=config.get("eos_token_id"),
        )

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special is not False).ids
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=not special)
        return text

    def decode_mode(self, asked: Decode, kv_cache: KVCache = "16bit") -> str:
        if asked in ("graph", "compiled"):
            raise QbenchError(f"decode: {asked} is not a mode of the NumPy engine; use auto or eager")
        return "eager"

    def session(
        self, batch_size: int, seq_len: int, *, decode: Decode = "auto", kv_cache: KVCache = "16bit"
    ) -> NumpySession:
        return NumpySession(self._model, batch_size, seq_len)

    def complete(self, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
        return one_by_one.complete(self, prompts, new_tokens, stop)

    def loglikelihoods(
        self, queries: Iterable[Query], *, batch_size: int, share: bool, journal: Journal | None = None
    ) -> Loglikelihoods:
        (group,) = prefix_groups.plan(queries, batch_size=batch_size, share=False)
        return Loglikelihoods(prefix_groups.count([group], batch_size), self._answer(group, batch_size))

    def _answer(self, group: prefix_groups.Group, batch_size: int) -> Iterator[dict[Query, Answer]]:
        for rows in prefix_groups.batches(group, batch_size):
            queries = prefix_groups.queries_of(rows)
            read = [(*query.stem, *query.answer[:-1]) for query in queries]
            tokens = np.zeros((len(read), max(map(len, read))), np.int64)  # what is behind a row's end changes nothing
            for row, ids in zip(tokens, read, strict=True):
                row[: len(ids)] = ids
            states = self._model.forward(tokens, Cache(self._model, *tokens.shape))
            yield {query: self._read_off(states[row], query) for row, query in enumerate(queries)}

    def _read_off(self, states: Floats, query: Query) -> Answer:
        first, last = len(query.stem) - 1, len(query.stem) - 1 + len(query.answer)
        logprobs = _log_softmax(states[first:last] @ self._model.head.T)
        answer = np.array(query.answer)
        return float(logprobs[np.arange(len(answer)), answer].sum()), bool((logprobs.argmax(-1) == answer).all())

    def score(
        self, tokens: Ints, *, top_k: int | None = None, words: Ints | None = None, whole: Pieces | None = None
    ) -> Scores:
        states = self._model.forward(tokens[None, :-1], Cache(self._model, 1, len(tokens)))[0]
        logprobs = _log_softmax(states @ self._model.head.T)
        if whole:
            whole(slice(0, len(logprobs)), logprobs)
        truth = np.take_along_axis(logprobs, tokens[1:, None], 1)[:, 0]
        chosen = np.argsort(-logprobs, axis=1, kind="stable")[:, :top_k] if top_k else words
        if chosen is None:
            return Scores(truth)
        known = np.take_along_axis(logprobs, chosen, 1)
        others = logprobs.copy()
        np.put_along_axis(others, chosen, -np.inf, 1)
        rest = np.log(np.exp(others).sum(1, keepdims=True))
        return Scores(truth, logprobs.max(1), chosen, np.concatenate([known, rest], 1))

    def peak_memory(self, call: Callable[[], object]) -> list[int]:
        """NumPy tells tracemalloc of its arrays."""
        tracemalloc.start()
        try:
            call()
            return [self.about.weight_bytes + tracemalloc.get_traced_memory()[1]]
        finally:
            tracemalloc.stop()


def _rotate(x: Floats, cosine: Floats, sine: Floats) -> Floats:
    half = x.shape[-1] // 2
    return x * cosine + np.concatenate([-x[..., half:], x[..., :half]], -1) * sine


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _tensors(folder: Path) -> Iterator[tuple[str, Floats]]:
    """Every tensor of the checkpoint in float32; bfloat16, which NumPy lacks, is its upper half."""
    for file in sorted(folder.glob("*.safetensors")):
        for name, stored in deserialize(file.read_bytes()):
            if stored["dtype"] == "BF16":
                values = (np.frombuffer(stored["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(stored["data"], {"F16": np.float16, "F32": np.float32}[stored["dtype"]])
            yield name, values.astype(np.float32).reshape(stored["shape"])
