"""The backends whose libraries put their own linears or weights into a model, against those libraries and float64."""

import copy
import importlib
import shutil
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

from qbench.backends.base import import_backend
from qbench.config import Backend
from qbench.config import load as configfile
from qbench.config.kinds import SHIPPED, backend_class
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.errors import QbenchError, UnavailableError
from qbench.model import content
from qbench.plan.backends import facts
from qbench.plan.memory import Prediction
from qbench.run import fingerprint
from tests.support import ready_made
from tests.support import tiny_llama as tiny
from tests.support.architectures import architecture
from tests.support.compiled import assert_compiles
from tests.support.predictions import CPU, measured_peak
from tests.support.runs import config as run_config
from tests.support.runs import run

for library in ("bitsandbytes", "torchao", "hqq", "optimum.quanto", "compressed_tensors", "auto_round", "gptqmodel"):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed", allow_module_level=True)

ROWS = tiny.LAYERS * (2 * tiny.HIDDEN + 2 * tiny.KV + 2 * tiny.INTERMEDIATE + tiny.HIDDEN)
"""out_features of all linears together."""


def cell(kind: str, **options: object) -> Backend:
    cls = backend_class(kind)
    assert cls is not None
    return cls.model_validate({"kind": kind} | options)


def load(config: Backend, folder: Path, work: Path, **options: Any) -> LoadedModel:
    found = import_backend(config).load(replace(tiny.options(folder, work), **options), config, None)
    assert isinstance(found, LoadedModel)
    return found


@dataclass(frozen=True)
class Case:
    """A cell, what its library makes of the same model, and what of its format can be worked out by hand."""

    config: Backend
    kernel: str
    bytes: int
    """Of all linears: codes, scales, zeros."""
    weight: Callable[[nn.Module], Tensor]
    """The matrix that a loaded linear stands for, from its codes and scales in float64."""
    stock: Callable[[Path], nn.Module]
    error: float = 0.004
    """Of a product with random inputs: rounding to bfloat16, unless inputs are quantized, too."""


def stock(how: Callable[[], object], mode: Callable[[], Any] = torch.no_grad) -> Callable[[Path], nn.Module]:
    def made(folder: Path) -> nn.Module:
        with mode():
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, device_map={"": "cpu"}, quantization_config=how()
            ).eval()

    return made


def stock_torchao(name: str, module: str = "torchao.quantization", **arguments: Any) -> Callable[[Path], nn.Module]:
    return stock(lambda: TorchAoConfig(getattr(importlib.import_module(module), name)(**arguments)))


def stock_hqq(folder: Path) -> nn.Module:
    """By hqq's own function for transformers' models, which also rounds the rotary embedding's frequencies."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    how, rotary = BaseQuantizeConfig(nbits=4, group_size=64), copy.deepcopy(model.model.rotary_emb)
    AutoHQQHFModel.quantize_model(model, how, compute_dtype=torch.bfloat16, device="cpu")
    model.model.rotary_emb = rotary
    return model


def rows_of_int8(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.double() * scales.double().view(-1, 1)


def of_hqq(linear: nn.Module) -> Tensor:
    """Two groups share a byte: the first half of them has the high four bits."""
    codes = torch.cat([linear.W_q >> 4, linear.W_q & 15]).double()
    matrix: Tensor = (codes - linear.meta["zero"].double()) * linear.meta["scale"].double()
    return matrix.view(linear.out_features, linear.in_features)


def of_tinygemm(codes: Tensor, scale_and_zero: Tensor) -> Tensor:
    """Codes [out, in] of 0 … 15; scales and midpoints [groups, out, 2]."""
    scales, middles = scale_and_zero.double().repeat_interleave(codes.shape[1] // len(scale_and_zero), 0).unbind(2)
    return (codes.double() - 8) * scales.T + middles.T


def unpacked(product: Callable[[Tensor], Tensor], in_features: int) -> Tensor:
    """The matrix of a kernel whose layout depends on the CPU: its products with the unit vectors."""
    return product(torch.eye(in_features, dtype=torch.bfloat16)).T.double()


WEIGHTS = tiny.LINEAR_WEIGHTS
INT8 = WEIGHTS + 4 * ROWS
"""A byte a weight, and a float32 scale a row."""

CASES = {
    "int8": Case(
        cell("int8"), "Linear8bitLt", INT8,
        lambda linear: rows_of_int8(linear.state.CB, linear.state.SCB / 127),
        stock(lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)), error=0.02,
    ),
    "torchao-int8": Case(
        cell("torchao"), "Int8Tensor", INT8 + ROWS,  # a zero a row, too
        lambda linear: rows_of_int8(linear.weight.qdata, linear.weight.scale),
        stock_torchao("Int8WeightOnlyConfig"),
    ),
    "torchao-int8-dynamic": Case(
        cell("torchao", config="Int8DynamicActivationInt8WeightConfig"), "Int8Tensor", INT8 + ROWS,
        lambda linear: rows_of_int8(linear.weight.qdata, linear.weight.scale),
        stock_torchao("Int8DynamicActivationInt8WeightConfig"), error=0.02,
    ),
    "torchao-float8": Case(
        cell("torchao", config="Float8WeightOnlyConfig"), "Float8Tensor", INT8,
        lambda linear: rows_of_int8(linear.weight.qdata, linear.weight.scale),
        stock_torchao("Float8WeightOnlyConfig"),
    ),
    "torchao-int4": Case(
        cell("torchao", config="PrototypeInt4WeightOnlyConfig", group_size=32), "Int4OpaqueTensor",
        WEIGHTS // 2 + 4 * WEIGHTS // 32,
        lambda linear: unpacked(linear, linear.in_features),
        stock_torchao("PrototypeInt4WeightOnlyConfig", "torchao.prototype.quantization.int4", group_size=32),
    ),
    "hqq": Case(cell("hqq"), "HQQLinear", WEIGHTS // 2 + 4 * WEIGHTS // 64, of_hqq, stock_hqq),
    "quanto-int8": Case(
        cell("quanto"), "WeightQBytesTensor", WEIGHTS + 2 * ROWS + 8 * len(tiny.LINEARS),
        lambda linear: rows_of_int8(linear.weight._data, linear.weight._scale),
        stock(lambda: QuantoConfig(weights="int8")),
    ),
    "quanto-int4": Case(
        cell("quanto", weights="int4"), "TinyGemmWeightQBitsTensor",
        WEIGHTS // 2 + 4 * WEIGHTS // 128 + 8 * len(tiny.LINEARS),
        lambda linear: of_tinygemm(linear.weight._data.unpack(), linear.weight._scale_shift),
        stock(lambda: QuantoConfig(weights="int4")),
    ),
    "quanto-int2": Case(
        cell("quanto", weights="int2"), "WeightQBitsTensor",
        WEIGHTS // 4 + 4 * WEIGHTS // 128 + 8 * len(tiny.LINEARS),
        lambda linear: linear.weight.dequantize().double(),
        stock(lambda: QuantoConfig(weights="int2"), torch.inference_mode),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def loaded(case: Case, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(case.config, tiny_llama, tmp_path_factory.mktemp("work"))


def test_every_block_linear_is_quantized_and_nothing_else(loaded: LoadedModel, case: Case) -> None:
    loaded.check()
    assert loaded.quantized == loaded.expected == tiny.LINEARS
    assert loaded.kernel == case.kernel
    head, embedding = loaded.model.lm_head, loaded.model.get_input_embeddings()
    assert type(head) is nn.Linear
    assert head.weight.dtype == embedding.weight.dtype == torch.bfloat16


def test_bytes_are_those_of_codes_and_scales(loaded: LoadedModel, case: Case, tiny_llama: Path) -> None:
    assert loaded.linear_bytes == case.bytes
    assert loaded.effective_bits_per_weight == pytest.approx(case.bytes * 8 / WEIGHTS)
    assert loaded.weight_bytes == case.bytes + 2 * tiny.OTHER_WEIGHTS + tiny.ROTARY_BYTES
    predicted = Prediction(architecture(tiny_llama), case.config, CPU)
    assert predicted.weights().total == loaded.weight_bytes
    for batch_size, prompt in ((1, 240), (8, 192)):
        peak = measured_peak(loaded, batch_size, prompt, 256)
        assert predicted.generation_bytes(batch_size, prompt, 256) == pytest.approx(peak, rel=0.1)
    assert loaded.weight_bytes == case.bytes + 2 * tiny.OTHER_WEIGHTS + tiny.ROTARY_BYTES  # a forward changes nothing


@pytest.mark.parametrize("name", [tiny.LINEARS[0], tiny.LINEARS[-1]])
def test_a_layer_multiplies_by_its_codes_and_scales(loaded: LoadedModel, case: Case, name: str) -> None:
    linear = loaded.model.get_submodule(name)
    inputs = torch.randn(16, linear.in_features, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.inference_mode():
        found, weight = linear(inputs).double(), case.weight(linear)
    assert tiny.relative_error(found, inputs.double() @ weight.T) < case.error


def test_log_probabilities_are_those_of_the_library_alone(loaded: LoadedModel, case: Case, tiny_llama: Path) -> None:
    tokens = tiny.word_ids()
    reference = case.stock(tiny_llama)
    with torch.inference_mode():
        logprobs = reference(tokens[None]).logits[0, :-1].float().log_softmax(-1)
    expected = logprobs.gather(1, tokens[1:, None])[:, 0]
    found = torch.from_numpy(TorchEngine(loaded).score(tokens.numpy()).truth)
    assert torch.equal(found, expected)


def test_what_cannot_be_captured_is_decoded_eagerly(loaded: LoadedModel, case: Case) -> None:
    assert loaded.capturable == (case.kernel not in ("Linear8bitLt", "TinyGemmWeightQBitsTensor", "WeightQBitsTensor"))
    if shutil.which("g++"):
        assert TorchEngine(loaded).decode_mode("compiled") == "compiled"  # on a CPU nothing is captured
    on_gpu = TorchEngine(replace(loaded, device=torch.device("cuda")))
    assert on_gpu.decode_mode("auto") == ("graph" if loaded.capturable else "eager")
    if not loaded.capturable:
        with pytest.raises(QbenchError, match=rf"decode: graph needs kernels .*{loaded.kernel} waits.*use auto"):
            on_gpu.decode_mode("graph")


@pytest.mark.long
def test_a_step_is_compiled_as_a_whole(loaded: LoadedModel, case: Case) -> None:
    if case.kernel == "TinyGemmWeightQBitsTensor":
        with pytest.raises(QbenchError, match=r"torch\.compile does not take the step of Llama.+; use auto"):
            assert_compiles(loaded)
    else:
        assert_compiles(loaded)


def test_outliers_are_multiplied_in_16_bits(tiny_llama: Path, tmp_path: Path) -> None:
    """One input of 40 beside small ones: without the threshold all others are rounded to its scale."""
    inputs = torch.randn(16, tiny.HIDDEN, generator=torch.Generator().manual_seed(2)).bfloat16()
    inputs[:, 7] = 40
    errors = []
    for threshold in (0.0, 6.0):
        linear = load(cell("int8", llm_int8_threshold=threshold), tiny_llama, tmp_path).model.get_submodule(
            tiny.LINEARS[0]
        )
        inputs[:, 7] = 40
        weight = rows_of_int8(linear.state.CB, linear.state.SCB / 127)
        with torch.inference_mode():
            errors.append(tiny.relative_error(linear(inputs).double(), inputs.double() @ weight.T))
    assert errors[0] > 3 * errors[1]


@pytest.fixture(scope="module")
def fp8(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """An FP8 checkpoint, and the weights that it stands for."""
    folder = tmp_path_factory.mktemp("compressed") / "fp8"
    return folder, ready_made.write_fp8(tiny_llama, folder)


@pytest.fixture(scope="module")
def auto_round(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of AutoRound, and the weights that it stands for."""
    folder = tmp_path_factory.mktemp("auto-round") / "w4g32"
    return folder, ready_made.write_auto_round(tiny_llama, folder, group_size=32)


def with_weights(folder: Path, weights: dict[str, Tensor]) -> nn.Module:
    """The 16-bit model with other weights in its blocks, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, weight in weights.items():
        model.get_submodule(name).weight.data = weight.float()
    return model


def test_an_fp8_checkpoint_multiplies_in_float8(
    fp8: tuple[Path, dict[str, Tensor]], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers' linears for GPUs, whose product torch has on CPUs, too."""

    def has_kernels(quantizer: Any, **settings: object) -> None:
        quantizer.use_fp8_kernel = quantizer.quantization_config.use_optimized_inference

    monkeypatch.setattr(CompressedTensorsHfQuantizer, "validate_environment", has_kernels)
    folder, weights = fp8
    config = cell("compressed-tensors", checkpoint=str(folder)).resolved()
    loaded = load(config, tiny_llama, tmp_path)
    loaded.check()
    assert loaded.quantized == tiny.LINEARS
    assert loaded.kernel == "CompressedTensorsFP8Linear"
    assert loaded.linear_bytes == INT8
    predicted = Prediction(architecture(tiny_llama), config, CPU).weights()
    assert predicted.total == loaded.weight_bytes
    inputs = torch.randn(16, tiny.HIDDEN, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.inference_mode():
        found = loaded.model.get_submodule(tiny.LINEARS[0])(inputs).double()
    assert tiny.relative_error(found, inputs.double() @ weights[tiny.LINEARS[0]].T) < 0.04  # of inputs in float8


def test_fp8_is_unavailable_where_it_would_be_16_bit(fp8: tuple[Path, dict[str, Tensor]]) -> None:
    config = cell("compressed-tensors", checkpoint=str(fp8[0]))
    assert config.unavailable_on("cuda") is None
    assert "device: cuda" in (config.unavailable_on("cpu") or "")


@pytest.mark.parametrize(("bits", "kind"), [(8, "int"), (4, "int")])
def test_what_is_made_16_bit_again_is_refused(tiny_llama: Path, tmp_path: Path, bits: int, kind: str) -> None:
    folder = tmp_path / "made"
    ready_made.write(tiny_llama, folder, ready_made.compressed_scheme(kind, bits), lambda weight: ({}, weight))
    with pytest.raises(UnavailableError, match=rf"quantizes to {bits} bits int, .*16 bits; give an FP8 checkpoint"):
        cell("compressed-tensors", checkpoint=str(folder)).resolved()


def test_an_auto_round_checkpoint_is_the_model_with_its_weights(
    auto_round: tuple[Path, dict[str, Tensor]], tiny_llama: Path, tmp_path: Path
) -> None:
    folder, weights = auto_round
    config = cell("auto-round", checkpoint=str(folder)).resolved()
    assert (config.weight_bits, getattr(config, "group_size", None)) == (4, 32)
    loaded = load(config, tiny_llama, tmp_path)
    loaded.check()
    assert loaded.quantized == tiny.LINEARS
    # Scales in 16 bits and zeros in 4, and for each linear eight shifts.
    assert loaded.linear_bytes == WEIGHTS // 2 + WEIGHTS // 32 * 5 // 2 + 8 * 4 * len(tiny.LINEARS)
    predicted = Prediction(architecture(tiny_llama), config, CPU)
    assert predicted.weights().total == loaded.weight_bytes
    assert predicted.generation_bytes(1, 240, 256) == pytest.approx(measured_peak(loaded, 1, 240, 256), rel=0.1)
    reference = with_weights(tiny_llama, weights)
    with torch.inference_mode():
        assert tiny.relative_error(tiny.logits(loaded), reference(tiny.TOKENS).logits) < 0.02


def test_a_kernel_of_another_dtype_is_refused(
    auto_round: tuple[Path, dict[str, Tensor]], tiny_llama: Path, tmp_path: Path
) -> None:
    config = cell("auto-round", checkpoint=str(auto_round[0]))
    with pytest.raises(QbenchError, match="computes in float16 here, and the run in float32; set dtype: float16"):
        load(config, tiny_llama, tmp_path, dtype=torch.float32)


def test_a_ready_checkpoint_is_known_by_its_content(
    auto_round: tuple[Path, dict[str, Tensor]], tiny_llama: Path, tmp_path: Path
) -> None:
    from qbench.machine import environment

    machine = environment.detect()

    def unit(folder: Path) -> str:
        config = run_config(tiny_llama, [{"kind": "auto-round", "checkpoint": str(folder)}])
        return fingerprint.units(config, config.backends[0], machine, content.fingerprint(tiny_llama))["cell"]

    moved = Path(shutil.copytree(auto_round[0], tmp_path / "moved"))
    assert unit(moved) == unit(auto_round[0])
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert unit(moved) != unit(auto_round[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 8}, "bits 8 is asked for, but .* was quantized with bits 4; remove `bits:`"),
        ({"group_size": 128}, "group_size 128 is asked for, but .* with group_size 32"),
    ],
)
def test_a_ready_checkpoint_decides_its_settings(
    auto_round: tuple[Path, dict[str, Tensor]], options: dict[str, object], words: str
) -> None:
    with pytest.raises(QbenchError, match=words):
        cell("auto-round", checkpoint=str(auto_round[0]), **options).resolved()


def test_a_checkpoint_of_another_method_or_model_is_refused(
    auto_round: tuple[Path, dict[str, Tensor]], tiny_llama: Path, large_and_small: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(QbenchError, match="says quant_method auto-round, not compressed-tensors"):
        cell("compressed-tensors", checkpoint=str(auto_round[0])).resolved()
    with pytest.raises(QbenchError, match="says quant_method None, not auto-round"):
        cell("auto-round", checkpoint=str(tiny_llama)).resolved()
    with pytest.raises(QbenchError, match=r"checkpoint of another model: model.layers.0.self_attn.q_proj is 256 x 256"):
        load(cell("auto-round", checkpoint=str(auto_round[0])), large_and_small[1], tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "int8", "llm_int8_threshold": -1}, "llm_int8_threshold: input should be greater than or equal to 0"),
        ({"kind": "hqq", "nbits": 5}, "nbits: input should be 8, 4, 3 or 2"),
        ({"kind": "hqq", "group_size": 20}, "group_size: input should be a multiple of 8"),
        ({"kind": "quanto", "weights": "int3"}, "weights: input should be 'int8', 'float8', 'int4' or 'int2'"),
        ({"kind": "torchao", "config": "Int4"}, "config: input should be 'Int8WeightOnlyConfig'"),
        (
            {"kind": "torchao", "config": "PrototypeInt4WeightOnlyConfig", "granularity": "PerRow"},
            "granularity: is no argument of PrototypeInt4WeightOnlyConfig, which takes group_size; remove it",
        ),
        (
            {"kind": "torchao", "granularity": "PerRow", "group_size": 64},
            "granularity: is PerGroup where group_size is given; remove one of them",
        ),
        ({"kind": "auto-round"}, "checkpoint: is missing"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(QbenchError) as caught:
        configfile.check({"name": "r", "model": {"demo": True}, "backends": [options]}, "r.yaml")
    assert words.lower() in str(caught.value).lower()


def test_a_group_size_that_does_not_divide_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        QbenchError, match=r"group_size 48 does not divide the 65536 weights of .*q_proj; choose another"
    ):
        load(cell("hqq", group_size=48), tiny_llama, tmp_path)


def test_quantizing_by_hqq_reports_each_linear(tiny_llama: Path, tmp_path: Path) -> None:
    reported: list[tuple[str, int, int]] = []
    load(cell("hqq"), tiny_llama, tmp_path, progress=lambda *step: reported.append(step))
    linears = 7 * tiny.LAYERS
    assert reported == [("quantizing", done, linears) for done in range(linears)]


@pytest.mark.parametrize(
    ("config", "library"),
    [
        (cell("int8"), "bitsandbytes"),
        (cell("torchao"), "torchao"),
        (cell("hqq"), "hqq"),
        (cell("quanto"), "optimum.quanto"),
        (cell("compressed-tensors", checkpoint="x"), "compressed_tensors"),
        (cell("auto-round", checkpoint="x"), "auto_round"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_a_missing_library_is_an_import_error_and_an_extra_installs_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Backend, library: str
) -> None:
    for name in [name for name in sys.modules if name == library or name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=library):
        load(config, tiny_llama, tmp_path)
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = config.install.partition("[")[2].partition("]")[0]
    wishes = " ".join(project["optional-dependencies"][extra])
    assert library.replace("_", "-").replace(".", "-") in wishes


def test_the_docs_list_every_kind_as_the_program_does() -> None:
    page = (Path(__file__).parents[1] / "docs" / "backends.md").read_text(encoding="utf-8")
    for kind in SHIPPED:
        assert "| `{}` | {} | {} | `{}` |".format(kind, *facts(kind)) in page


def test_a_cell_that_cannot_work_here_is_unavailable_and_says_what_to_do(tiny_llama: Path, tmp_path: Path) -> None:
    wanted = {"kind": "torchao", "config": "Int4WeightOnlyConfig", "group_size": 32}
    _, ok, watcher = run(run_config(tiny_llama, [wanted], device="cpu"), tmp_path)
    (row,) = watcher.finished
    assert not ok
    assert row.status == "unavailable"
    assert "no 4-bit kernel of it for CPUs; take config: PrototypeInt4WeightOnlyConfig" in (row.error or "")
