"""A GGUF file behind the contract of `qbench.engine.base`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from qbench.engine import base, one_by_one, prefix_groups, text
from qbench.engine.base import (
    IN_PROCESS,
    About,
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
    TokenCount,
)
from qbench.engine.llama_cpp.context import BATCH, CELLS, MAX_SEQUENCES, Batch, Context, Model, Tokens, at_once
from qbench.engine.llama_cpp.logprobs import log_softmax, most_probable, outline
from qbench.engine.llama_cpp.memory import COUNTS, Watch
from qbench.engine.llama_cpp.prefix import PrefixReader, sharing_agrees
from qbench.engine.llama_cpp.stepper import LlamaCppStepper
from qbench.errors import NotFiniteError, QbenchError


class LlamaCppEngine:
    """Runs a loaded GGUF file.

    Args:
        about: what it holds.
        tokenizer: the model's own, as transformers loads it; None for random weights of a bare shape.
        threads: that compute.
    """

    def __init__(self, model: Model, about: About, tokenizer: Any, threads: int) -> None:
        self._model, self.about, self._tokenizer, self._threads = model, about, tokenizer, threads
        self._watch = Watch()

    @property
    def can(self) -> frozenset[Capability]:
        """No quantized cache; text only with a tokenizer, peak memory only where the C library counts allocations."""
        lacking = {Capability.KV_CACHE}
        lacking |= set() if self._tokenizer else {Capability.TEXT}
        return IN_PROCESS - lacking - (set() if COUNTS else {Capability.PEAK_MEMORY})

    def encode(self, text_: str, *, special: bool | None = None) -> list[int]:
        """Token ids, by the tokenizer beside the model and not by that in the GGUF file."""
        return text.encode(self._tokenizer, text_, self.about.vocab_size, special=special)

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids."""
        return text.decode(self._tokenizer, ids, special=special)

    def decode_mode(self, asked: Decode, kv_cache: KVCache = "16bit") -> str:
        """Always `eager`: every step is one `llama_decode`.

        Raises:
            QbenchError: a CUDA graph, or a quantized cache, asked for.
        """
        if asked == "graph":
            raise QbenchError("decode: graph is no mode of llama.cpp; use auto or eager")
        if kv_cache != "16bit":
            raise QbenchError(f"kv_cache: {kv_cache} is not measured with llama.cpp; use 16bit")
        return "eager"

    def session(
        self, batch_size: int, seq_len: int, *, decode: Decode = "auto", kv_cache: KVCache = "16bit"
    ) -> LlamaCppSession:
        """A context with a cache of its own for every sequence, made at the first prefill.

        Raises:
            QbenchError: more sequences than llama.cpp has, or see `decode_mode`.
        """
        self.decode_mode(decode, kv_cache)
        self._check_sequences(batch_size)
        cells = -(-seq_len // CELLS) * CELLS
        make = partial(self._context, tokens=batch_size * cells, sequences=batch_size, outputs=batch_size)
        return LlamaCppSession(partial(make, unified=False))

    def complete(self, prompts: Sequence[base.Tokens], new_tokens: int, stop: Stop) -> list[base.Tokens]:
        """One prompt after the other."""
        return one_by_one.complete(self, prompts, new_tokens, stop)

    def stepper(self, sequences: int, context: int) -> LlamaCppStepper:
        """A context in which every sequence has a cache of its own.

        Raises:
            QbenchError: more sequences than llama.cpp has.
        """
        self._check_sequences(sequences)
        cells = -(-context // CELLS) * CELLS
        made = self._context(tokens=sequences * cells, sequences=sequences, outputs=sequences, unified=False)
        return LlamaCppStepper(made, sequences)

    def loglikelihoods(
        self, queries: Iterable[Query], *, batch_size: int, share: bool, journal: Journal | None = None
    ) -> Loglikelihoods:
        """See `qbench.engine.llama_cpp.prefix`."""
        asked = list(queries)
        groups = prefix_groups.plan(asked, batch_size=batch_size, share=share)
        begun = prefix_groups.begun(groups, batch_size, journal)
        if share and not (begun or sharing_agrees(self._shared_context, groups, batch_size, self._at_once)):
            share, groups = False, prefix_groups.plan(asked, batch_size=batch_size, share=False)
        reader = PrefixReader(self._shared_context, groups, batch_size, self._at_once, journal)
        read = prefix_groups.count(groups, batch_size).read  # nothing is padded
        return Loglikelihoods(TokenCount(read, read), reader.read(), shared=share)

    def score(
        self, tokens: Ints, *, top_k: int | None = None, words: Ints | None = None, whole: Pieces | None = None
    ) -> Scores:
        """See `qbench.engine.base.Engine.score`; the window is read in pieces, as llama.cpp computes it anyway."""
        count = len(tokens) - 1
        read = Tokens(tokens[:-1], np.arange(count), [(0,)] * count, np.ones(count, bool))
        found: dict[str, list[Any]] = {}
        context = self._shared_context(count, 1)
        try:
            for places, logits in context.read(read, self._at_once):
                logprobs = log_softmax(logits)
                if whole:
                    whole(slice(int(places[0]), int(places[-1]) + 1), logprobs)
                seen: dict[str, Any] = {"truth": np.take_along_axis(logprobs, tokens[places + 1, None], 1)[:, 0]}
                chosen = most_probable(logprobs, top_k) if top_k else None if words is None else words[places]
                if chosen is not None:
                    seen |= {"best": logprobs.max(1), "words": chosen, "outlines": outline(logprobs, chosen)}
                for name, values in seen.items():
                    found.setdefault(name, []).append(values)
        finally:
            context.close()
        return Scores(**{name: np.concatenate(pieces) for name, pieces in found.items()})

    def peak_memory(self, call: Callable[[], object]) -> list[int]:
        """See `qbench.engine.llama_cpp.memory`."""
        return [self._model.weight_bytes + self._watch.growth(call)]

    def _check_sequences(self, asked: int) -> None:
        if asked > MAX_SEQUENCES:
            raise QbenchError(f"batch_size: {asked}, and llama.cpp has at most {MAX_SEQUENCES} sequences")

    @property
    def _at_once(self) -> int:
        return at_once(self._model.vocab_size)

    def _shared_context(self, tokens: int, sequences: int) -> Context:
        return self._context(tokens=tokens, sequences=sequences, outputs=self._at_once, unified=True)

    def _context(self, *, tokens: int, sequences: int, outputs: int, unified: bool) -> Context:
        return Context(
            self._model,
            tokens=tokens,
            sequences=sequences,
            outputs=outputs,
            unified=unified,
            threads=self._threads,
            look=self._watch.look,
        )


class LlamaCppSession:
    """Greedy generation over one context."""

    def __init__(self, make: Callable[[], Context]) -> None:
        self._make: Callable[[], Context] | None = make
        self._context: Context | None = None

    def generate(self, prompts: Ints, new_tokens: int, *, after: Ints | None = None) -> Generation:
        """See `qbench.engine.base.Session`; the context is made before the clock starts."""
        assert self._make is not None, "the session is closed"
        context = self._context = self._context or self._make()
        context.forget()
        batch_size, length = prompts.shape
        depth = 0
        if after is not None:
            depth = after.shape[1]
            _last(context, _prefill(after))
        length += depth
        tokens = np.empty((batch_size, new_tokens), np.int64)
        prefill, step = _prefill(prompts, depth), _step(batch_size)
        marks = [time.perf_counter()]
        logits = _last(context, prefill)
        tokens[:, 0] = logits.argmax(-1)
        marks.append(time.perf_counter())
        for i in range(1, new_tokens):
            step.ids[:] = tokens[:, i - 1]
            step.positions[:] = length + i - 1
            logits = context.decode(step)
            tokens[:, i] = logits.argmax(-1)
            marks.append(time.perf_counter())
        ttft_s, *step_s = np.diff(marks).tolist()
        if not np.isfinite(logits).all():
            raise NotFiniteError("generation")
        return Generation(tokens, ttft_s, tuple(step_s))

    def close(self) -> None:
        """Give the context back."""
        self._make = None
        if self._context:
            self._context.close()
            self._context = None


def _prefill(prompts: Ints, depth: int = 0) -> Tokens:
    """One prompt after the other, as llama.cpp's own tools read them; the last token of each predicts.

    `depth` tokens of each sequence have been read.
    """
    batch_size, length = prompts.shape
    positions = np.tile(np.arange(depth, depth + length), batch_size)
    sequences = [(number,) for number in range(batch_size) for _ in range(length)]
    return Tokens(prompts.reshape(-1), positions, sequences, positions == depth + length - 1)


def _step(batch_size: int) -> Batch:
    """One token of each sequence, to be filled in."""
    sequences, zeros = [(number,) for number in range(batch_size)], np.zeros(batch_size, np.int64)
    return Batch(Tokens(zeros, zeros, sequences, np.ones(batch_size, bool)))


def _last(context: Context, tokens: Tokens) -> Floats:
    """Logits [sequences, vocab_size] of the tokens that predict, in order; copied where they come in pieces."""
    pieces = [logits.copy() if len(tokens.ids) > BATCH else logits for _, logits in context.read(tokens)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
