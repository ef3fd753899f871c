"""How large a quantized cache is: the formats of `qbench.engine.torch.cache`, by arithmetic. Imports no torch.

A group of g consecutive channels of a head shares a scale and a zero in the compute dtype, so a value takes

    bits + 2 × bits of the compute dtype ÷ g        (g = 64: 8.5 and 4.5 bits)

but for the last tokens, at most `RESIDUAL` - 1, which stand in the compute dtype.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Final, Literal

from qbench import DISTRIBUTION
from qbench.model.architecture import Architecture

BITS: Final = {"int8": 8, "int4": 4}

GROUP: Final = 64
"""Channels that share a scale and a zero: transformers' default."""

FILL_TOKENS: Final = 512
"""Tokens of a sequence that are read at once where a cache is filled before anything is timed."""

RESIDUAL: Final = 128
"""Tokens that stand in the compute dtype before all are quantized again: transformers' default."""

SEARCH_BYTES: Final = {"cpu": 36, "cuda": 22}
"""About what HQQ's search for the zeros holds at once for a value: nine float32 copies, or on CUDA one of them and nine
in float16 (`optimize_weights_proximal_legacy` of hqq 0.2.8)."""

INSTALL: Final = f"pip install '{DISTRIBUTION}[kv]'"


def group_size(heads: int, head_dim: int) -> int:
    """`GROUP`, or what divides a head's channels; halved where a token would have an odd number of groups.

    HQQ packs two 4-bit codes of two groups into a byte.
    """
    size = math.gcd(GROUP, head_dim)
    return size if heads * head_dim // size % 2 == 0 else size // 2


def attended_tokens(prompt: int, new_tokens: int, decode_mode: str = "eager") -> float:
    """Tokens of a sequence whose keys and values a decode step reads, mean over the `new_tokens` - 1 steps.

    Step k reads prompt + k tokens, its own among them; a graph's or a compiled step's cache has one length, and is read
    to its end in every step.
    """
    return prompt + (new_tokens if decode_mode in ("graph", "compiled") else new_tokens / 2)


def recent_tokens(new_tokens: int) -> float:
    """Those of them that a quantized cache holds in the compute dtype, mean over the same steps.

    Step k finds (k - 1) mod `RESIDUAL` of earlier steps and adds its own; when it is the last that has room, everything
    is quantized after it.
    """
    return statistics.fmean(step % RESIDUAL + 1 for step in range(new_tokens - 1))


@dataclass(frozen=True, slots=True)
class QuantizedKeysAndValues:
    """Bytes of a model's quantized cache, for one sequence."""

    model: Architecture
    kind: Literal["int8", "int4"]
    value_bytes: int
    """Of a number of the compute dtype."""

    def held(self, tokens: int, residual: int = 0) -> int:
        """By all layers, for `tokens` tokens of which `residual` are not quantized yet."""
        model = self.model
        values = 2 * model.num_hidden_layers * model.key_value_size
        groups = values // group_size(model.num_key_value_heads, model.head_dim)
        quantized = values * BITS[self.kind] // 8 + 2 * groups * self.value_bytes
        return (tokens - residual) * quantized + residual * values * self.value_bytes

    def quantizing(self, tokens: int, device: Literal["cpu", "cuda"]) -> int:
        """While the keys of one layer are quantized."""
        return tokens * self.model.key_value_size * SEARCH_BYTES[device]

    def step(self, tokens: int, device: Literal["cpu", "cuda"], *, again: bool) -> int:
        """In a decode step: keys and values of one layer, dequantized and copied; `again`: and quantized again."""
        copies = 4 * tokens * self.model.key_value_size * self.value_bytes
        return copies + (self.quantizing(tokens, device) if again else 0)
