"""`QuantLinear`: a linear layer that holds quantized weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from qbench.int4.kernels import Kernel, WeightSpec, choose
from qbench.int4.kernels import kernel as kernel_of
from qbench.int4.quantizer import QuantizedTensor, Search, dequantize, quantize


class QuantLinear(nn.Module):
    """y = x W' + b with W' [out_features, in_features] as integer codes, in the layout of the kernel that multiplies.

    Activations may be float16, bfloat16 or float32. The layout is that of the device the weight was on: move a weight
    first, then make the layer.
    """

    bias: Tensor | None

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None = None, *, kernel: str = "auto") -> None:
        """Repack a weight for a kernel: "auto" for the best there is, or a name of `qbench.int4.kernels`.

        Raises:
            ValueError: the kernel asked for cannot serve this weight here.
        """
        super().__init__()
        self.spec = WeightSpec.of(weight)
        self.kernel_name = choose(self.spec, weight.qweight.device, kernel).name
        self._matmul = self.kernel.matmul  # found now: torch.compile does not trace how
        packed = self.kernel.pack(weight)
        self._names = tuple(packed)
        for name, tensor in packed.items():
            self.register_buffer(name, tensor, persistent=False)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        bits: int = 4,
        group_size: int = 128,
        symmetric: bool = False,
        search: Search = "mse",
        kernel: str = "auto",
        name: str = "weight",
    ) -> QuantLinear:
        """Quantize a linear's weight; its bias is kept as it is. Options are those of `quantize`.

        Raises:
            ValueError: see `quantize` and `QuantLinear`.
        """
        bias = None if linear.bias is None else linear.bias.detach()
        weight = quantize(
            linear.weight.detach(), bits=bits, group_size=group_size, symmetric=symmetric, search=search, name=name
        )
        return cls(weight, bias, kernel=kernel)

    @property
    def kernel(self) -> Kernel:
        """What multiplies."""
        return kernel_of(self.kernel_name)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.spec.in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.spec.out_features

    def packed(self) -> dict[str, Tensor]:
        """The weight as the kernel holds it."""
        # Not `get_buffer`, which looks for a path of modules: every forward comes through here.
        return {name: self._buffers[name] for name in self._names}  # type: ignore[misc]

    def quantized(self) -> QuantizedTensor:
        """The weight in the plain layout, bit for bit as it was given."""
        return self.kernel.unpack(self.packed(), self.spec)

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dequantized weight [out_features, in_features]."""
        return dequantize(self.quantized(), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in the dtype of x."""
        out = self._matmul(x.reshape(-1, self.spec.in_features).contiguous(), self.packed(), self.spec)
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out.view(*x.shape[:-1], self.spec.out_features)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The plain layout, which does not depend on the kernel."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in self.quantized().tensors().items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = self.quantized().tensors()
        if all(prefix + name in state_dict for name in names):
            stored = {name: state_dict.pop(prefix + name).to(tensor.device) for name, tensor in names.items()}
            weight = self.spec.tensor(stored["qweight"], stored["scales"], stored.get("zeros"))
            for name, tensor in self.kernel.pack(weight).items():
                self.register_buffer(name, tensor, persistent=False)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        spec = self.spec
        return (
            f"in_features={spec.in_features}, out_features={spec.out_features}, bits={spec.bits}, "
            f"group_size={spec.group_size}, kernel={self.kernel_name}"
        )


def quantize_model(model: nn.Module, names: Iterable[str], **options: Any) -> None:
    """Replace the named `nn.Linear`s of a model, in place, each freed before the next one is quantized.

    Args:
        options: those of `QuantLinear.from_linear`.

    Raises:
        ValueError: a weight cannot be quantized; the message names it.
    """
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, QuantLinear.from_linear(linear, name=f"{name}.weight", **options))
