"""The Triton kernels, interpreted on the CPU, against float64 products with the dequantized weight.

Not collected by itself: Triton decides when it is imported, so `test_int4_triton.py` runs this in a process of its own.
"""

import pytest
import torch

from qbench.int4 import QuantLinear, dequantize, quantize
from qbench.int4.kernels import WeightSpec, choose, kernel, tuning
from qbench.int4.quantizer import PER_ROW, PER_TENSOR, QuantizedTensor

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative L2 error: the rounding of results, and of sums in float32."""
ROWS = (1, 4, 5, 16, 17, 64, 65)
"""Both sides of where another kernel or block size takes over."""
MORE_ROWS = (2, 3, 8, 33)
SHAPES = [(64, 256), (65, 130), (40, 65), (5, 7), (48, 512), (130, 1000)]
ODD = [(5, 7), (65, 130)]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_weight(rows: int, columns: int, **options: object) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return quantize(torch.randn(rows, columns, generator=generator) + 0.1, **options)  # type: ignore[arg-type]


def error(q: QuantizedTensor, m: int, dtype: torch.dtype) -> float:
    """Relative L2 error of a product of m rows."""
    x = torch.randn(m, q.shape[1], generator=torch.Generator().manual_seed(m)).to(dtype)
    triton, spec = kernel("triton"), WeightSpec.of(q)
    found = triton.matmul(x, triton.pack(q), spec)
    assert found.dtype == dtype
    expected = x.double() @ dequantize(q).double().T
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_products(shape: tuple[int, int], dtype: torch.dtype) -> None:
    q = random_weight(*shape)
    assert max(error(q, m, dtype) for m in ROWS) < TOLERANCE[dtype]


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_more_products(shape: tuple[int, int], dtype: torch.dtype) -> None:
    q = random_weight(*shape)
    assert max(error(q, m, dtype) for m in (MORE_ROWS if shape in ODD else ROWS + MORE_ROWS)) < TOLERANCE[dtype]


BY_TURNS = [(False, torch.float16), (True, torch.bfloat16)]
OTHER_TURNS = [pytest.param(*of, marks=pytest.mark.long) for of in ((False, torch.bfloat16), (True, torch.float16))]


@pytest.mark.parametrize("group_size", [32, 64, 256, PER_ROW, PER_TENSOR])
@pytest.mark.parametrize(("symmetric", "dtype"), [*BY_TURNS, *OTHER_TURNS])
def test_products_by_group(group_size: int, symmetric: bool, dtype: torch.dtype) -> None:
    q = random_weight(70, 330, group_size=group_size, symmetric=symmetric, scale_dtype=dtype)
    assert max(error(q, m, dtype) for m in (3, 20)) < TOLERANCE[dtype]


@pytest.mark.parametrize("config", [(16, 32, 1, 4, 2), (16, 128, 3, 4, 2), (32, 64, 64, 8, 3)])
@pytest.mark.parametrize("m", [1, 4, 20])
def test_every_configuration_gives_the_product(config: tuple[int, ...], m: int) -> None:
    """Also splits that do not divide the columns, and more of them than there are blocks."""
    from qbench.int4.kernels import _triton

    q = random_weight(65, 394)  # four blocks of columns
    x = torch.randn(m, 394).half()
    packed = kernel("triton").pack(q)
    found = _triton.product(x, packed["words"], packed["scales"], packed["zeros"], 128, tuning.Config(*config))
    expected = x.double() @ dequantize(q).double().T
    assert (found.double() - expected).norm() / expected.norm() < TOLERANCE[torch.float16]


@pytest.mark.parametrize("m", [1, 20, 65])
def test_activations_that_are_not_finite_are_not_hidden(m: int) -> None:
    q = random_weight(32, 256)
    triton, spec = kernel("triton"), WeightSpec.of(q)
    for bad in (float("nan"), float("inf")):
        x = torch.randn(m, 256).half()
        x[-1, 200] = bad
        found = triton.matmul(x, triton.pack(q), spec)
        assert not found[-1].isfinite().any()
        assert found[:-1].isfinite().all()


@pytest.mark.parametrize("group_size", [32, 64, 128, PER_ROW, PER_TENSOR])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("columns", [64, 128, 257])
def test_repacking_loses_nothing(group_size: int, symmetric: bool, columns: int) -> None:
    q = random_weight(33, columns, group_size=group_size, symmetric=symmetric)
    spec = WeightSpec.of(q)
    again = kernel("triton").unpack(kernel("triton").pack(q), spec)
    assert again.tensors().keys() == q.tensors().keys()
    for key, tensor in q.tensors().items():
        assert torch.equal(again.tensors()[key], tensor)


def test_it_comes_first_where_it_serves() -> None:
    layer = QuantLinear(random_weight(32, 128))
    assert layer.kernel_name == "triton"
    assert layer(torch.empty(2, 0, 128)).shape == (2, 0, 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"bits": 8}, "kernel triton multiplies 4 bits, not 8"), ({"group_size": 96}, "needs a group_size of 32, 64 or")],
)
def test_what_it_does_not_serve(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose(WeightSpec.of(random_weight(32, 384, **options)), CPU, "triton")


@pytest.mark.parametrize("m", [1, 20])
def test_the_operator_keeps_what_it_promises_to_torch_compile(m: int) -> None:
    from qbench.int4.kernels import _triton

    packed = kernel("triton").pack(random_weight(48, 256))
    x = torch.randn(m, 256).half()
    arguments = (x, packed["words"], packed["scales"], packed["zeros"], 128)
    # Without gradients: weights are quantized to be used, not trained.
    tests = ("test_schema", "test_faketensor")
    assert set(torch.library.opcheck(_triton.w4a16, arguments, test_utils=tests).values()) == {"SUCCESS"}
