"""Which of gptqmodel's kernels multiplies: what each takes, what `auto` chooses, and when one is compiled."""

import contextlib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

if find_spec("gptqmodel") is None:  # not pytest.importorskip: importing it is for the backend, which prepares for it
    pytest.skip("gptqmodel is not installed", allow_module_level=True)

from qbench.backends import _gptqmodel, _selection
from qbench.backends._calibrated import Calibrated
from qbench.backends.awq import AWQ
from qbench.backends.gptq import GPTQ
from qbench.compat import gptqmodel as compat
from qbench.config.load import check
from qbench.config.target import Target
from qbench.errors import QbenchError, UnavailableError, describe_fault
from qbench.machine import environment
from qbench.model.load import LoadOptions
from qbench.plan import cells
from tests.support.runs import run_config

METHODS = {"gptq": ("gptq", GPTQ), "awq": ("gemm", AWQ)}
"""The format that each method writes, by gptqmodel's name, and its options."""

LEFT_OUT = {"torch_int8", "w4afp8", "w4a_nvfp4", "swordfish", "bitblas", "mlx"}
"""They round more than the checkpoint, or need a device or a library that qbench does not run on."""

CUDA = torch.device("cuda", 0)


def options(device: torch.device = CUDA, dtype: torch.dtype = torch.float16) -> LoadOptions:
    return LoadOptions(folder=Path(), device=device, dtype=dtype, work=Path())


@pytest.mark.parametrize("method", METHODS)
def test_the_table_is_what_gptqmodel_declares(method: str) -> None:
    from gptqmodel.quantization import FORMAT, METHOD
    from gptqmodel.utils.importer import BACKEND_TO_METHOD_FORMAT_MAPPING, get_kernel_for_backend

    written, config = METHODS[method]
    backends = BACKEND_TO_METHOD_FORMAT_MAPPING[METHOD(method)][FORMAT(written)]
    names = {backend.value.removeprefix(f"{method}_"): backend for backend in backends}
    assert set(config.kernels) == set(names) - LEFT_OUT
    assert set(config.kernels) | {"auto"} == set(config.model_fields["kernel"].annotation.__args__)
    for name, kernel in config.kernels.items():
        theirs = get_kernel_for_backend(names[name], METHOD(method), FORMAT(written))
        devices = {device.value for device in theirs.SUPPORTS_DEVICES}
        assert set(kernel.devices) == ({"cpu", "cuda"} if "all" in devices else devices & {"cpu", "cuda"})
        assert set(kernel.group_sizes) == set(theirs.SUPPORTS_GROUP_SIZE) & {32, 64, 128}
        assert kernel.symmetric_only == (False not in theirs.SUPPORTS_SYM)
        assert set(kernel.dtypes) == {str(dtype).removeprefix("torch.") for dtype in theirs.SUPPORTS_DTYPES}
        assert 4 in theirs.SUPPORTS_BITS
        assert set(theirs.SUPPORTS_DESC_ACT) >= ({True, False} if method == "gptq" else {False})
        for extension in kernel.extensions.values():
            assert compat.extension._extension_for_name(extension).requires_cuda


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (
            {"kind": "gptq", "kernel": "marlin", "sym": False},
            "marlin needs sym: true; choose auto, machete, exllama_v2, triton, torch_fused, torch_aten or torch",
        ),
        ({"kind": "gptq", "kernel": "machete", "group_size": 32}, "kernel: machete needs group_size 64 or 128; choose"),
        ({"kind": "awq", "kernel": "triton"}, "'gemm_triton'"),
        ({"kind": "awq", "group_size": 96}, "32, 64 or 128"),
    ],
)
def test_codes_that_a_kernel_does_not_take_are_refused_by_the_configuration(
    backend: dict[str, Any], words: str
) -> None:
    with pytest.raises(QbenchError) as caught:
        check({"name": "r", "model": {"demo": True}, "backends": [backend]}, "r.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "gpu", "dtype", "words"),
    [
        (
            {"kind": "awq", "kernel": "marlin"},
            None,
            "auto",
            "needs a CUDA device; choose auto, torch_fused, torch",
        ),
        ({"kind": "gptq", "kernel": "torch_aten"}, (9, 0), "auto", "needs a CPU; choose auto, marlin, machete"),
        (
            {"kind": "gptq", "kernel": "marlin"},
            (7, 5),
            "auto",
            "at least 8.0, and this GPU has 7.5; choose auto",
        ),
        (
            {"kind": "gptq", "kernel": "machete"},
            (10, 0),
            "auto",
            "exactly 9.0, and this GPU has 10.0; choose",
        ),
        ({"kind": "awq", "kernel": "gemm_triton"}, (9, 0), "bfloat16", "needs dtype float16; choose auto, marlin"),
        (
            {"kind": "awq", "kernel": "torch"},
            None,
            "float32",
            "float16 or bfloat16; choose auto or torch_fused",
        ),
        (
            {"kind": "awq"},
            (9, 0),
            "float32",
            "none computes in float32 on a CUDA device; use dtype",
        ),
    ],
)
def test_what_a_device_rules_out_is_refused_before_anything_is_loaded(
    backend: dict[str, Any], gpu: tuple[int, int] | None, dtype: str, words: str
) -> None:
    gpus = (environment.GPU(name="x", memory_bytes=1, capability=gpu),) if gpu else ()
    machine = environment.detect().model_copy(update={"gpus": gpus})
    with pytest.raises(QbenchError) as caught:
        cells.preflight(run_config(backends=[backend], dtype=dtype), machine)
    assert f"backends.{backend['kind']}.kernel: " in str(caught.value)
    assert words in str(caught.value)


class Machine:
    """A CUDA device and a compiler that are not here: the border to both, as `_selection` sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capability = (9, 0)
        self.lacks: str | None = None
        self.fails: str | None = None
        self.compiled: list[str] = []
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: self.capability)
        monkeypatch.setattr(_selection, "is_compiled", lambda name: name in self.compiled)
        monkeypatch.setattr(_selection, "extension_obstacle", lambda _: self.lacks)
        monkeypatch.setattr(_selection, "compile_extension", self._compile)

    def _compile(self, name: str) -> str | None:
        if self.fails is None:
            self.compiled.append(name)
        self.lacks = self.fails
        return self.fails


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("config", "dtype", "capability", "lacks", "expected"),
    [
        (GPTQ(), torch.float16, (9, 0), None, "marlin"),
        (AWQ(), torch.bfloat16, (8, 0), None, "marlin"),
        (GPTQ(), torch.float16, (9, 0), "no nvcc", "triton"),
        (GPTQ(sym=False), torch.float16, (9, 0), None, "triton"),
        (GPTQ(), torch.float16, (7, 5), None, "triton"),
        (AWQ(), torch.float16, (9, 0), "no nvcc", "gemm_triton"),
        (AWQ(), torch.bfloat16, (9, 0), "no nvcc", "torch"),  # gemm_triton would compute in float16
    ],
)
def test_auto_on_cuda_is_marlin_where_it_can_be_compiled_and_else_triton(
    machine: Machine, config: Calibrated, dtype: torch.dtype, capability: tuple[int, int], lacks: str, expected: str
) -> None:
    machine.capability, machine.lacks = capability, lacks
    assert _selection.choose(options(dtype=dtype), config) == expected


def test_auto_on_a_cpu_is_left_to_gptqmodel() -> None:
    assert _selection.choose(options(torch.device("cpu")), GPTQ()) == "auto"
    assert _gptqmodel._backend("auto", _gptqmodel.Method("gptq", "gptq", None, {})) == compat.BACKEND.AUTO


@pytest.mark.parametrize(
    ("config", "dtype", "extension"),
    [
        (AWQ(), torch.float16, "marlin_fp16"),
        (GPTQ(), torch.bfloat16, "marlin_bf16"),
        (GPTQ(kernel="exllama_v2"), torch.float16, "exllamav2"),
        (AWQ(kernel="gemm"), torch.float16, "awq"),
    ],
)
def test_a_kernel_is_compiled_once_and_the_user_is_told(
    machine: Machine, config: Calibrated, dtype: torch.dtype, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_selection, "STEP_S", 0)
    compile_it = machine._compile

    def slowly(name: str) -> str | None:
        while not told:  # until progress has been reported once
            pass
        return compile_it(name)

    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(_selection, "compile_extension", slowly)
    watched = replace(options(dtype=dtype), progress=lambda *event: told.append(event))
    _selection.prepare(watched, config)
    assert machine.compiled == [extension]
    assert told[0][0].startswith(f"compiling {_selection.choose(options(dtype=dtype), config)}, once, about ")
    assert told[0][2] == round(compat.compile_seconds(extension))
    before = len(told)
    _selection.prepare(watched, config)
    assert (machine.compiled, len(told)) == ([extension], before)


@pytest.mark.parametrize("config", [GPTQ(kernel="triton"), AWQ(kernel="gemm_triton"), GPTQ(kernel="torch")])
def test_what_needs_no_compiler_compiles_nothing(machine: Machine, config: Calibrated) -> None:
    _selection.prepare(replace(options(), progress=pytest.fail), config)
    assert machine.compiled == []


def test_where_compiling_fails_auto_takes_the_next_and_a_named_kernel_is_unavailable(machine: Machine) -> None:
    machine.fails = "nvcc fatal"
    _selection.prepare(options(), GPTQ())
    assert _selection.choose(options(), GPTQ()) == "triton"
    machine.lacks = None
    with pytest.raises(UnavailableError, match=r"backends\.x\.kernel: marlin cannot be compiled: nvcc fatal; choose"):
        _selection.prepare(options(), GPTQ(label="x", kernel="marlin"))


def test_a_named_kernel_without_a_compiler_is_unavailable_and_others_are_named(machine: Machine) -> None:
    machine.lacks = "there is no nvcc here"
    with pytest.raises(UnavailableError) as caught:
        _selection.choose(options(), GPTQ(label="x", kernel="exllama_v2"))
    assert describe_fault(caught.value)[0] == "unavailable"
    words = "exllama_v2: it is compiled at its first use, and there is no nvcc here; or choose auto, triton, torch"
    assert words in str(caught.value)


def test_the_toolkit_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.cpp_extension, "CUDA_HOME", None)
    assert "there is no nvcc here: install the CUDA toolkit" in str(compat.extension_obstacle("marlin_fp16"))
    monkeypatch.setattr(compat.cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(compat, "detected_cuda_wheel_include_paths", list)
    for folder in ("bin", "include"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert "lacks cuda_runtime_api.h, cublas_v2.h" in str(compat.extension_obstacle("marlin_fp16"))
    for header in compat.CUDA_HEADERS:
        (tmp_path / "include" / header).touch()
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-there")
    assert "no C++ compiler a-compiler-that-is-not-there" in str(compat.extension_obstacle("marlin_fp16"))
    monkeypatch.delenv("CXX")
    assert compat.extension_obstacle("marlin_fp16") is None


def test_a_plan_counts_no_dequantized_weight_for_kernels_that_read_codes() -> None:
    gpu = Target("cuda", 2)
    assert GPTQ(kernel="marlin").product_bytes(64, 128, 1, gpu) == 0
    assert AWQ(kernel="gemm_triton").product_bytes(64, 128, 1, gpu) == 64 * 128 * 2
    assert AWQ().product_bytes(64, 128, 1, Target("cuda", 2, kernel="AwqMarlinLinear")) == 0


def rounded(out_features: int, in_features: int, dtype: torch.dtype, *, bias: bool) -> tuple[nn.Linear, Any, Any]:
    """A linear whose weights lie on 16 levels a group of 32, with scales and zeros [out, groups]."""
    groups = in_features // 32
    scales = (torch.rand(out_features, groups) + 0.5) / 64
    zeros = torch.randint(0, 16, (out_features, groups)).float()
    codes = torch.randint(0, 16, (out_features, groups, 32))
    linear = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    linear.weight.data = ((codes - zeros[..., None]) * scales[..., None]).flatten(1).to(dtype)
    return linear, scales, zeros


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_awq_packed_a_linear_at_a_time_has_the_same_bits(dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    linear, scales, zeros = rounded(128, 96, dtype, bias=dtype == torch.float16)

    def packed() -> dict[str, torch.Tensor]:
        module = AwqTorchLinear(4, 32, False, False, 96, 128, bias=linear.bias is not None, register_buffers=False)
        module.pack(linear, scales.to(scale_dtype), zeros.to(scale_dtype))
        return dict(module.named_buffers())

    original = packed()
    with compat.packing_by_rows():
        ours = packed()
    assert original.keys() == ours.keys() >= {"qweight", "qzeros", "scales"}
    for name, tensor in original.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].is_contiguous()
        assert ours[name].equal(tensor)


class OnTheCPU(TorchFunctionMode):
    """Whatever is put on a device is put on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{name: "cpu" if name == "device" else value for name, value in (kwargs or {}).items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gptq_packed_as_on_a_gpu_has_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    linear, scales, zeros = rounded(128, 96, dtype, bias=False)
    order = torch.arange(96).flip(0) // 32
    original, ours = (TorchLinear(4, 32, False, True, 96, 128, register_buffers=False) for _ in range(2))
    original.pack_original(linear, scales, zeros, order)
    here = contextlib.nullcontext() if torch.cuda.is_available() else OnTheCPU()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if isinstance(here, OnTheCPU):
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with here:
        ours.pack_gpu(linear, scales, zeros, order, device=CUDA)
    for name in ("qweight", "qzeros", "scales", "g_idx"):
        assert getattr(ours, name).cpu().equal(getattr(original, name))
