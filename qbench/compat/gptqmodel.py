"""gptqmodel: what it does to a process that imports it, and what it keeps of a model that it has quantized.

Also the kernels that it compiles, and a faster way to pack AWQ's codes.

Import the library through this module.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import constants

# gptqmodel sets variables at import that would reach everything else in this process: the order of the GPUs, torch's
# allocator, the hub's cache. They are given their usual values first. One CPU worker, its choice on two cores, it
# refuses itself.
VARIABLES = {
    "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    "PYTORCH_ALLOC_CONF": "expandable_segments:False",
    "HF_HOME": constants.HF_HOME,
    "HF_HUB_CACHE": constants.HF_HUB_CACHE,
    "GPTQMODEL_CPU_WORKERS": str(min(12, max(2, (os.cpu_count() or 1) // 2))),
    "GPTQMODEL_OFFLINE": "1",  # else Machete downloads the sources of CUTLASS
}
for _variable, _value in VARIABLES.items():
    os.environ.setdefault(_variable, _value)

import gptqmodel  # noqa: E402
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig, extension  # noqa: E402
from gptqmodel.nn_modules.hooked_linear import STOP_FORWARD_EXCEPTION  # noqa: E402
from gptqmodel.nn_modules.qlinear import BaseQuantLinear  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear  # noqa: E402
from gptqmodel.quantization.awq.utils.packing_utils import AWQ_ORDER, pack_awq  # noqa: E402
from gptqmodel.utils.cpp import TorchOpsJitExtension, detected_cuda_wheel_include_paths  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils import cpp_extension  # noqa: E402

__all__ = [
    "BACKEND",
    "BaseQuantLinear",
    "GPTQModel",
    "QuantizeConfig",
    "compile_extension",
    "compile_seconds",
    "extension_obstacle",
    "is_compiled",
    "let_go",
    "packing_by_rows",
]


def let_go() -> None:
    """Free what gptqmodel keeps after quantizing, which would be measured as memory of the model.

    The traceback of an exception that it raises again and again, and the idle threads with their last task, hold the
    whole 16-bit model and the activations.
    """
    STOP_FORWARD_EXCEPTION.__traceback__ = None
    gptqmodel.get_device_thread_pool().shutdown()
    gptqmodel._DEVICE_THREAD_POOL = None  # a later quantization starts its own
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


CUDA_HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "cusparse.h", "cusolverDn.h")
"""What the sources of its CUDA kernels include; distributions split them into packages."""


def is_compiled(name: str) -> bool:
    """Whether an extension is loaded, or lies compiled for this machine in gptqmodel's cache."""
    found = _extension(name)
    return found._ops_available() or any(file.is_file() for file in found._candidate_binary_paths(found.build_root()))


def extension_obstacle(name: str) -> str | None:
    """Why a CUDA extension that is not compiled cannot be; None if nothing speaks against trying."""
    failed: str = _extension(name).last_error_message()
    if failed:
        return failed.partition("\n")[0]
    home = Path(cpp_extension.CUDA_HOME) if cpp_extension.CUDA_HOME else None
    if home is None or not (home / "bin" / "nvcc").is_file():
        version = f" {torch.version.cuda}" if torch.version.cuda else ""
        return f"there is no nvcc here: install the CUDA toolkit{version}, or set CUDA_HOME"
    folders = [home / "include", *map(Path, detected_cuda_wheel_include_paths())]
    absent = [header for header in CUDA_HEADERS if not any((folder / header).is_file() for folder in folders)]
    if absent:
        return f"{home} lacks {', '.join(absent)}: install the CUDA toolkit's development packages"
    if not cpp_extension.is_ninja_available():
        return "there is no ninja here: pip install ninja"
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler} here: install one, or set CXX"
    return None


def compile_seconds(name: str) -> float:
    """About what compiling takes: twice what it took on gptqmodel's reference machine, and ten minutes if unknown."""
    return 2 * (_extension(name).compile_baseline_seconds or 300)


def compile_extension(name: str) -> str | None:
    """Compile an extension into gptqmodel's cache, and load it; returns the first line of what failed."""
    try:
        extension.load(name)
    except RuntimeError as error:
        return _extension(name).last_error_message().partition("\n")[0] or str(error)
    return None


def _extension(name: str) -> TorchOpsJitExtension:
    found: TorchOpsJitExtension = extension._extension_for_name(name)
    return found


@contextlib.contextmanager
def packing_by_rows() -> Iterator[None]:
    """Within it, AWQ's codes are packed a linear at a time, where gptqmodel 7.6 goes column by column.

    The bits are the same, and the time is a fraction.
    """
    original = AwqTorchLinear.pack
    AwqTorchLinear.pack = _pack
    try:
        yield
    finally:
        AwqTorchLinear.pack = original


def _pack(self: AwqTorchLinear, linear: nn.Linear, scales: Tensor, zeros: Tensor, g_idx: Tensor | None = None) -> None:
    """AWQ's GEMM layout: qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales [groups, out].

    Args:
        linear: weight [out, in], already rounded to the codes.
        scales: [out, groups], like `zeros`.
    """
    kept = scales if scales.dtype in (torch.float16, torch.bfloat16) else scales.half()
    self.register_buffer("scales", kept.t().contiguous())
    if linear.bias is None:
        self.bias = None
    else:
        self.register_buffer("bias", linear.bias.clone().to(_bias_dtype(linear, kept)))
    groups = linear.weight.detach().view(self.out_features, -1, self.group_size)
    codes = ((groups + (zeros * scales)[..., None]) / kept[..., None]).round_().to(torch.int32) & 15
    codes = codes.view(self.out_features // 8, 8, self.in_features)
    words = torch.zeros_like(codes[:, 0])
    for place, row in enumerate(AWQ_ORDER):
        words |= codes[:, row] << 4 * place
    self.register_buffer("qweight", words.t().contiguous())
    by_group = zeros.t().to(torch.int32).contiguous()
    self.register_buffer("qzeros", pack_awq(by_group, by_group, self.bits)[1])


def _bias_dtype(linear: nn.Linear, scales: Tensor) -> torch.dtype:
    return linear.bias.dtype if linear.bias.dtype in (torch.float16, torch.bfloat16) else scales.dtype
