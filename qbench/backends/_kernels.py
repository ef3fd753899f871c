"""The kernels of gptqmodel that multiply by the codes of AWQ and GPTQ, and what each of them takes. Imports no torch.

Names are those of gptqmodel's `BACKEND` without the method in front; the tests compare the table with its classes. Not
here are kernels that compute with other weights or activations than the checkpoint's (`torch_int8` rounds to 8 bits a
row, `w4afp8` and `w4a_nvfp4` round activations), and those of machines or libraries that qbench does not run on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qbench.config.target import Target

GroupSize = Literal[32, 64, 128]
"""What the kernels of both methods run on every device. Others can be packed, and then fail in the first forward."""

COMPUTES_ON = {"cpu": "a CPU", "cuda": "a CUDA device"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """What one kernel takes, as gptqmodel 7.6 declares it."""

    devices: tuple[str, ...] = ("cuda",)
    group_sizes: tuple[int, ...] = (32, 64, 128)
    symmetric_only: bool = False
    dtypes: tuple[str, ...] = ("float16", "bfloat16")
    oldest: tuple[int, int] = (0, 0)
    """The lowest compute capability."""
    newest: tuple[int, int] = (99, 0)
    extensions: Mapping[str, str] = field(default_factory=dict)
    """By dtype, what gptqmodel compiles at the first use and keeps; its own name, see `gptqmodel.extension`."""
    module: str | None = None
    """A library that it is written in."""
    dequantizes: bool = True
    """Whether its product holds the whole weight in 16 bits for a while."""

    def lacks_of_scheme(self, group_size: int, *, symmetric: bool) -> str | None:
        """What the codes would have to be; None if it takes them."""
        if self.symmetric_only and not symmetric:
            return "sym: true"
        if group_size not in self.group_sizes:
            return f"group_size {_either([str(size) for size in self.group_sizes])}"
        return None

    def lacks_of_target(self, target: Target) -> str | None:
        """What the device or dtype would have to be; None if it takes them, or as far as they are not known."""
        if target.device not in self.devices:
            return _either([COMPUTES_ON[device] for device in self.devices])
        if target.dtype and target.dtype not in self.dtypes:
            return f"dtype {_either(list(self.dtypes))}"
        if target.capability and not self.oldest <= target.capability <= self.newest:
            wanted = "exactly" if self.oldest == self.newest else "at least"
            asked, found = (".".join(map(str, capability)) for capability in (self.oldest, target.capability))
            return f"compute capability {wanted} {asked}, and this GPU has {found}"
        return None


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _by_dtype(name: str) -> dict[str, str]:
    return {"float16": name, "bfloat16": name}


MARLIN = {"float16": "marlin_fp16", "bfloat16": "marlin_bf16"}
HOPPER = (9, 0)

COMMON = {
    "torch_fused": Kernel(devices=("cpu",), dtypes=("float32", "float16", "bfloat16")),
    "torch_aten": Kernel(devices=("cpu",), dequantizes=False),
    "torch": Kernel(devices=("cpu", "cuda")),
}

GPTQ: Mapping[str, Kernel] = {
    "marlin": Kernel(symmetric_only=True, oldest=(8, 0), extensions=MARLIN, dequantizes=False),
    "machete": Kernel(
        group_sizes=(64, 128), oldest=HOPPER, newest=HOPPER, extensions=_by_dtype("machete"), dequantizes=False
    ),
    "exllama_v2": Kernel(extensions=_by_dtype("exllamav2")),
    "triton": Kernel(module="triton"),
    **COMMON,
}

AWQ: Mapping[str, Kernel] = {
    "marlin": Kernel(oldest=(8, 0), extensions=MARLIN, dequantizes=False),
    "machete": Kernel(oldest=HOPPER, newest=HOPPER, extensions=_by_dtype("machete"), dequantizes=False),
    "exllama_v2": Kernel(extensions=_by_dtype("exllamav2_awq")),
    "gemm": Kernel(extensions=_by_dtype("awq")),
    "gemm_triton": Kernel(dtypes=("float16",), module="triton"),
    **COMMON,
}

AUTO_ON_CUDA = ("marlin", "triton", "gemm_triton", "torch")
"""What `auto` takes there: the first that serves. On a CPU it is left to gptqmodel, which compiles nothing for one."""


def choices(kernels: Mapping[str, Kernel], group_size: int, *, symmetric: bool, target: Target | None) -> list[str]:
    """The kernels that take these codes and, where it is known, this target."""
    return [
        name
        for name, kernel in kernels.items()
        if not kernel.lacks_of_scheme(group_size, symmetric=symmetric)
        and not (target and kernel.lacks_of_target(target))
    ]


def refusal(
    kernels: Mapping[str, Kernel], asked: str, group_size: int, *, symmetric: bool, target: Target | None = None
) -> str | None:
    """Why a kernel, or `auto`, cannot multiply, and what can; None if nothing that is known speaks against it."""
    possible = choices(kernels, group_size, symmetric=symmetric, target=target)
    if asked == "auto":
        return None if possible else "kernel: none computes in float32 on a CUDA device; use dtype float16 or bfloat16"
    kernel = kernels[asked]
    lacks = kernel.lacks_of_scheme(group_size, symmetric=symmetric)
    lacks = lacks or (kernel.lacks_of_target(target) if target else None)
    if lacks is None:
        return None
    remedy = f"choose {_either(['auto', *possible])}" if possible else "use another dtype"
    return f"kernel: {asked} needs {lacks}; {remedy}"
