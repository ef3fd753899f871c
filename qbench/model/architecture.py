"""The dimensions of a model, from its config.json alone: no weights, no torch, no network.

Known are the families of `FAMILIES`: decoders of equal blocks with rotary positions, RMS norms, grouped-query attention
and a gated MLP. Of others nothing is said rather than something wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qbench.config import ModelConfig
from qbench.errors import QbenchError
from qbench.model.find import known_config


@dataclass(frozen=True, slots=True)
class Family:
    """In what the blocks of a `model_type` differ from Llama's, as transformers builds them."""

    qkv_bias: Literal["config", "always", "never"] = "config"
    """config: q, k, v and o have biases where `attention_bias` is true; always: q, k and v have."""
    mlp_bias: bool = False
    """Whether `mlp_bias` is looked at."""
    head_norms: bool = False
    """Norms of head_dim weights over query and key."""
    fused: bool = False
    """q, k and v are one linear in the checkpoint, gate and up another."""
    head_dim: int | None = None
    """Where the config leaves it out; hidden_size / heads if None."""
    tied: bool = False
    """`tie_word_embeddings` where the config leaves it out."""


FAMILIES = {
    "llama": Family(mlp_bias=True),
    "mistral": Family(qkv_bias="never"),
    "qwen2": Family(qkv_bias="always"),
    "qwen3": Family(head_norms=True, head_dim=128),
    "phi3": Family(qkv_bias="never", fused=True),
    "gemma": Family(head_dim=256, tied=True),
    "granite": Family(mlp_bias=True),
}
"""By `model_type`."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear of a block."""

    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        """out_features × in_features."""
        return self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder's dimensions, named as config.json names them."""

    model_type: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int | None
    tied: bool
    """The output embedding is the input embedding."""
    attention_bias: bool
    """q, k and v have biases."""
    output_bias: bool
    """o has one."""
    mlp_bias: bool

    @property
    def family(self) -> Family:
        """What its `model_type` says of it."""
        return FAMILIES[self.model_type]

    @property
    def query_size(self) -> int:
        """Outputs of q_proj."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Outputs of k_proj, and of v_proj."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Those of one block, as modules."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.query_size, self.key_value_size
        ends = (Linear(hidden, query), Linear(hidden, inner))
        if self.family.fused:
            return (Linear(query + 2 * key, hidden), Linear(2 * inner, hidden), *ends)
        return (*(Linear(rows, hidden) for rows in (query, key, key, inner, inner)), *ends)

    @property
    def linear_weights(self) -> int:
        """Weights of all linears of attention and MLP: what a backend quantizes."""
        return self.num_hidden_layers * sum(linear.weights for linear in self.linears)

    @property
    def embedding_weights(self) -> int:
        """Weights of the input embedding; the output embedding has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def other_weights(self) -> int:
        """Weights of norms and biases."""
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.family.head_norms else 0)
        biases = 0
        if self.attention_bias:
            biases += self.query_size + 2 * self.key_value_size
        if self.output_bias:
            biases += self.hidden_size
        if self.mlp_bias:
            biases += 2 * self.intermediate_size + self.hidden_size
        return self.num_hidden_layers * (norms + biases) + self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights, a tied embedding counted once."""
        return self.linear_weights + (1 if self.tied else 2) * self.embedding_weights + self.other_weights


def of_model(model: ModelConfig) -> Architecture:
    """The architecture of a configured model, if its config.json is here: see `qbench.model.find.known_config`.

    Raises:
        QbenchError: there is none here, or it is of another architecture.
    """
    found = known_config(model)
    if found is None:
        raise QbenchError(
            f"model.id: what {model.id} looks like is known neither from a shipped shape nor from the hub's local "
            f"cache; fetch it with `hf download {model.id} config.json`, or give a folder as model.path"
        )
    return parse(found, model.name)


def parse(content: Mapping[str, Any], name: str) -> Architecture:
    """The architecture that a config.json describes; `name` is the model's, for messages.

    Raises:
        QbenchError: it is none of `FAMILIES`, or a dimension is missing.
    """
    model_type = str(content.get("model_type"))
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        raise QbenchError(f"{name}: memory and speed of model_type {model_type} cannot be predicted (known: {known})")

    def size(key: str, otherwise: int | None = None) -> int:
        value = content.get(key)
        value = otherwise if value is None else value
        if type(value) is not int or value < 1:
            raise QbenchError(f"{name}: config.json has no usable {key} ({value!r})")
        return value

    heads, hidden = size("num_attention_heads"), size("hidden_size")
    biased = family.qkv_bias == "config" and bool(content.get("attention_bias"))
    tied = content.get("tie_word_embeddings")
    return Architecture(
        model_type=model_type,
        num_hidden_layers=size("num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=size("intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", family.head_dim or hidden // heads),
        vocab_size=size("vocab_size"),
        max_position_embeddings=content.get("max_position_embeddings"),
        tied=family.tied if tied is None else bool(tied),
        attention_bias=biased or family.qkv_bias == "always",
        output_bias=biased,
        mlp_bias=family.mlp_bias and bool(content.get("mlp_bias")),
    )


def rope_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's parameters, in the names of transformers 5 wherever a config.json has them."""
    old = content.get("rope_scaling") or {}
    rope = {"rope_theta": content.get("rope_theta", 10000.0), **old, **(content.get("rope_parameters") or {})}
    return {**rope, "rope_type": rope.get("rope_type") or rope.get("type") or "default"}
