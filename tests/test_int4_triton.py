"""The Triton kernels without a GPU, and the sizes they are launched with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.int4 import quantize
from qbench.int4.kernels import WeightSpec, choose, tuning

CHECKS = Path(__file__).parent / "interpreted" / "triton_kernels.py"


@pytest.mark.parametrize("marked", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_the_interpreted_kernels_against_float64(marked: str) -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, str(CHECKS)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def compiled(kernel: Any, dtype: str, capability: int, **constants: int) -> bytes:
    """The machine code of a kernel, by the compiler that a run would use; it needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"words": "*i32", "parts": "*fp32"} | dict.fromkeys(("x", "scales", "zeros", "out"), f"*{dtype}")
    types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32)).asm["cubin"]


OTHER_GPUS = [pytest.param(*of, marks=pytest.mark.long) for of in ((80, "fp16"), (89, "bf16"), (90, "fp16"))]


@pytest.mark.parametrize(("capability", "dtype"), [(90, "bf16"), *OTHER_GPUS])
def test_they_compile_for_gpus(capability: int, dtype: str) -> None:
    """The interpreter takes what the compiler refuses."""
    pytest.importorskip("triton")
    from qbench.int4.kernels import _triton

    for planes in (2, 4, 8):  # groups of 32, of 64, and longer ones
        assert compiled(_triton._gemv, dtype, capability, BM=4, BN=64, GROUP_PLANES=planes)
        assert compiled(_triton._gemm, dtype, capability, BM=16, BN=64, GROUP_PLANES=planes)
    assert compiled(_triton._gemm, dtype, capability, BM=64, BN=64, GROUP_PLANES=8)
    assert compiled(_triton._dequantize, dtype, capability, BN=128)
    assert compiled(_triton._sum_parts, dtype, capability, SPLIT=8, BLOCK_SIZE=1024)


def test_they_are_for_cuda() -> None:
    weight = WeightSpec.of(quantize(torch.randn(32, 128)))
    with pytest.raises(ValueError, match="kernel triton is for CUDA, not cpu"):
        choose(weight, torch.device("cpu"), "triton")


def test_a_table_is_used_for_its_device_and_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = {"4096x4096": {"1": [16, 32, 2, 2, 2], "16": [16, 128, 8, 4, 5]}}
    (tmp_path / "NVIDIA_X.json").write_text(json.dumps(table))
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA X")
    gpu = torch.device("cuda", 7)
    assert tuning.configuration(1, 4096, 4096, gpu) == (16, 32, 2, 2, 2)
    assert tuning.configuration(9, 4096, 4096, gpu) == (16, 128, 8, 4, 5)
    assert tuning.configuration(2, 4096, 4096, gpu) == tuning.rule_of_thumb(2, 4096, 4096)
    assert tuning.configuration(1, 4096, 1024, gpu) == tuning.rule_of_thumb(1, 4096, 1024)


@pytest.mark.parametrize("rows", range(1, 65))
def test_the_rule_of_thumb_fits_the_kernels(rows: int) -> None:
    for shape in ((1, 1), (4096, 4096), (128256, 4096), (4096, 14336)):
        config = tuning.rule_of_thumb(rows, *shape)
        assert config.block_m in (16, 32, 64)
        assert config.block_m >= min(rows, 64)
        assert 1 <= config.split_k <= max(1, -(-shape[1] // 128))
