"""A model of mlx-lm behind the contract of `qbench.engine.base`: on Apple's GPUs, elsewhere on the CPU.

MLX computes when a value is asked for (`mx.eval`); what nothing asks for, such as the logits of a prompt's earlier
tokens, is not computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from qbench.engine import one_by_one, prefix_groups
from qbench.engine.base import (
    IN_PROCESS,
    About,
    Answer,
    Capability,
    Decode,
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
from qbench.engine.text import context_of, decode, encode
from qbench.errors import NotFiniteError, QbenchError
from qbench.model.find import context_length

PREFILL_TOKENS = 2048
"""Tokens of a prompt that are read at once, as mlx-lm's own `generate_step` does unless told otherwise."""

SCORE_TOKENS = 256
"""Positions of a window whose logits are in memory at once."""


class MlxEngine:
    """Runs a model that `mlx_lm.utils.load_model` has loaded."""

    def __init__(
        self, model: Any, config: dict[str, Any], tokenizer: Any, *, dtype: str, quantize_s: float | None = None
    ) -> None:
        self._model = model
        self._config = config
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._quantize_s = quantize_s

    @cached_property
    def about(self) -> About:
        """What it holds."""
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        quantized = [module for _, module in self._model.named_modules() if isinstance(module, nn.QuantizedLinear)]
        stored = sum(module.weight.nbytes + module.scales.nbytes + module.biases.nbytes for module in quantized)
        weights = sum(module.weight.size * 32 // module.bits for module in quantized)
        return About(
            kernel="mx.quantized_matmul",
            dtype=self._dtype,
            device=str(mx.device_info()["device_name"]) if on_gpu else "cpu",
            weight_bytes=sum(array.nbytes for _, array in tree_flatten(self._model.parameters())),
            effective_bits_per_weight=stored * 8 / weights,
            vocab_size=self._config["vocab_size"],
            quantized_layers=len(quantized),
            expected_layers=len(quantized),
            quantize_s=self._quantize_s,
            max_position_embeddings=context_length(self._config),
            context=context_length(self._config) or context_of(self._tokenizer),
            bos_token_id=getattr(self._tokenizer, "bos_token_id", None),
            eos_token_id=getattr(self._tokenizer, "eos_token_id", None),
        )

    def check(self) -> None:
        """Refuse a model of whose blocks anything is not quantized.

        Raises:
            QbenchError: linears or experts are in 16 bits.
        """
        left = [
            name
            for name, module in self._model.named_modules()
            if hasattr(module, "to_quantized") and not isinstance(module, nn.Embedding) and name != "lm_head"
        ]
        if left:
            raise QbenchError(
                f"{len(left)} linears of {type(self._model).__module__} are not quantized ({left[0]}): a figure of "
                "this model would not be the backend's; use another backend"
            )

    @property
    def can(self) -> frozenset[Capability]:
        """Everything but quantized caches and steps; text only with a tokenizer."""
        lacking = {Capability.KV_CACHE, Capability.STREAM} | (set() if self._tokenizer else {Capability.TEXT})
        return IN_PROCESS - lacking

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Token ids."""
        return encode(self._tokenizer, text, self._config["vocab_size"], special=special)

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids."""
        return decode(self._tokenizer, ids, special=special)

    def decode_mode(self, asked: Decode, kv_cache: KVCache = "16bit") -> str:
        """`eager`, whose forwards MLX puts in the queue before the one before them is done.

        Raises:
            QbenchError: another is asked for.
        """
        if asked not in ("auto", "eager"):
            raise QbenchError(f"decode: {asked} is a mode of the torch engine; MLX cells take auto or eager")
        return "eager"

    def session(
        self, batch_size: int, seq_len: int, *, decode: Decode = "auto", kv_cache: KVCache = "16bit"
    ) -> MlxSession:
        """mlx-lm's cache, which grows with what is read."""
        self.decode_mode(decode, kv_cache)
        return MlxSession(self._model)

    def complete(self, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
        """One prompt after the other."""
        return one_by_one.complete(self, prompts, new_tokens, stop)

    def loglikelihoods(
        self, queries: Iterable[Query], *, batch_size: int, share: bool, journal: Journal | None = None
    ) -> Loglikelihoods:
        """Every prompt is read whole."""
        groups = prefix_groups.plan(queries, batch_size=batch_size, share=False)
        return Loglikelihoods(prefix_groups.count(groups, batch_size), self._answers(groups, batch_size, journal))

    def _answers(
        self, groups: Sequence[prefix_groups.Group], batch_size: int, journal: Journal | None
    ) -> Iterator[dict[Query, Answer]]:
        for rows in (rows for group in groups for rows in prefix_groups.batches(group, batch_size)):
            queries, name = prefix_groups.queries_of(rows), prefix_groups.name_of(rows)
            known = journal.get(name) if journal else None
            found = self._answer(queries) if known is None else known
            yield dict(zip(queries, found, strict=True))
            if journal and known is None:  # not before: whoever took them refuses NaN
                journal.put(name, found)

    def _answer(self, queries: Sequence[Query]) -> list[Answer]:
        """One forward; what stands behind a row's end changes nothing before it."""
        read = [(*query.stem, *query.answer[:-1]) for query in queries]
        tokens = np.zeros((len(read), max(map(len, read))), np.int64)
        for row, ids in zip(tokens, read, strict=True):
            row[: len(ids)] = ids
        answers = []
        for query, logits in zip(queries, self._model(mx.array(tokens)), strict=True):
            first = len(query.stem) - 1
            logprobs = _log_softmax(logits[first : first + len(query.answer)])
            truth = mx.array(query.answer)
            total = mx.take_along_axis(logprobs, truth[:, None], 1).sum()
            greedy = (logprobs.argmax(-1) == truth).all()
            answers.append((total, greedy))
        mx.eval(answers)
        return [(total.item(), greedy.item()) for total, greedy in answers]

    def score(
        self, tokens: Ints, *, top_k: int | None = None, words: Ints | None = None, whole: Pieces | None = None
    ) -> Scores:
        """One forward; the output embedding is multiplied in pieces, so that no window's logits are held whole."""
        cache = make_prompt_cache(self._model)
        pieces: list[dict[str, Any]] = []
        for first in range(0, len(tokens) - 1, SCORE_TOKENS):
            last = min(first + SCORE_TOKENS, len(tokens) - 1)
            logprobs = _log_softmax(self._model(mx.array(tokens[None, first:last]), cache=cache)[0])
            if whole:
                whole(slice(first, last), np.array(logprobs))
            piece = {"truth": mx.take_along_axis(logprobs, mx.array(tokens[first + 1 : last + 1, None]), 1)[:, 0]}
            if top_k:
                piece["words"] = mx.argsort(-logprobs, axis=1)[:, :top_k]
            elif words is not None:
                piece["words"] = mx.array(words[first:last])
            if "words" in piece:
                piece |= {"best": logprobs.max(1), "outlines": _outline(logprobs, piece["words"])}
            mx.eval(piece)
            pieces.append({name: np.array(values) for name, values in piece.items()})
        found = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        if "words" in found:
            found["words"] = found["words"].astype(np.int64)
        return Scores(**found)

    def peak_memory(self, call: Callable[[], object]) -> list[int]:
        """MLX counts its own arrays, weights among them, where it computes; memory is shared with the CPU."""
        mx.clear_cache()
        mx.reset_peak_memory()
        call()
        return [mx.get_peak_memory()]


class MlxSession:
    """Generates with a new cache each time."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, prompts: Ints, new_tokens: int, *, after: Ints | None = None) -> Generation:
        """A step is in MLX's queue while the one before it is computed, as in mlx-lm's `generate_step`."""
        read, cache = mx.array(prompts), make_prompt_cache(self._model)
        mx.eval(read)
        if after is not None:
            self._read(mx.array(after), cache, keep=0)
        made, best, times = [], [], [time.perf_counter()]
        read = self._read(read, cache, keep=1)
        following = self._step(read, cache)
        for step in range(new_tokens):
            token, highest = following
            if step + 1 < new_tokens:
                following = self._step(token, cache)
            mx.eval(token, highest)
            times.append(time.perf_counter())
            made.append(token)
            best.append(highest)
        if not mx.isfinite(mx.stack(best)).all().item():
            raise NotFiniteError("generation")
        ttft_s, *step_s = np.diff(times).tolist()
        return Generation(np.array(mx.concatenate(made, 1)).astype(np.int64), ttft_s, tuple(step_s))

    def _read(self, tokens: mx.array, cache: Any, *, keep: int) -> mx.array:
        """Read tokens [batch_size, n] in pieces, but for the last `keep`, which are given back."""
        while tokens.shape[1] > keep:
            beginning, tokens = mx.split(tokens, [min(PREFILL_TOKENS, tokens.shape[1] - keep)], axis=1)
            self._model(beginning, cache=cache)
            mx.eval([layer.state for layer in cache])
        return tokens

    def _step(self, tokens: mx.array, cache: Any) -> tuple[mx.array, mx.array]:
        """The next token [batch_size, 1] and its logit [batch_size], in the queue."""
        logits = self._model(tokens, cache=cache)[:, -1]
        token, highest = logits.argmax(-1, keepdims=True), logits.max(-1)
        mx.async_eval(token, highest)
        return token, highest

    def close(self) -> None:
        """Give memory back that MLX keeps for the next arrays."""
        mx.clear_cache()


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _outline(logprobs: mx.array, words: mx.array) -> mx.array:
    """Log-probabilities [n, k + 1] of k words and of all others together."""
    others = mx.put_along_axis(logprobs, words, mx.array(-math.inf), axis=1)
    rest = mx.logsumexp(others, axis=1, keepdims=True)
    return mx.concatenate([mx.take_along_axis(logprobs, words, 1), rest], axis=1)
