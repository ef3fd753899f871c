"""How large llama.cpp's weights are: which type it gives each tensor of a Llama-like model, by arithmetic.

A `quant` is the name of a mixture of types (`llama_ftype`): Q4_K_M stores most linears in Q4_K and some in Q6_K. Some
mixtures are others with an importance matrix. What stands here is true of llama.cpp as of 2026
(`llama_tensor_get_type_impl` in `src/llama-quant.cpp`, block sizes in `ggml/src/ggml-common.h`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from qbench.model.architecture import Architecture

DataFreeQuant = Literal[
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ3_S", "IQ3_M", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M",
    "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0", "F16", "BF16",
]  # fmt: skip
"""The mixtures that need no importance matrix, smallest first within a width."""

ImatrixQuant = Literal[
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "IQ3_XXS", "IQ3_XS",
]  # fmt: skip
"""Those that llama.cpp makes with an importance matrix only, since some of their types need one."""

Quant = Literal[ImatrixQuant, DataFreeQuant]

IMATRIX_QUANTS: tuple[ImatrixQuant, ...] = get_args(ImatrixQuant)
QUANTS: tuple[Quant, ...] = get_args(Quant)

BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "IQ4_NL": (32, 18),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_XS": (256, 136),
}  # fmt: skip
"""Weights and bytes of a block, by type: codes with their scales, and minima where the type has them."""

FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    **{kind: "IQ4_NL" for kind in BLOCKS if kind.startswith("IQ")},
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


def _inner(layer: Layer) -> bool:
    """Neither in the first nor in the last eighth."""
    return layer.count // 8 <= layer.number < 7 * layer.count // 8


BASE: dict[Quant, str] = {
    "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "IQ3_M": "IQ3_S", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "Q2_K_S": "Q2_K", "IQ3_XS": "IQ3_S",
}  # fmt: skip
"""The type of most linears, where it is not called like the mixture."""

_IQ2_XS: dict[Role, Rule] = {"attn_v": _if(_grouped, "Q4_K", "Q2_K")}
_IQ2_M: dict[Role, Rule] = {"attn_v": _if(_grouped, "Q4_K", "IQ3_S"), "attn_output": _all("IQ3_S")}

EXCEPTIONS: dict[Quant, dict[Role, Rule]] = {
    **{
        quant: {**_IQ2_XS, "attn_output": _all("IQ2_XXS"), "ffn_down": _if(_first(8), "Q2_K", quant)}
        for quant in ("IQ1_S", "IQ1_M")
    },
    **{quant: {**_IQ2_XS, "ffn_down": _if(_first(8), "Q2_K", quant)} for quant in ("IQ2_XXS", "IQ2_XS")},
    "IQ2_S": {**_IQ2_M, "ffn_down": _if(_first(8), "IQ3_S", "IQ2_XS")},
    "IQ2_M": {**_IQ2_M, "ffn_down": _if(_first(8), "IQ3_S", "IQ2_S")},
    "Q2_K_S": {"attn_v": _if(_grouped, "Q4_K", "Q2_K"), "ffn_down": _if(_first(8), "Q4_K", "Q2_K")},
    "IQ3_XXS": {
        "attn_q": _all("IQ2_S"),
        "attn_k": _all("IQ2_S"),
        "attn_v": _if(_grouped, "Q4_K", "IQ3_XXS"),
        "attn_output": _all("IQ3_S"),
    },
    "IQ3_XS": {
        "attn_q": _all("IQ3_XXS"),
        "attn_k": _all("IQ3_XXS"),
        "attn_v": _if(_grouped, "Q4_K", "IQ3_S"),
        "ffn_gate": _if(_inner, "IQ3_XXS", "IQ3_S"),
        "ffn_up": _if(_inner, "IQ3_XXS", "IQ3_S"),
    },
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

IMATRIX_EXCEPTIONS: dict[Quant, dict[Role, Rule]] = {
    "Q4_0": {"ffn_down": _if(_first(8), "Q4_1", "Q4_0")},
    "Q5_0": {"ffn_down": _if(_first(8), "Q5_1", "Q5_0")},
    "IQ4_NL": {"ffn_down": _all("IQ4_NL")},
    "IQ4_XS": {"ffn_down": _all("IQ4_XS")},
}
"""What else an importance matrix changes."""

EMBEDDINGS: dict[Quant, str] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
}
"""The type of an input embedding that is not the output embedding, too, where it is not that of most linears."""

Q5_HEADS: tuple[Quant, ...] = tuple(EMBEDDINGS)
"""Their output embedding is in Q5_K, that of others in Q6_K."""


def bits(quant: Quant) -> int:
    """Nominal bits of a weight's code: the first number in the name."""
    return int("".join(filter(str.isdigit, quant.split("_")[0])))


def linears_bytes(model: Architecture, quant: Quant, *, imatrix: bool) -> int:
    """Bytes of the linears of attention and MLP, made with an importance matrix or without."""
    hidden, inner, query, key = model.hidden_size, model.intermediate_size, model.query_size, model.key_value_size
    shapes: dict[Role, tuple[int, int]] = {
        "attn_q": (query, hidden), "attn_k": (key, hidden), "attn_v": (key, hidden), "attn_output": (hidden, query),
        "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
    }  # fmt: skip
    count = model.num_hidden_layers
    layers = [Layer(number, count, model.num_attention_heads // model.num_key_value_heads) for number in range(count)]
    return sum(
        _bytes(_fitting(_type(quant, role, layer, imatrix), in_features), out_features * in_features)
        for layer in layers
        for role, (out_features, in_features) in shapes.items()
    )


def embedding_bytes(model: Architecture, quant: Quant) -> int:
    """Bytes of the input embedding; where it is the output embedding, too, it is stored as that is."""
    kind = _head_type(model, quant) if model.tied else _fitting(EMBEDDINGS.get(quant, _base(quant)), model.hidden_size)
    return _bytes(kind, model.embedding_weights)


def head_bytes(model: Architecture, quant: Quant) -> int:
    """Bytes of an output embedding of its own; 0 where it is the input embedding."""
    return 0 if model.tied else _bytes(_head_type(model, quant), model.embedding_weights)


def other_bytes(model: Architecture) -> int:
    """Bytes of norms and biases, which are float32."""
    return 4 * model.other_weights


def _base(quant: Quant) -> str:
    return BASE.get(quant, quant)


def _type(quant: Quant, role: Role, layer: Layer, imatrix: bool) -> str:
    tables = (IMATRIX_EXCEPTIONS, EXCEPTIONS) if imatrix else (EXCEPTIONS,)
    rule = next((rules[quant][role] for rules in tables if role in rules.get(quant, {})), None)
    return rule(layer) if rule else _base(quant)


def _head_type(model: Architecture, quant: Quant) -> str:
    base = _base(quant)
    if base in ("F16", "BF16", "Q8_0"):
        return base
    fits = model.hidden_size % BLOCKS[base][0] == 0
    return _fitting("Q5_K" if quant in Q5_HEADS else "Q6_K", model.hidden_size) if fits else "Q8_0"


def _fitting(kind: str, row: int) -> str:
    """The type, or what llama.cpp takes for rows of a length that is no multiple of its block."""
    for candidate in (kind, FALLBACKS.get(kind, kind)):
        if row % BLOCKS[candidate][0] == 0:
            return candidate
    return "F16"


def _bytes(kind: str, weights: int) -> int:
    block, size = BLOCKS[kind]
    return weights // block * size
