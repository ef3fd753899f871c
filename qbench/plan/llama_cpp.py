"""Bytes of a gguf cell before it has run: what llama.cpp allocates when it loads a file and makes a context.

    peak = tensors + cache + buffer to compute with + logits + bookkeeping of graphs

The cache is float16 and rounded up to whole cells; activations are float32 and exist for 512 tokens at once, whatever
the batch. Counted by hand from llama.cpp's graph of a Llama-like block (`src/llama-graph.cpp`); what its log says of
each buffer is the same to its last digit. The bookkeeping is measured, on 64-bit Linux.
"""

from __future__ import annotations

from dataclasses import dataclass

from qbench.config import KVCache
from qbench.model import ggml
from qbench.model.ggml import Quant
from qbench.plan.memory import Prediction, Weights

CELLS = 256
"""A sequence's cache is rounded up to a multiple of so many tokens."""

UBATCH = 512
"""Tokens that are computed at once."""

LOGITS = 1 << 25
"""float32 logits that the engine wants at once, at most, when it scores a window."""

NODE_BYTES = 22_900
"""Of bookkeeping for a node that a graph may have: 23.4 MB for 1024 nodes (llama-cpp-python 0.3.36)."""

MIN_NODES = 1024

NODES_PER_TENSOR = 8
"""As `llama_context::graph_max_nodes` counts them."""

TENSORS_PER_BLOCK = 9
"""Seven linears and two norms."""


@dataclass(frozen=True, slots=True)
class LlamaCppPrediction(Prediction):
    """A model as llama.cpp holds it on a CPU."""

    @property
    def quant(self) -> Quant:
        """The quantization of its file.

        Raises:
            QbenchError: it has a file, which does not say.
        """
        found: Quant = self.backend.known_quant()  # type: ignore[attr-defined]  # of gguf cells
        return found

    @property
    def imatrix(self) -> bool:
        """Whether an importance matrix weighs its errors; of a ready file, whether it has to."""
        return bool(getattr(self.backend, "imatrix", False)) or self.quant in ggml.IMATRIX_QUANTS

    def weights(self) -> Weights:
        """Bytes of the tensors."""
        model = self.model
        return Weights(
            linear_bytes=ggml.linears_bytes(model, self.quant, imatrix=self.imatrix),
            linear_weights=model.linear_weights,
            embedding_bytes=ggml.embedding_bytes(model, self.quant),
            head_bytes=ggml.head_bytes(model, self.quant),
            other_bytes=ggml.other_bytes(model),
        )

    def cache_bytes(self, batch_size: int, tokens: int, kv_cache: KVCache = "16bit", residual: int = 0) -> int:
        """Keys and values of these tokens in float16."""
        return 2 * self.model.num_hidden_layers * self.model.key_value_size * 2 * tokens * batch_size

    def generation_cache_bytes(self, batch_size: int, prompt: int, seq_len: int, kv_cache: KVCache = "16bit") -> int:
        """The cache of a generation, which is there from its start."""
        return self.cache_bytes(batch_size, _cells(seq_len))

    def generation_bytes(self, batch_size: int, prompt: int, seq_len: int, kv_cache: KVCache = "16bit") -> int:
        """Peak of a generation."""
        cells = _cells(seq_len)
        return self._bytes(batch_size * cells, min(UBATCH, batch_size * cells), cells, batch_size)

    def completion_bytes(self, batch_size: int, prompt: int, seq_len: int, kv_cache: KVCache = "16bit") -> int:
        """Peak of a generation: prompts of different lengths are continued one by one."""
        return self.generation_bytes(1, prompt, seq_len)

    def filled_generation_bytes(self, batch_size: int, prompt: int, seq_len: int, depth: int) -> int:
        """Peak of a generation: some hundred tokens are computed at once, whatever is before them."""
        return self.generation_bytes(batch_size, prompt, depth + seq_len)

    def perplexity_bytes(self, window: int) -> int:
        """Peak of `measure.perplexity`: the logits of some hundred tokens, and three pieces of log-probabilities."""
        at_once = max(64, min(UBATCH, LOGITS // self.model.vocab_size))
        cells = _cells(window)
        pieces = 3 * 4 * at_once * self.model.vocab_size
        return self._bytes(cells, min(UBATCH, cells), cells, at_once) + pieces

    def _bytes(self, tokens: int, at_once: int, attended: int, outputs: int) -> int:
        """Of weights and a context: `tokens` in the cache, `at_once` computed over `attended`, logits of `outputs`."""
        model = self.model
        mask = 2 * at_once * attended
        mlp = 4 * at_once * (4 * model.hidden_size + 3 * model.intermediate_size)
        # llama.cpp computes the logits of at most as many tokens as it computes at once.
        head = 4 * (at_once * 2 * model.hidden_size + min(at_once, outputs) * model.vocab_size)
        tensors = TENSORS_PER_BLOCK * model.num_hidden_layers + 3
        nodes = NODE_BYTES * max(MIN_NODES, NODES_PER_TENSOR * tensors)
        logits = 4 * outputs * model.vocab_size
        return self.weights().total + self.cache_bytes(1, tokens) + max(mask + mlp, head) + logits + nodes


def _cells(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS
