"""Every kernel of this machine against float64 products with the dequantized weight."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qbench.backends.int4 import fuse
from qbench.int4 import QuantLinear, dequantize, native, quantize
from qbench.int4.kernels import KERNELS, WeightSpec, choose, kernel
from qbench.int4.quantizer import PER_ROW, PER_TENSOR, QuantizedTensor
from tests.support.levels import levels, tolerance

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(16, 32), (40, 65), (5, 7), (33, 256), (100, 1000), (300, 1088)]
LEVELS_AND_BITS = [(level, bits) for level in levels() for bits in (3, 4, 8) if bits != 8 or level != "generic"]
ROWS = [1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 33, 64, 65, 95, 96, 130, 600]

compiled = pytest.mark.skipif(native.library() is None, reason="the C library was not compiled here")


def random_weight(rows: int, columns: int, **options: object) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return quantize(torch.randn(rows, columns, generator=generator) + 0.1, **options)  # type: ignore[arg-type]


def error(name: str, q: QuantizedTensor, m: int, dtype: torch.dtype) -> float:
    """Relative L2 error of a product of m rows."""
    spec = WeightSpec.of(q)
    chosen = kernel(name)
    assert chosen.refusal(spec, CPU) is None
    x = torch.randn(m, q.shape[1], generator=torch.Generator().manual_seed(m)).to(dtype)
    found = chosen.matmul(x, chosen.pack(q), spec)
    assert found.dtype == dtype
    expected = x.double() @ dequantize(q).double().T
    return ((found.double() - expected).norm() / expected.norm()).item()


@compiled
@pytest.mark.parametrize(("level", "bits"), LEVELS_AND_BITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_c_products(
    level: str, bits: int, shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index(level))
    for group_size, symmetric, scales in (
        (128, False, torch.bfloat16),
        (PER_ROW if bits == 8 else 32, True, torch.float16),
    ):
        q = random_weight(*shape, bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=scales)
        worst = max(error("cpu", q, m, dtype) for m in ROWS)
        assert worst < tolerance(dtype)


@compiled
@pytest.mark.skipif("avx2" not in levels(), reason="the CPU has no AVX2")
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_float32_products_have_the_same_bits_from_avx2_on(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q = random_weight(300, 1088, bits=bits, group_size=64)
    spec, chosen = WeightSpec.of(q), kernel("cpu")
    packed = chosen.pack(q)
    for m in ROWS:
        x = torch.randn(m, 1088, generator=torch.Generator().manual_seed(m))
        found = []
        for level in levels()[native.INTEGERS_FROM :]:
            monkeypatch.setattr(native, "level", lambda level=level: native.LEVELS.index(level))
            found.append(chosen.matmul(x, packed, spec))
        assert all(torch.equal(one, found[0]) for one in found)


@compiled
@pytest.mark.parametrize(("level", "bits"), LEVELS_AND_BITS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_tile_of_a_tall_weight_is_multiplied_once(
    level: str, bits: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads take pieces of several tiles, which few rows of activations meet a stream of tiles at a time."""
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index(level))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q = random_weight(2600, 67, bits=bits, group_size=32, search="none")  # 163 tiles, a prime number
    assert max(error("cpu", q, m, torch.float32) for m in (1, 2, 3)) < 2e-4


@compiled
@pytest.mark.parametrize(("level", "bits"), LEVELS_AND_BITS)
@pytest.mark.parametrize("code", [0, -1])
def test_sums_of_the_largest_codes_and_activations_are_exact(
    level: str, bits: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index(level))
    q = random_weight(16, 1024, bits=bits, group_size=PER_ROW)
    q = replace(q, qweight=torch.full_like(q.qweight, code & 255))
    spec, chosen = WeightSpec.of(q), kernel("cpu")
    for m in (1, 2, 7):
        x = torch.full((m, 1024), -255 / 256)
        expected = x.double() @ dequantize(q).double().T
        found = chosen.matmul(x, chosen.pack(q), spec).double()
        assert ((found - expected).abs() <= 1e-5 * expected.abs()).all()


@compiled
@pytest.mark.parametrize(("level", "bits"), [pair for pair in LEVELS_AND_BITS if pair[1] != 8])
@pytest.mark.parametrize("group_size", [64, 96, 160, PER_ROW, PER_TENSOR])
def test_c_products_by_group_size(level: str, bits: int, group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index(level))
    q = random_weight(48, 416, bits=bits, group_size=group_size)
    assert max(error("cpu", q, m, torch.bfloat16) for m in (1, 6, 20, 100, 1600)) < tolerance(torch.bfloat16)


@compiled
@pytest.mark.parametrize(("level", "bits"), [pair for pair in LEVELS_AND_BITS if pair[1] != 8])
@pytest.mark.parametrize("m", [1, 4, 20, 100])
def test_activations_that_are_not_finite_are_not_hidden(
    level: str, bits: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index(level))
    q = random_weight(32, 256, bits=bits)
    chosen, spec = kernel("cpu"), WeightSpec.of(q)
    for bad in (float("nan"), float("inf")):
        x = torch.randn(m, 256).bfloat16()
        x[-1, 200] = bad
        found = chosen.matmul(x, chosen.pack(q), spec)
        assert not found[-1].isfinite().any()
        assert found[:-1].isfinite().all()


@compiled
@pytest.mark.parametrize("level", levels())
def test_an_outlier_leaves_the_other_activations_their_digits(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One activation a hundred times the others, as models have them; the error is compared with the result."""
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index(level))
    q = random_weight(64, 512)
    chosen, spec = kernel("cpu"), WeightSpec.of(q)
    for m in (1, 6, 20):
        x = torch.randn(m, 512).bfloat16()
        x[:, 100] *= 100
        expected = x.double() @ dequantize(q).double().T
        found = chosen.matmul(x, chosen.pack(q), spec).double()
        assert (found - expected).norm() / expected.norm() < tolerance(torch.bfloat16)


@compiled
def test_products_leave_amx_to_others_as_it_was() -> None:
    """torch's own products use the same registers, on the same threads."""
    generator = torch.Generator().manual_seed(0)
    layer = QuantLinear(random_weight(64, 512), kernel="cpu")
    weight = torch.randn(64, 512, generator=generator).bfloat16()
    for m in (1, 8, 20, 64, 200):
        x = torch.randn(m, 512, generator=generator).bfloat16()
        alone = F.linear(x, weight)
        first = layer(x)
        for _ in range(3):
            assert torch.equal(F.linear(x, weight), alone)
            assert torch.equal(layer(x), first)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_aten_products(bits: int, dtype: torch.dtype) -> None:
    options = {"group_size": 64} if bits == 4 else {"group_size": PER_ROW, "symmetric": True}
    q = random_weight(48, 256, bits=bits, **options)
    assert max(error("aten", q, m, dtype) for m in (1, 3, 8, 33)) < tolerance(dtype, "aten")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [64, PER_ROW, PER_TENSOR])
@pytest.mark.parametrize("columns", [64, 128, 192, 257])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_repacking_loses_nothing(symmetric: bool, group_size: int, columns: int, bits: int) -> None:
    q = random_weight(1035 if bits == 8 else 48, columns, bits=bits, group_size=group_size, symmetric=symmetric)
    spec = WeightSpec.of(q)
    for one in (kernel(name) for name in ("cpu", "aten", "reference")):
        if one.refusal(spec, CPU):
            continue
        again = one.unpack(one.pack(q), spec)
        assert again.tensors().keys() == q.tensors().keys()
        for key, tensor in q.tensors().items():
            assert torch.equal(again.tensors()[key], tensor)


def test_the_first_kernel_that_serves_is_chosen() -> None:
    chosen = choose(WeightSpec.of(random_weight(32, 128)), CPU)
    assert chosen.name == ("cpu" if native.library() else "aten")
    assert choose(WeightSpec.of(random_weight(32, 128, bits=2)), CPU).name == "reference"
    three = WeightSpec.of(random_weight(32, 128, bits=3))
    assert choose(three, CPU).name == ("cpu" if native.library() else "reference")
    head = random_weight(32, 128, bits=8, group_size=PER_ROW, symmetric=True)
    assert choose(WeightSpec.of(head), CPU).name == ("cpu" if len(levels()) > 1 else "aten")


@compiled
def test_8_bits_need_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "level", lambda: native.LEVELS.index("generic"))
    spec = WeightSpec.of(random_weight(32, 128, bits=8, group_size=PER_ROW, symmetric=True))
    assert choose(spec, CPU).name == "aten"
    with pytest.raises(ValueError, match="kernel cpu multiplies 8 bits only on CPUs with AVX2"):
        choose(spec, CPU, "cpu")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cpu", {"group_size": 20}, "kernel cpu needs a group_size that is a multiple of 32, not 20"),
        ("cpu", {"bits": 2}, "kernel cpu multiplies 3, 4 and 8 bits, not 2"),
        ("aten", {"group_size": 96}, "kernel aten needs whole groups"),
        ("aten", {"bits": 8}, "only where they are symmetric"),
        ("aten", {"bits": 3}, "kernel aten multiplies 4 and 8 bits, not 3"),
        ("fast", {}, "kernel must be auto or one of cuda, triton, cpu, aten, reference, not 'fast'"),
    ],
)
def test_a_kernel_that_cannot_serve_says_why(name: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(WeightSpec.of(random_weight(32, 128, **options)), CPU, name)


def test_no_activations_give_no_results() -> None:
    for name in KERNELS:
        q = random_weight(32, 128)
        if kernel(name).refusal(WeightSpec.of(q), CPU) is None:
            assert QuantLinear(q, kernel=name)(torch.empty(2, 0, 128)).shape == (2, 0, 32)


class Block(nn.Module):
    """Projections as attention and MLP call them."""

    def __init__(self, bias: Collection[str] = ()) -> None:
        super().__init__()
        for name, rows in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("gate_proj", 128), ("up_proj", 128)):
            self.add_module(name, nn.Linear(64, rows, bias=name in bias))
        self.down_proj = nn.Linear(128, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        mixed = q + torch.cat((k, v), dim=-1)
        return self.down_proj(F.silu(self.gate_proj(mixed)) * self.up_proj(mixed))


def quantized_weights(block: Block) -> dict[str, QuantizedTensor]:
    names = [f"0.{name}" for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    return {name: quantize(block.get_submodule(name[2:]).weight.detach(), group_size=32) for name in names}


@pytest.mark.parametrize("bias", [set(), {"q_proj", "k_proj", "v_proj", "up_proj"}, {"k_proj", "gate_proj"}])
def test_joined_linears_give_what_they_give_alone(bias: set[str]) -> None:
    apart = nn.ModuleList([Block(bias)])
    joined = nn.ModuleList([Block(bias)])
    joined.load_state_dict(apart.state_dict())
    weights = quantized_weights(apart[0])
    for name, weight in weights.items():
        linear = apart.get_submodule(name)
        apart.set_submodule(name, QuantLinear(weight, linear.bias, kernel="reference"))
    fuse.join(joined, weights, kernel="reference")
    assert list(weights) == ["0.down_proj"]
    joined.set_submodule("0.down_proj", copy_of(apart[0].down_proj))
    with torch.no_grad():
        for m in (1, 3, 1):
            x = torch.randn(2, m, 64)
            for _ in range(2):  # the same input again is computed again
                torch.testing.assert_close(joined[0](x), apart[0](x))


def copy_of(module: nn.Module) -> nn.Module:
    assert isinstance(module, QuantLinear)
    return QuantLinear(module.quantized(), module.bias, kernel=module.kernel_name)


def test_a_joined_linear_that_is_asked_out_of_turn_answers_right() -> None:
    block = nn.ModuleList([Block()])
    weights = quantized_weights(block[0])
    expected = {name: dequantize(weight) for name, weight in weights.items()}
    fuse.join(block, weights, kernel="reference")
    first, second = torch.randn(4, 64), torch.randn(4, 64)
    order = ["q_proj", "v_proj", "v_proj", "k_proj", "q_proj"]
    for name, x in itertools.product(order, (first, second)):
        torch.testing.assert_close(block.get_submodule(f"0.{name}")(x), x @ expected[f"0.{name}"].T)


def test_linears_of_different_groups_are_not_joined() -> None:
    block = nn.ModuleList([Block()])
    weights = quantized_weights(block[0])
    weights["0.k_proj"] = quantize(block[0].k_proj.weight.detach(), group_size=64)
    fuse.join(block, weights)
    assert set(weights) == {"0.q_proj", "0.k_proj", "0.v_proj", "0.down_proj"}


def test_a_machine_without_a_compiler_installs_and_computes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.so", "*.egg-info", "build", "__pycache__")
    shutil.copytree(ROOT / "qbench", source / "qbench", ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = {"PATH": "/usr/bin:/bin", "CC": "/bin/false", "HOME": str(tmp_path), "PIP_CONSTRAINT": ""}
    subprocess.run([*install, "--target", str(target), str(source)], check=True, env=environment, cwd=tmp_path)
    assert not list(target.glob("qbench/int4/_qint4*"))
    program = (
        "import torch, qbench.int4 as i; from torch import nn; import qbench; print(qbench.__file__);"
        "layer = i.QuantLinear.from_linear(nn.Linear(256, 64));"
        "print(layer.kernel_name, layer(torch.ones(1, 256)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(target)},
    )
    where, found = done.stdout.splitlines()
    assert where.startswith(str(target))
    assert found == "aten torch.Size([1, 64])"
