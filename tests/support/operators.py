"""What operators are called and what they make while a block runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class ShapesMade(TorchDispatchMode):
    """The shapes of all tensors that operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in returned if isinstance(returned, tuple) else (returned,):
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return returned


class CallsMade(TorchDispatchMode):
    """Every operator with its arguments, tensors by their shapes: what a CUDA graph would capture."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shown = tree_map_only(torch.Tensor, lambda tensor: tuple(tensor.shape), (args, kwargs))
        self.calls.append(f"{func} {shown}")
        return func(*args, **(kwargs or {}))
