"""Bytes and decode speed of a cell before it has run, from the model's dimensions and the backend's settings alone.

    peak = bytes of the weights + cache of all tokens + what lives at once in the widest moment of the prefill

The last is counted by hand from transformers' own block code: while the gated MLP of the last layer multiplies, the
embeddings, the layer's input, the residual and the normed input are still held, 4 × hidden_size a token, and 3 to 4 ×
intermediate_size of the MLP. On a CPU this is what torch's allocator reports, to some bytes; on CUDA workspaces and
rounding come on top. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qbench.config import Backend, KVCache
from qbench.config.target import Target
from qbench.model.architecture import Architecture
from qbench.model.kv_cache import FILL_TOKENS, RESIDUAL, QuantizedKeysAndValues

CUDA_WORKSPACE_BYTES = 32 << 20
"""Of cuBLAS on Hopper, which torch's allocator counts; 8 MiB on older devices."""

LOG_PROBABILITIES = 1 << 25
"""float32 values that `qbench.measure.windows` makes at once of a window's logits."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a loaded model."""

    linear_bytes: int
    """Codes, scales, zeros and code books of attention's and MLP's linears."""
    linear_weights: int
    embedding_bytes: int
    """Of the input embedding."""
    head_bytes: int
    """Of the output embedding; 0 where it is the input embedding."""
    other_bytes: int
    """Of norms, biases and the rotary embedding's frequencies."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear_bytes + self.embedding_bytes + self.head_bytes + self.other_bytes

    @property
    def read_a_step(self) -> int:
        """What one decode step reads: everything but an input embedding that is not the output embedding, too."""
        return self.linear_bytes + (self.head_bytes or self.embedding_bytes) + self.other_bytes

    @property
    def unread(self) -> int:
        """Held and not read by a decode step: an input embedding that is not the output embedding, too."""
        return self.total - self.read_a_step

    @property
    def bits_per_weight(self) -> float:
        """linear_bytes × 8 / linear_weights."""
        return self.linear_bytes * 8 / self.linear_weights


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model as a backend holds it on a target."""

    model: Architecture
    backend: Backend
    target: Target

    def weights(self) -> Weights:
        """Bytes of the loaded model."""
        model, values = self.model, self.target.value_bytes
        linears = [
            self.backend.linear_bytes(linear.out_features, linear.in_features, self.target) for linear in model.linears
        ]
        head = self.backend.head_bytes(model.vocab_size, model.hidden_size, self.target, tied=model.tied)
        frequencies = 2 * 4 * (model.head_dim // 2)  # inv_freq and original_inv_freq, float32
        return Weights(
            linear_bytes=model.num_hidden_layers * sum(linears),
            linear_weights=model.linear_weights,
            embedding_bytes=model.embedding_weights * values,
            head_bytes=head,
            other_bytes=model.other_weights * values + frequencies,
        )

    def cache_bytes(self, batch_size: int, tokens: int, kv_cache: KVCache = "16bit", residual: int = 0) -> int:
        """Keys and values of every layer: 2 × layers × kv_heads × head_dim × bytes × tokens × batch_size.

        Of a quantized cache, `residual` tokens stand in the compute dtype, see `qbench.model.kv_cache`.
        """
        model = self.model
        if kv_cache != "16bit":
            return batch_size * self._quantized(kv_cache).held(tokens, residual)
        return 2 * model.num_hidden_layers * model.key_value_size * self.target.value_bytes * tokens * batch_size

    def step_cache_bytes(
        self, batch_size: int, cached: float, kv_cache: KVCache = "16bit", recent: float = 0.0
    ) -> float:
        """Bytes of cache that a decode step reads: of `cached` tokens a sequence, `recent` of them not quantized.

        Both may be means over steps, which are no whole numbers: see `qbench.model.kv_cache.attended_tokens`.
        """
        quantized, plain = self.cache_bytes(batch_size, 1, kv_cache), self.cache_bytes(batch_size, 1)
        return (cached - recent) * quantized + recent * plain

    def generation_cache_bytes(self, batch_size: int, prompt: int, seq_len: int, kv_cache: KVCache = "16bit") -> int:
        """The cache at the end of a generation; a quantized one grows, and the last token is never appended to it."""
        if kv_cache == "16bit":
            return self.cache_bytes(batch_size, seq_len)
        return self.cache_bytes(batch_size, seq_len - 1, kv_cache, (seq_len - prompt - 1) % RESIDUAL)

    def generation_bytes(self, batch_size: int, prompt: int, seq_len: int, kv_cache: KVCache = "16bit") -> int:
        """Peak of a generation: a prompt of `prompt` tokens a sequence over a cache of `seq_len`."""
        held = self.weights().total + self._workspace_bytes
        prefill = self.prefill_bytes(batch_size, prompt)
        if kv_cache == "16bit":
            return held + self.cache_bytes(batch_size, seq_len) + prefill
        return held + self._quantized_generation_bytes(batch_size, prompt, seq_len, kv_cache, prefill)

    def completion_bytes(self, batch_size: int, prompt: int, seq_len: int, kv_cache: KVCache = "16bit") -> int:
        """Peak of `Engine.complete`: a generation whose prompts, where there are several, are padded to `prompt`.

        A mask hides the padding for the whole of a forward, and each sequence has positions of its own. Attention of
        the prefill holds what it does behind other tokens.
        """
        peak = self.generation_bytes(batch_size, prompt, seq_len, kv_cache)
        if batch_size == 1:
            return peak
        mask = batch_size * prompt**2
        held = self.weights().total + self._workspace_bytes + self.cache_bytes(batch_size, seq_len, kv_cache)
        masked = held + self._behind_bytes(batch_size, prompt, prompt)
        return max(peak + mask, masked) + (batch_size - 1) * self._rotary_bytes(prompt)

    def filled_generation_bytes(self, batch_size: int, prompt: int, seq_len: int, depth: int) -> int:
        """Peak of a generation with `depth` tokens a sequence before its prompt, over a cache of depth + seq_len."""
        if not depth:
            return self.generation_bytes(batch_size, prompt, seq_len)
        fill = min(depth, FILL_TOKENS)
        held = self.weights().total + self._workspace_bytes + self.cache_bytes(batch_size, depth + seq_len)
        moments = (
            self.prefill_bytes(batch_size, max(prompt, fill)),
            self._behind_bytes(batch_size, prompt, depth + prompt),
            self._behind_bytes(batch_size, fill, depth),
        )
        return held + max(moments)

    def _behind_bytes(self, batch_size: int, tokens: int, attended: int) -> int:
        """What attention of several tokens a sequence holds that follow others: with a mask, keys and values are
        repeated for every head of queries; the mask is made of bytes and, on a CPU, taken as values."""
        model, values = self.model, self.target.value_bytes
        repeated = 2 * attended * model.query_size * values if model.query_size > model.key_value_size else 0
        mask = tokens * attended * (1 + values)
        own = (3 * model.hidden_size + 3 * model.query_size) * tokens * values
        return batch_size * (repeated + own + mask)

    def _quantized_generation_bytes(
        self, batch_size: int, prompt: int, seq_len: int, kv_cache: Literal["int8", "int4"], prefill: int
    ) -> int:
        """What a generation over a quantized cache holds at most, beside the weights.

        Either the prefill with the prompt's cache, while an MLP multiplies or the last layer's keys are quantized; or
        the last step, or the last one that quantizes everything again.
        """
        model, device, values = self.model, self.target.device, self.target.value_bytes
        cache, steps = self._quantized(kv_cache), seq_len - prompt - 1
        quantizing = prompt * (3 * model.hidden_size + model.query_size + 2 * model.key_value_size) * values
        moments = [
            cache.held(prompt) + max(prefill // batch_size, quantizing + cache.quantizing(prompt, device)),
        ]
        if steps > 0:
            last = cache.held(seq_len - 1, steps % RESIDUAL)
            moments.append(last + cache.step(seq_len - 1, device, again=False))
        if steps >= RESIDUAL:
            full = prompt + steps // RESIDUAL * RESIDUAL
            moments.append(cache.held(full, RESIDUAL) + cache.step(full, device, again=True))
        return batch_size * max(moments)

    def prefill_bytes(self, batch_size: int, prompt: int) -> int:
        """The most bytes that live at once in a forward of `prompt` tokens a sequence, without weights and cache."""
        model, values, tokens = self.model, self.target.value_bytes, batch_size * prompt
        hidden, inner, query = model.hidden_size, model.intermediate_size, model.query_size
        mlp = (4 * hidden + (4 if self._joins else 3) * inner) * tokens * values
        # While query or key is rotated. Key and value are not counted: the last layer's cache, which is as large and
        # counted elsewhere, is not there yet.
        attention = (3 * hidden + query + max(3 * query, query + 3 * model.key_value_size)) * tokens * values
        head = (hidden * tokens + model.vocab_size * batch_size) * values
        gated = 4 * hidden * tokens * values + self._products_bytes(tokens, (inner, inner))
        # Again without the last layer's cache.
        rows = (query, model.key_value_size, model.key_value_size)
        projected = (3 * hidden - 2 * model.key_value_size) * tokens * values + self._products_bytes(tokens, rows)
        # The same positions for all sequences.
        return max(mlp, attention, head, gated, projected) + self._rotary_bytes(prompt)

    def _rotary_bytes(self, tokens: int) -> int:
        """Of cosines, sines and positions."""
        return tokens * (2 * self.model.head_dim * self.target.value_bytes + 8)

    def perplexity_bytes(self, window: int) -> int:
        """Peak of `measure.perplexity`: a whole window's logits, and three pieces of log-probabilities in float32."""
        model, values = self.model, self.target.value_bytes
        pieces = 3 * 4 * min(window * model.vocab_size, max(LOG_PROBABILITIES, model.vocab_size))
        logits = window * (model.vocab_size + model.hidden_size) * values + pieces
        return self.weights().total + max(logits, self.prefill_bytes(1, window)) + self._workspace_bytes

    def load_bytes(self) -> int:
        """About what loading and quantizing takes of the host's memory on a CPU."""
        largest = max(linear.weights for linear in self.model.linears)
        return self.backend.load_bytes(self.weights().total, self.model.parameters, largest)

    def decode_tokens_per_s(
        self,
        batch_size: int,
        cached: float,
        bytes_per_s: float,
        flops: float | None = None,
        kv_cache: KVCache = "16bit",
        recent: float = 0.0,
    ) -> float:
        """The roofline: batch_size ÷ the longer of reading and computing a step (Williams et al. 2009, CACM 52(4)).

            reading   = (weights read + cache of `cached` tokens a sequence, see `step_cache_bytes`) ÷ bytes_per_s
            computing = 2 × (weights + attention's products) × batch_size ÷ flops, where flops is known

        No kernel reaches all of it, so this is a ceiling.
        """
        model = self.model
        read = self.weights().read_a_step + self.step_cache_bytes(batch_size, cached, kv_cache, recent)
        step_s = read / bytes_per_s
        if flops:
            attention = 2 * model.num_hidden_layers * model.query_size * cached
            products = model.linear_weights + model.embedding_weights + attention
            step_s = max(step_s, 2 * products * batch_size / flops)
        return batch_size / step_s

    def _quantized(self, kv_cache: Literal["int8", "int4"]) -> QuantizedKeysAndValues:
        return QuantizedKeysAndValues(self.model, kv_cache, self.target.value_bytes)

    @property
    def _workspace_bytes(self) -> int:
        return CUDA_WORKSPACE_BYTES if self.target.device == "cuda" else 0

    @property
    def _joins(self) -> bool:
        """Whether linears that read the same input are one product, whose output lives until all are used."""
        return self.model.family.fused or self.backend.joins_projections

    def _products_bytes(self, tokens: int, rows: tuple[int, ...]) -> int:
        """What products of one input hold while the last of them is computed, outputs included.

        `rows` are the out_features of linears that read the same hidden state: query, key and value, or gate and up.
        """
        hidden, values = self.model.hidden_size, self.target.value_bytes
        at_once = sum(rows) if self._joins else max(rows)
        return sum(rows) * tokens * values + self.backend.product_bytes(at_once, hidden, tokens, self.target)
