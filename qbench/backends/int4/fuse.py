"""One product for linears that read the same input: query, key and value, gate and up.

A decode step's linears are small; one call for three of them, and one wider weight to stream, is faster than three. The
model's own code stays as it is: it calls each linear in turn, the first of them computes them all, and the others hand
out what is theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qbench.int4.linear import QuantLinear
from qbench.int4.native import give_back
from qbench.int4.quantizer import PER_TENSOR, QuantizedTensor

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of linears that a block calls with the same input, in this order."""


class Joined:
    """A linear whose rows belong to several, and the results that wait to be asked for."""

    def __init__(self, linear: QuantLinear, sizes: list[int]) -> None:
        self.linear = linear
        self._sizes = sizes
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def part(self, x: Tensor, index: int) -> Tensor:
        """What linear `index` makes of x [..., in_features]: [..., its out_features], a view.

        Another input than before, or a part that was taken, is computed anew. x must not be written to between the
        calls of one block.
        """
        if x is not self._input or index not in self._waiting:
            self._input = x
            self._waiting = dict(enumerate(self.linear(x).split(self._sizes, dim=-1)))
        out = self._waiting.pop(index)
        if not self._waiting:
            self._input = None
        return out


class JoinedLinear(nn.Module):
    """One of the linears of a `Joined`. The first of them owns the weight."""

    def __init__(self, joined: Joined, index: int, spec: tuple[int, int]) -> None:
        super().__init__()
        self.out_features, self.in_features = spec
        self._joined, self._index = joined, index
        if index == 0:
            self.weight_of_all = joined.linear

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in the dtype of x."""
        return self._joined.part(x, self._index)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, part={self._index}"


def join(model: nn.Module, weights: dict[str, QuantizedTensor], *, kernel: str = "auto") -> None:
    """Put siblings among the quantized weights into the model as joined linears, and take them out of `weights`.

    Raises:
        ValueError: the kernel cannot serve one of them.
    """
    for names in _groups(weights):
        linears = [model.get_submodule(name) for name in names]
        sizes = [weights[name].shape[0] for name in names]
        # Each layout is gone before the next group's is made.
        joined = Joined(
            QuantLinear(_concatenated([weights.pop(n) for n in names]), _bias(linears), kernel=kernel), sizes
        )
        for index, name in enumerate(names):
            model.set_submodule(name, JoinedLinear(joined, index, (sizes[index], joined.linear.in_features)))
        give_back()


def _groups(weights: dict[str, QuantizedTensor]) -> list[tuple[str, ...]]:
    """Names of siblings that can share a product."""
    groups = []
    for first in list(weights):
        parent, _, leaf = first.rpartition(".")
        leaves = next((leaves for leaves in SIBLINGS if leaves[0] == leaf), ())
        names = tuple(f"{parent}.{leaf}" for leaf in leaves)
        if names and all(name in weights for name in names) and _alike([weights[name] for name in names]):
            groups.append(names)
    return groups


def _alike(parts: list[QuantizedTensor]) -> bool:
    kinds = {(q.shape[1], q.bits, q.group_size, q.zeros is None, q.scales.dtype) for q in parts}
    return len(kinds) == 1 and parts[0].group_size != PER_TENSOR


def _concatenated(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """The rows of all parts."""
    first = parts[0]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return QuantizedTensor(
        torch.cat([part.qweight for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
        torch.Size((sum(part.shape[0] for part in parts), first.shape[1])),
        first.bits,
        first.group_size,
    )


def _bias(linears: list[nn.Module]) -> Tensor | None:
    """The biases of all linears, zeros for one without; None where none has one."""
    biases = [linear.bias for linear in linears if isinstance(linear, nn.Linear)]
    given = next((bias for bias in biases if bias is not None), None)
    if given is None:
        return None
    rows = [linear.out_features for linear in linears if isinstance(linear, nn.Linear)]
    return torch.cat(
        [given.new_zeros(n) if bias is None else bias.detach() for bias, n in zip(biases, rows, strict=True)]
    )
