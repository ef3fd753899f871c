"""llama.cpp's model and context as Python objects: what is loaded, and memory for sequences that are read."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from qbench.compat.llama_cpp import LOG, Products
from qbench.engine.base import Floats, Ints
from qbench.errors import QbenchError

CELLS = 256
"""llama.cpp rounds the tokens of a sequence's cache up to a multiple of this."""

UBATCH = 512
"""Tokens that are computed at once: llama.cpp's default."""

BATCH = 2048
"""Tokens of one `llama_decode`: the default of llama.cpp's tools."""

LOGITS = 1 << 25
"""float32 logits that exist at once where every token's are wanted: 128 MiB."""

MAX_SEQUENCES: int = llama_cpp.llama_max_parallel_sequences()
"""Sequences that a context can hold."""


def at_once(vocab_size: int) -> int:
    """Tokens to read at once where the logits of all of them may be wanted."""
    return max(64, min(UBATCH, LOGITS // vocab_size))


class Model:
    """A GGUF file in memory: read, not mapped, so that its bytes are the process's own.

    Raises:
        QbenchError: llama.cpp cannot load the file; the message ends with its own reason.
    """

    def __init__(self, path: Path, *, vocabulary_only: bool = False) -> None:
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        options.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        options.vocab_only = vocabulary_only
        LOG.restart()
        self.handle: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.handle:
            raise QbenchError(f"{path}: llama.cpp cannot load this file: {LOG.complaint or 'it gives no reason'}")
        weakref.finalize(self, llama_cpp.llama_model_free, self.handle)
        self.weight_bytes = LOG.bytes_of("model")
        """Of the buffers that hold its tensors, some of them laid out anew for the kernels of this CPU."""
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens to read, in order; each belongs to one sequence or, where several still agree, to all of these."""

    ids: Ints
    """[n]."""
    positions: Ints
    """[n], in their sequences; those of a sequence follow what is in its cache."""
    sequences: Sequence[Sequence[int]]
    """[n], numbers of the sequences."""
    wanted: np.ndarray[Any, np.dtype[np.bool_]]
    """[n], whether the logits of what follows are looked at."""


class Batch:
    """Tokens as `llama_decode` takes them; `ids` and `positions`, int32, may be written again before the next call."""

    def __init__(self, tokens: Tokens) -> None:
        self.ids, self.positions = tokens.ids.astype(np.int32), tokens.positions.astype(np.int32)
        self.outputs = int(tokens.wanted.sum())
        counts = np.fromiter(map(len, tokens.sequences), np.int32, len(tokens.sequences))
        numbers = np.fromiter((number for own in tokens.sequences for number in own), np.int32, int(counts.sum()))
        firsts = np.cumsum(counts, dtype=np.int64) - counts
        self._arrays = {
            "token": self.ids,
            "pos": self.positions,
            "n_seq_id": counts,
            "seq_id": numbers.ctypes.data + numbers.itemsize * firsts,
            "logits": tokens.wanted.astype(np.int8),
        }
        self._numbers = numbers  # of which the struct has addresses only
        self.struct = llama_cpp.llama_batch(n_tokens=len(self.ids), embd=None)
        for name, kind in llama_cpp.llama_batch._fields_:
            if name in self._arrays:
                setattr(self.struct, name, ctypes.cast(self._arrays[name].ctypes.data, kind))


class Context:
    """Memory for sequences of a model, and the buffers to compute with.

    Args:
        tokens: cells of the cache, of all sequences together.
        sequences: as many as have numbers.
        outputs: logits that are wanted at once, at most.
        unified: whether sequences share cells; else each has `tokens` / `sequences` of its own, and attention reads
            those only.
        threads: that compute.
        look: called after every forward, with everything allocated.
        products: told what matrices are multiplied by; everything takes longer then.

    Raises:
        MemoryError: there is not so much memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        tokens: int,
        sequences: int,
        outputs: int,
        unified: bool,
        threads: int,
        look: Callable[[], None] = lambda: None,
        products: Products | None = None,
    ) -> None:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = tokens, sequences
        options.n_batch, options.n_ubatch = BATCH, UBATCH
        options.n_outputs_max = max(outputs, sequences)
        options.kv_unified = unified
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        if products:
            options.cb_eval = products.callback
        LOG.restart()
        handle: Any = llama_cpp.llama_init_from_model(model.handle, options)
        if not handle:
            raise MemoryError(f"out of memory: llama.cpp cannot make a context of {tokens} tokens ({LOG.complaint})")
        self._model, self._handle, self._look, self._products = model, handle, look, products
        self._finalize = weakref.finalize(self, llama_cpp.llama_free, handle)
        self._memory: Any = llama_cpp.llama_get_memory(handle)
        self.buffer_bytes = {what: LOG.bytes_of(what) for what in ("KV", "compute", "output")}
        """What it has allocated, as llama.cpp reports it."""

    def read(self, tokens: Tokens, at_once: int = BATCH) -> Iterator[tuple[Ints, Floats]]:
        """Read tokens in pieces of at most `at_once`: the places that are wanted, and their logits.

        Logits [places, vocab_size] are a view that the next piece overwrites.
        """
        for start in range(0, len(tokens.ids), at_once):
            piece = slice(start, start + at_once)
            wanted = np.flatnonzero(tokens.wanted[piece])
            part = Tokens(tokens.ids[piece], tokens.positions[piece], tokens.sequences[piece], tokens.wanted[piece])
            logits = self.decode(Batch(part))
            if len(wanted):
                yield wanted + start, logits

    def forget(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def lend(self, source: int, target: int) -> None:
        """Let sequence `target` begin with all that `source` holds; nothing is copied where the cache is unified."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        """Forget a sequence; cells that others share stay."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def close(self) -> None:
        """Give the memory back."""
        self._finalize()

    def decode(self, batch: Batch) -> Floats:
        """Read a batch: logits [wanted, vocab_size], a view that the next call overwrites.

        Raises:
            RuntimeError: llama.cpp cannot, such as where the cache is full.
        """
        status = llama_cpp.llama_decode(self._handle, batch.struct)
        if status:
            raise RuntimeError(f"llama_decode ended with {status}: {LOG.complaint}")
        if self._products:
            self._products.check()
        self._look()
        shape = (batch.outputs, self._model.vocab_size)
        if not batch.outputs:
            return np.empty(shape, np.float32)
        address: Any = ctypes.cast(llama_cpp.llama_get_logits(self._handle), ctypes.c_void_p).value
        # Not `np.ctypeslib.as_array`, which takes longer than a small model's step leaves unnoticed.
        buffer: Any = (ctypes.c_float * math.prod(shape)).from_address(address)
        return np.frombuffer(buffer, np.float32).reshape(shape)
