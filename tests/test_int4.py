"""The quantizer against plain float64 arithmetic, group by group."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qbench.int4 import QuantizedTensor, QuantLinear, dequantize, fit, native, quantize, quantize_model
from qbench.int4.pack import BITS, pack, row_bytes, unpack
from qbench.int4.quantizer import PER_ROW, PER_TENSOR, Search
from tests.support.levels import tolerance


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def lost(weight: torch.Tensor, **options: object) -> float:
    """Relative squared error."""
    found = dequantize(quantize(weight, **options))  # type: ignore[arg-type]
    return ((found - weight).square().sum() / weight.square().sum()).item()


def groups_of(weight: torch.Tensor, group_size: int) -> list[np.ndarray]:
    """The groups of all rows, one row after another, in float64."""
    w = weight.double().numpy()
    if group_size == PER_TENSOR:
        return [w.reshape(-1)]
    size = w.shape[1] if group_size == PER_ROW else group_size
    return [row[start : start + size] for row in w for start in range(0, w.shape[1], size)]


def stored(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=torch.float32).to(dtype))


def check_nearest(weight: torch.Tensor, q: QuantizedTensor) -> None:
    """Every weight has become the nearest of the values that its group's scale and offset allow."""
    scales, zeros = q.scales.double().flatten(), torch.zeros(q.scales.numel(), dtype=torch.float64)
    if q.zeros is not None:
        zeros = q.zeros.double().flatten()
    found = groups_of(dequantize(q), q.group_size)
    expected = groups_of(weight, q.group_size)
    assert len(found) == len(expected) == len(scales)
    codes = np.arange(1 << q.bits) - (1 << (q.bits - 1))
    for w, w_found, s, z in zip(expected, found, scales.tolist(), zeros.tolist(), strict=True):
        allowed = s * codes + z
        best = np.abs(w[:, None] - allowed).min(axis=1)
        rounding = 1e-6 * np.abs(allowed).max() + 1e-9
        assert (np.abs(w_found - w) <= best + rounding).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("search", ["none", "mse"])
@pytest.mark.parametrize("group_size", [32, 128, PER_ROW, PER_TENSOR])
@pytest.mark.parametrize("columns", [1, 127, 256, 300])
def test_weights_become_the_nearest_value_of_their_group(
    bits: int, symmetric: bool, search: Search, group_size: int, columns: int
) -> None:
    weight = gaussian(5, columns, seed=columns) + 0.2
    q = quantize(weight, bits=bits, group_size=group_size, symmetric=symmetric, search=search)
    assert q.qweight.shape == (5, row_bytes(columns, bits))
    check_nearest(weight, q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_plain_scales_and_offsets_cover_the_range_of_a_group(dtype: torch.dtype) -> None:
    weight = gaussian(4, 300)
    q = quantize(weight, search="none", scale_dtype=dtype)
    assert q.zeros is not None
    for w, s, z in zip(groups_of(weight, 128), q.scales.flatten(), q.zeros.flatten(), strict=True):
        expected = stored((w.max() - w.min()) / 15, dtype)
        assert float(s) == expected
        assert float(z) == stored(w.min() + 8 * expected, dtype)


def test_plain_symmetric_scales_put_the_extra_code_where_the_range_is_wider() -> None:
    weight = torch.tensor([[-8.0, 1, 2, 7], [8.0, -1, -2, -7], [7.0, 1, 2, -6]])
    q = quantize(weight, group_size=4, symmetric=True, search="none")
    assert q.scales.flatten().tolist() == [1, -1, -0.875]
    assert torch.equal(dequantize(q)[:2], weight[:2])


def test_short_last_group_has_its_own_scale() -> None:
    weight = gaussian(3, 1023)
    weight[:, 896:] *= 1000
    q = quantize(weight, group_size=128)
    assert q.qweight.shape == (3, 512)
    assert q.zeros is not None
    assert q.scales.shape == q.zeros.shape == (3, 8)
    assert (q.scales[:, -1].abs() > 100 * q.scales[:, -2].abs()).all()
    assert dequantize(q).shape == (3, 1023)


def test_effective_bits() -> None:
    """4 + (16 + 16) / 128, against NF4's 4 + 32 / 64; 4 + 16 / 128 without offsets. 3 bits are no more than 3."""
    weight = gaussian(64, 1024)
    assert quantize(weight).nbytes * 8 / weight.numel() == 4.25
    assert quantize(weight, symmetric=True).nbytes * 8 / weight.numel() == 4.125
    assert quantize(weight, bits=3).nbytes * 8 / weight.numel() == 3.25


def test_gaussian_weights_lose_what_theory_says() -> None:
    """Rate-distortion bounds any 4-bit code of a Gaussian by 0.39 %; plain asymmetric rounding is known at 1.01 %."""
    weight = gaussian(1024, 1024)
    assert lost(weight, search="none") == pytest.approx(0.0101, abs=0.0003)
    assert 0.0039 < lost(weight, search="mse") < 0.0086


def test_eight_bits_are_within_one_percent() -> None:
    weight = gaussian(256, 1024)
    assert lost(weight, bits=8) ** 0.5 < 0.01
    assert lost(weight, bits=8, symmetric=True, group_size=PER_ROW) ** 0.5 < 0.01


def searches() -> list[str]:
    return ["torch", *(["c"] if native.library() is not None else [])]


@pytest.fixture(params=searches())
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The search by torch, and by the compiled library."""
    if request.param == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gaussian", "heavy tails", "outlier", "shifted", "few values", "constant"])
def test_search_is_in_no_group_worse_than_rounding(
    implementation: str, bits: int, symmetric: bool, dtype: torch.dtype, kind: str
) -> None:
    weight = gaussian(32, 256, seed=bits)
    if kind == "heavy tails":
        weight = weight**3
    elif kind == "outlier":
        weight[:, 7] = 100
    elif kind == "shifted":
        weight += 50
    elif kind == "few values":
        weight = weight.sign()
    elif kind == "constant":
        weight = torch.full_like(weight, 0.3)
    options = {"bits": bits, "symmetric": symmetric, "scale_dtype": dtype, "group_size": 64}
    errors = []
    for search in ("none", "mse"):
        found = dequantize(quantize(weight, search=search, **options))  # type: ignore[arg-type]
        errors.append((found.double() - weight.double()).square().unflatten(1, (-1, 64)).sum(-1))
    plain, searched = errors
    # float32 sums of 64 squares; the errors themselves are exact to about 1e-6 of the weights.
    assert (searched <= plain * (1 + 1e-4) + 1e-9 * weight.double().square().mean() * 64).all()


@pytest.mark.skipif(native.library() is None, reason="no compiled library")
@pytest.mark.parametrize("symmetric", [False, True])
def test_both_searches_find_the_same_error(symmetric: bool) -> None:
    groups = gaussian(2000, 128)
    rounding = fit.Rounding(4, symmetric, torch.bfloat16)
    plain = rounding.plain(groups)
    by_torch = fit._error(groups, rounding, *fit._searched(groups, rounding, *plain)).sum()
    by_c = fit._error(groups, rounding, *fit._searched_in_c(groups, rounding, *plain)).sum()
    assert by_c.item() == pytest.approx(by_torch.item(), rel=1e-4)


def test_search_gets_close_to_the_best_pair_of_a_fine_grid() -> None:
    """Brute force over 200 x 200 scales and offsets in float64, for some groups."""
    weight = gaussian(8, 128)
    bests = []
    q = quantize(weight, scale_dtype=torch.bfloat16)
    found = (dequantize(q).double() - weight.double()).square().sum(-1)
    for row, error in zip(weight.double().numpy(), found.tolist(), strict=True):
        plain_s = (row.max() - row.min()) / 15
        s = plain_s * np.linspace(0.6, 1.05, 200)[:, None, None]
        middle = (row.max() + row.min()) / 2 + plain_s * np.linspace(-1.5, 1.5, 200)[None, :, None]
        z = middle + s / 2
        values = s * np.clip(np.round((row - z) / s), -8, 7) + z
        bests.append(((values - row) ** 2).sum(-1).min())
        assert error <= bests[-1] * 1.08
    assert found.sum().item() <= sum(bests) * 1.02


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9])
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_groups_are_kept_as_well_as_16_bits_can(value: float, symmetric: bool) -> None:
    weight = torch.full((2, 64), value)
    found = dequantize(quantize(weight, group_size=32, scale_dtype=torch.bfloat16, symmetric=symmetric))
    torch.testing.assert_close(found, weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    weight = torch.randn(4, 64)
    weight[2, 3] = bad
    with pytest.raises(ValueError, match=r"layers\.0\.weight: holds NaN or infinity"):
        quantize(weight, name="layers.0.weight")


@pytest.mark.parametrize(
    ("weight", "options", "words"),
    [
        (torch.randn(4), {}, "expected .out_features, in_features."),
        (torch.randn(4, 0), {}, "expected .out_features, in_features."),
        (torch.randn(4, 64), {"group_size": -2}, "group_size must be positive"),
        (torch.randn(4, 64), {"bits": 5}, "bits must be one of 2, 3, 4, 8, not 5"),
        (torch.randn(4, 64), {"search": "fine"}, "search must be"),
        (torch.full((1, 4), 3e38), {"scale_dtype": torch.float16}, "does not fit torch.float16 scales"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight: torch.Tensor, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quantize(weight, **options)  # type: ignore[arg-type]


@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_packing_loses_nothing_and_puts_the_first_column_lowest(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (rows, row_bytes(columns, bits))
    stream = np.unpackbits(packed.numpy(), axis=1, bitorder="little")
    assert not stream[:, columns * bits :].any()
    found = stream[:, : columns * bits].reshape(rows, columns, bits) @ (1 << np.arange(bits))
    assert np.array_equal(found, codes.numpy())
    assert torch.equal(unpack(packed, columns, bits), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_linear_multiplies_by_the_dequantized_weight(dtype: torch.dtype, bias: bool, bits: int) -> None:
    linear = nn.Linear(200, 24, bias=bias).to(dtype)
    layer = QuantLinear.from_linear(linear, bits=bits, group_size=64)
    x = torch.randn(2, 7, 200).to(dtype)
    expected = x.double() @ layer.weight().double().T
    if bias:
        expected += linear.bias.detach().double()
    found = layer(x)
    assert found.dtype == dtype
    relative = (found.double() - expected).norm() / expected.norm()
    assert relative < tolerance(dtype)


def test_a_layer_survives_its_state_dict_and_a_copy() -> None:
    layer = QuantLinear.from_linear(nn.Linear(128, 8))
    other = QuantLinear.from_linear(nn.Linear(128, 8))
    x = torch.randn(3, 128)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert {"qweight", "scales", "zeros", "bias"} == set(layer.state_dict())


def test_only_named_linears_are_replaced() -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "head": nn.Linear(64, 8)})
    quantize_model(model, ["a"], group_size=32)
    assert isinstance(model["a"], QuantLinear)
    assert model["a"].quantized().scales.shape == (64, 2)
    assert isinstance(model["head"], nn.Linear)


def test_a_damaged_weight_of_a_model_is_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 64)})
    with torch.no_grad():
        model["a"].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"a\.weight: holds NaN"):
        quantize_model(model, ["a"])
