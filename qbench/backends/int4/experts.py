"""Experts as linears: what transformers holds in tensors of three dimensions, expert by expert.

`unstack` puts `LinearExperts` into a model that has no weights yet. From there on experts are linears of blocks as any
other: they are streamed, quantized, joined and placed by their names, `mlp.experts.3.gate_proj`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from qbench.backends.int4.shards import StoredTensor
from qbench.compat.transformers import stacked_experts

GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""The tensors [experts, 2 x inner, hidden] and [experts, hidden, inner]; the gate's rows come first."""

NUMBER = re.compile(r"\.experts\.(\d+)\.")


class Expert(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, hidden: int, inner: int, activation: Callable[[Tensor], Tensor], like: Tensor) -> None:
        super().__init__()
        make = partial(nn.Linear, bias=False, dtype=like.dtype, device=like.device)
        self.gate_proj, self.up_proj, self.down_proj = make(hidden, inner), make(hidden, inner), make(inner, hidden)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, hidden] -> [tokens, hidden]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        out: Tensor = self.down_proj(self.activation(gate) * up)
        return out


class LinearExperts(nn.ModuleList):
    """Takes the place of a module with stacked experts, and is called as that is."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The sum of each token's experts, weighted.

        Args:
            hidden_states: [tokens, hidden].
            top_k_index: int64 [tokens, k]; a number beyond the experts stands for none.
            top_k_weights: [tokens, k].
        """
        out = torch.zeros_like(hidden_states)
        for number in torch.unique(top_k_index).tolist():
            if number < len(self):
                token, place = torch.where(top_k_index == number)
                made = self[number](hidden_states[token]) * top_k_weights[token, place, None]
                out.index_add_(0, token, made.to(out.dtype))
        return out


def unstack(model: nn.Module) -> frozenset[str]:
    """Replace every module of stacked experts by its experts, without weights; their names."""
    names = []
    for name, module in stacked_experts(model):
        experts, hidden, inner = module.down_proj.shape
        like = module.down_proj
        made = (Expert(hidden, inner, module.act_fn, like) for _ in range(experts))
        model.set_submodule(name, LinearExperts(made))
        names.append(name)
    return frozenset(names)


def parts(name: str, position: int | None, stored: StoredTensor) -> Iterator[tuple[str, StoredTensor]]:
    """What a stored tensor is of unstacked experts, by the names of their weights.

    Args:
        name: of the stacked tensor, `….experts.gate_up_proj` or `….experts.down_proj`.
        position: 0 for a gate's and 1 for an up projection, of one expert, in the first of these; None where all
            experts are stored together.
    """
    module, _, leaf = name.rpartition(".")
    leaves = ("gate_proj", "up_proj") if leaf == GATE_UP else ("down_proj",)
    if position is not None:
        found = NUMBER.search(stored.name)
        assert found, f"{stored.name} is one expert's"
        yield f"{module}.{found[1]}.{leaves[position]}.weight", stored
        return
    experts, rows, columns = stored.shape
    rows //= len(leaves)
    step = rows * columns * stored.dtype.itemsize
    for number in range(experts):
        for half, each in enumerate(leaves):
            start = stored.start + (number * len(leaves) + half) * step
            yield f"{module}.{number}.{each}.weight", replace(stored, start=start, shape=torch.Size((rows, columns)))
