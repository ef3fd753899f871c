"""The CUDA kernels without a GPU: their arithmetic, run thread by thread on the CPU, and that they compile for GPUs."""

import ctypes
import itertools
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from qbench.int4 import QuantizedTensor, quantize
from qbench.int4.kernels import WeightSpec, choose, cuda, nvrtc
from qbench.int4.kernels.tuning import TUNED
from qbench.int4.kernels.variants import BUCKETS, Variant, rule_of_thumb, tuned
from qbench.int4.quantizer import dequantize

HOST = Path(__file__).parent / "support" / "cuda"
PRODUCTS = Path(__file__).parents[1] / "results" / "published" / "int4-linears-h100" / "products.csv"
GROUPS = {32: 32, 64: 64, 128: 128, 256: 0, 0: 0}
"""group_size of a weight (0: a row), and the macro it is compiled with."""
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = tuple(TOLERANCE)
VARIANTS = (
    Variant("product", 1, 1, 1, 8, 2, 1),
    Variant("product", 2, 1, 2, 2, 1, 2),
    Variant("product", 1, 2, 1, 2, 1, 1),
    Variant("product", 2, 4, 1, 2, 1, 1),
    Variant("wgmma", 1, 2, 1, 2, 2, 1),
    Variant("wgmma", 2, 4, 1, 1, 1, 2),
    Variant("wgmma", 1, 8, 2, 1, 1, 1),
    Variant("wgmma", 1, 16, 1, 1, 1, 1),
    Variant("wgmma", 1, 8, 2, 2, 1, 1),
)


def built(folder: Path, source: str, macros: dict[str, int]) -> ctypes.CDLL:
    name = "_".join([source, *map(str, macros.values())])
    file = folder / f"{name}.so"
    if not file.exists():
        if shutil.which("g++") is None:
            pytest.skip("needs g++")
        main = "dequantize.cpp" if source == "dequantize" else "product.cpp"
        defines = [f"-D{key}={value}" for key, value in macros.items()]
        command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", "-w", f"-I{HOST}", f"-I{nvrtc.SOURCES}", *defines]
        subprocess.run([*command, f"-DSOURCE=<{source}.cu>", "-o", str(file), str(HOST / main)], check=True)
    return ctypes.CDLL(str(file))


def by_turns(cases: Iterable[Any]) -> list[Any]:
    """Each case with one of the dtypes; with the other one only among the long tests."""
    return [
        pytest.param(case, dtype, marks=pytest.mark.long if (number + turn) % 2 else ())
        for number, case in enumerate(cases)
        for turn, dtype in enumerate(DTYPES)
    ]


def named(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


def weight_of(outputs: int, columns: int, group_size: int, dtype: torch.dtype, bits: int = 4) -> QuantizedTensor:
    return quantize(torch.randn(outputs, columns).to(dtype), bits=bits, group_size=group_size or -1, search="none")


def product(folder: Path, config: Variant, x: torch.Tensor, q: QuantizedTensor, group: int, seed: int) -> torch.Tensor:
    packed, spec = cuda.pack(q), WeightSpec.of(q)
    macros = {"BITS": q.bits, "BFLOAT": int(x.dtype == torch.bfloat16), "GROUP": group} | config.macros
    library = built(folder, config.source, macros)
    rows, columns = x.shape
    blocks = -(-columns // 128)
    grid = (-(-spec.out_features // config.outputs), min(config.splits, blocks), -(-rows // config.rows))
    y = torch.full((rows, spec.out_features), float("nan"), dtype=x.dtype)
    parts = torch.full((grid[1], rows, spec.out_features), float("nan"))
    counters = torch.zeros(1024, dtype=torch.int32)
    tensors = (x, packed["words"], packed["pairs"].to(x.dtype).contiguous(), y, parts, counters)
    library.run(
        *map(ctypes.c_int, (*grid, config.threads, seed)),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        *map(ctypes.c_int, (rows, spec.out_features, columns, blocks, -(-spec.group_columns // 128))),
        *map(ctypes.c_int, divmod(blocks, grid[1] * config.deep)),
    )
    assert not counters.any()
    return y


@pytest.mark.parametrize(("config", "dtype"), by_turns(VARIANTS), ids=named)
def test_every_variant_against_float64(folder: Path, config: Variant, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    group_size = tuple(GROUPS)[VARIANTS.index(config) % len(GROUPS)]
    # Of a single block of columns, some warps have no share.
    for seed, (outputs, columns) in enumerate(((config.outputs + 9, 528), (48, 1040), (32, 128))):
        q = weight_of(outputs, columns, group_size, dtype)
        x = torch.randn(config.rows + 3, columns).to(dtype)
        exact = x.double() @ dequantize(q, torch.float64).T
        y = product(folder, config, x, q, GROUPS[group_size], seed)
        assert ((y.double() - exact).norm() / exact.norm()).item() < TOLERANCE[dtype]


QUICK = (("product", 64, 3), ("wgmma", 0, 3))
EVERY = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.long)
    for case in itertools.product(("product", "wgmma"), GROUPS, (3, 4))
]


@pytest.mark.parametrize(("source", "group_size", "bits"), EVERY)
def test_every_group_size_against_float64(folder: Path, source: str, group_size: int, bits: int) -> None:
    torch.manual_seed(1)
    config = Variant(source, 1, 2, 1, 2, 1, 1)
    q = weight_of(32, 656, group_size, torch.float16, bits)
    x = torch.randn(5, 656).half()
    exact = x.double() @ dequantize(q, torch.float64).T
    y = product(folder, config, x, q, GROUPS[group_size], seed=1)
    assert ((y.double() - exact).norm() / exact.norm()).item() < TOLERANCE[torch.float16]


WEIGHTS = [(32, 160, 4), (64, 136, 4), (128, 300, 4), (0, 129, 4), (32, 160, 3), (128, 300, 3)]
"""(group_size, columns, bits)"""


@pytest.mark.parametrize(("shape", "dtype"), by_turns(WEIGHTS), ids=named)
def test_dequantized_with_one_rounding(folder: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    group_size, columns, bits = shape
    q = weight_of(21, columns, group_size, dtype, bits)
    packed, spec = cuda.pack(q), WeightSpec.of(q)
    macros = {"BITS": bits, "BFLOAT": int(dtype == torch.bfloat16), "GROUP": GROUPS[group_size]}
    out = torch.full((21, columns), float("nan"), dtype=dtype)
    blocks = -(-columns // 128)
    tensors = (packed["words"], packed["pairs"], out)
    built(folder, "dequantize", macros).run(
        *map(ctypes.c_int, (1, blocks)),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        *map(ctypes.c_int, (21, columns, blocks, -(-spec.group_columns // 128))),
    )
    assert torch.equal(out, dequantize(q, torch.float64).to(dtype))  # rounded once


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 128, -1, 0])
@pytest.mark.parametrize("bits", [3, 4])
def test_unpack_gives_the_weight_back(bits: int, group_size: int, symmetric: bool) -> None:
    q = quantize(torch.randn(37, 200), bits=bits, group_size=group_size, symmetric=symmetric, search="none")
    again = cuda.unpack(cuda.pack(q), WeightSpec.of(q))
    assert again.tensors().keys() == q.tensors().keys()
    for name, tensor in q.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)


TYPES = tuple(itertools.product((0, 1), (32, 64, 128, 0), (4, 3)))
"""Whether values are bfloat16, the group's macro, and bits."""


def launched(architecture: str) -> list[Variant]:
    """What products of Llama-3-8B's shapes are compiled with."""
    sizes = itertools.product(BUCKETS, ((4096, 4096), (28672, 4096), (4096, 14336)))
    return sorted(
        {rule_of_thumb(rows, *shape, hopper=architecture == "sm_90a")._replace(splits=1) for rows, shape in sizes}
    )


def waits(log: str) -> list[str]:
    """Why products of wgmma wait for each other, by ptxas's own word."""
    return [line for line in log.splitlines() if "serialized" in line]


def spilled(log: str) -> list[str]:
    """Bytes of registers that did not fit, of each kernel."""
    return re.findall(r"(\d+) bytes spill stores", log)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["by turns", "all"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90a"])
def test_what_a_run_launches_compiles(architecture: str, every: bool) -> None:
    """Each variant for one of the types by turns, or for all of them; those of wgmma overlap, all in registers."""
    pytest.importorskip("cuda.bindings")
    for number, config in enumerate(launched(architecture)):
        for bfloat, group, bits in TYPES if every else TYPES[3 * number % 16 :][:1]:
            macros = {"BITS": bits, "BFLOAT": bfloat, "GROUP": group} | config.macros
            made = nvrtc.compiled(f"{config.source}.cu", architecture, macros)
            assert made.code
            if config.source == "wgmma":
                assert (waits(made.log), spilled(made.log)) == ([], ["0"]), (config, macros)
    for bfloat, group, bits in TYPES if every else TYPES[2:4]:
        assert nvrtc.compiled("dequantize.cu", architecture, {"BITS": bits, "BFLOAT": bfloat, "GROUP": group}).code


@pytest.mark.long
def test_no_measured_variant_waits_for_its_own_products() -> None:
    """The tables of GPUs may hold variants that spill: they were the fastest all the same."""
    pytest.importorskip("cuda.bindings")
    tables = [tuned(file.stem) for file in sorted(TUNED.glob("cuda_*.json"))]
    assert tables
    for config in {v._replace(splits=1) for table in tables for row in table.values() for v in row.values()}:
        macros = {"BITS": 4, "BFLOAT": 1, "GROUP": 128} | config.macros
        assert waits(nvrtc.compiled(f"{config.source}.cu", "sm_90a", macros).log) == []


def test_the_rule_of_thumb_is_near_the_fastest_on_the_gpu_that_was_measured() -> None:
    """Over a block of Llama-3-8B; other shapes, and GPUs without a table, are left to the rule."""
    table = pd.read_csv(PRODUCTS).query("kernel in ('product', 'wgmma')")
    for rows, of_rows in table.groupby("rows"):
        chosen, fastest = 0.0, 0.0
        for (outputs, columns), of_shape in of_rows.groupby(["out_features", "in_features"]):
            times = of_shape.set_index("variant").us
            name = "-".join(map(str, rule_of_thumb(rows, outputs, columns, hopper=True)))
            chosen, fastest = chosen + times[name], fastest + times.min()
        assert chosen < 1.07 * fastest, rows


def test_it_is_for_cuda() -> None:
    weight = WeightSpec.of(quantize(torch.randn(32, 128)))
    with pytest.raises(ValueError, match="kernel cuda is for CUDA, not cpu"):
        choose(weight, torch.device("cpu"), "cuda")
