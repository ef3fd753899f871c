"""How large llama.cpp's weights are: which type it gives each tensor of a Llama-like model, by arithmetic.

A `quant` is the name of a mixture of types (`llama_ftype`): Q4_K_M stores most linears in Q4_K and some in Q6_K. What
stands here is true of llama.cpp as of 2026 without an importance matrix (`llama_tensor_get_type_impl` in
`src/llama-quant.cpp`, block sizes in `ggml/src/ggml-common.h`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from qbench.model.architecture import Architecture

Quant = Literal[
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ3_S", "IQ3_M", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M",
    "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16",
]  # fmt: skip
"""The mixtures that need no importance matrix, smallest first within a width."""

QUANTS: tuple[Quant, ...] = get_args(Quant)

BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "IQ4_NL": (32, 18),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ3_S": (256, 110), "IQ4_XS": (256, 136),
}  # fmt: skip
"""Weights and bytes of a block, by type: codes with their scales, and minima where the type has them."""

FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
}  # fmt: skip
"""Types for rows that are no multiple of 256 weights."""

Role = Literal["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]

ROLES: tuple[Role, ...] = get_args(Role)
"""The linears of a block, by GGUF's names of their tensors."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A block among the others."""

    number: int
    count: int
    shared: int
    """Query heads that read the same keys."""

    @property
    def sensitive(self) -> bool:
        """The first and the last eighth, and every third one between them: `use_more_bits`."""
        eighth, last = self.count // 8, 7 * self.count // 8
        return self.number < eighth or self.number >= last or (self.number - eighth) % 3 == 2

    def among_first(self, share: int) -> bool:
        """Whether it is in the first 1 / `share` of them."""
        return self.number < self.count // share


Rule = Callable[[Layer], str]


def _all(kind: str) -> Rule:
    return lambda layer: kind


def _if(condition: Callable[[Layer], bool], kind: str, otherwise: str) -> Rule:
    return lambda layer: kind if condition(layer) else otherwise


def _sensitive(layer: Layer) -> bool:
    return layer.sensitive


def _grouped(layer: Layer) -> bool:
    return layer.shared >= 4


def _first(share: int) -> Callable[[Layer], bool]:
    return lambda layer: layer.among_first(share)


def _below(number: int) -> Callable[[Layer], bool]:
    return lambda layer: layer.number < number


BASE: dict[Quant, str] = {
    "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "IQ3_M": "IQ3_S", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K",
}  # fmt: skip
"""The type of most linears, where it is not called like the mixture."""

EXCEPTIONS: dict[Quant, dict[Role, Rule]] = {
    "Q2_K": {"attn_v": _if(_grouped, "Q4_K", "Q3_K"), "attn_output": _all("Q3_K"), "ffn_down": _all("Q3_K")},
    "Q3_K_M": {
        "attn_v": _if(_below(2), "Q5_K", "Q4_K"),
        "attn_output": _all("Q4_K"),
        "ffn_down": _if(_first(16), "Q5_K", "Q4_K"),
    },
    "Q3_K_L": {role: _all("Q5_K") for role in ("attn_v", "attn_output", "ffn_down")},
    "IQ3_S": {"attn_v": _if(_grouped, "Q4_K", "IQ3_S")},
    "IQ3_M": {"attn_v": _all("Q4_K"), "attn_output": _all("Q4_K"), "ffn_down": _if(_first(8), "Q4_K", "IQ3_S")},
    "IQ4_NL": {"attn_v": _if(_grouped, "Q5_K", "IQ4_NL"), "ffn_down": _if(_first(8), "Q5_K", "IQ4_NL")},
    "IQ4_XS": {"attn_v": _if(_grouped, "Q5_K", "IQ4_XS"), "ffn_down": _if(_first(8), "Q5_K", "IQ4_XS")},
    "Q4_K_S": {"attn_v": _if(_below(4), "Q5_K", "Q4_K"), "ffn_down": _if(_first(8), "Q5_K", "Q4_K")},
    "Q4_K_M": {role: _if(_sensitive, "Q6_K", "Q4_K") for role in ("attn_v", "ffn_down")},
    "Q5_K_M": {role: _if(_sensitive, "Q6_K", "Q5_K") for role in ("attn_v", "ffn_down")},
}
"""Linears that the mixture stores otherwise."""


def bits(quant: Quant) -> int:
    """Nominal bits of a weight's code: the first number in the name."""
    return int("".join(filter(str.isdigit, quant.split("_")[0])))


def linears_bytes(model: Architecture, quant: Quant) -> int:
    """Bytes of the linears of attention and MLP."""
    hidden, inner, query, key = model.hidden_size, model.intermediate_size, model.query_size, model.key_value_size
    shapes: dict[Role, tuple[int, int]] = {
        "attn_q": (query, hidden), "attn_k": (key, hidden), "attn_v": (key, hidden), "attn_output": (hidden, query),
        "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
    }  # fmt: skip
    count = model.num_hidden_layers
    layers = [Layer(number, count, model.num_attention_heads // model.num_key_value_heads) for number in range(count)]
    return sum(
        _bytes(_fitting(_type(quant, role, layer), in_features), out_features * in_features)
        for layer in layers
        for role, (out_features, in_features) in shapes.items()
    )


def embedding_bytes(model: Architecture, quant: Quant) -> int:
    """Bytes of the input embedding; where it is the output embedding, too, it is stored as that is."""
    kind = _head_type(model, quant) if model.tied else _fitting(_base(quant), model.hidden_size)
    return _bytes(kind, model.embedding_weights)


def head_bytes(model: Architecture, quant: Quant) -> int:
    """Bytes of an output embedding of its own; 0 where it is the input embedding."""
    return 0 if model.tied else _bytes(_head_type(model, quant), model.embedding_weights)


def other_bytes(model: Architecture) -> int:
    """Bytes of norms and biases, which are float32."""
    return 4 * model.other_weights


def _base(quant: Quant) -> str:
    return BASE.get(quant, quant)


def _type(quant: Quant, role: Role, layer: Layer) -> str:
    rule = EXCEPTIONS.get(quant, {}).get(role)
    return rule(layer) if rule else _base(quant)


def _head_type(model: Architecture, quant: Quant) -> str:
    base = _base(quant)
    if base in ("F16", "BF16", "Q8_0"):
        return base
    fits = model.hidden_size % BLOCKS[base][0] == 0
    return _fitting("Q6_K", model.hidden_size) if fits else "Q8_0"


def _fitting(kind: str, row: int) -> str:
    """The type, or what llama.cpp takes for rows of a length that is no multiple of its block."""
    for candidate in (kind, FALLBACKS.get(kind, kind)):
        if row % BLOCKS[candidate][0] == 0:
            return candidate
    return "F16"


def _bytes(kind: str, weights: int) -> int:
    block, size = BLOCKS[kind]
    return weights // block * size
