from pathlib import Path

import pytest
import torch

pytest.importorskip("bitsandbytes")
from bitsandbytes.functional import has_avx512bf16

from qbench.backends import fp16, nf4
from qbench.backends.fp16 import FP16
from qbench.backends.nf4 import NF4
from qbench.compat.bitsandbytes import state_tensors
from qbench.engine.torch.loaded import LoadedModel
from tests.support import tiny_llama as tiny
from tests.support.compiled import assert_compiles

CODE_BOOK_BYTES = 16 * 4
"""Sixteen float32 levels, which every linear holds for itself."""
BLOCKS = tiny.LINEAR_WEIGHTS // 64


def scale_bytes(double_quant: bool) -> int:
    """Bytes of block scales and code books of all linears, as the format says."""
    count = len(tiny.LINEARS)
    if has_avx512bf16():  # repacked: bfloat16 scales; the float32 offset of the scales stays behind
        return 2 * BLOCKS + count * (CODE_BOOK_BYTES + (4 if double_quant else 0))
    if not double_quant:
        return 4 * BLOCKS + count * CODE_BOOK_BYTES
    # A byte a block, a float32 for 256 of those, and for every linear the offset and a code book of 256 levels.
    return BLOCKS + 4 * BLOCKS // 256 + count * (CODE_BOOK_BYTES + 4 + 256 * 4)


@pytest.fixture(scope="module", params=[False, True], ids=["single", "double_quant"])
def double_quant(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, double_quant: bool) -> LoadedModel:
    options = tiny.options(tiny_llama, tmp_path_factory.mktemp("work"))
    return nf4.load(options, NF4(double_quant=double_quant), None)


def test_every_block_linear_is_quantized(loaded: LoadedModel) -> None:
    assert loaded.quantized == loaded.expected == tiny.LINEARS
    assert loaded.kernel == "Linear4bit"
    loaded.check()


@pytest.mark.long
def test_a_step_is_compiled_as_a_whole(loaded: LoadedModel) -> None:
    assert_compiles(loaded)


def test_head_and_embedding_stay_16_bit(loaded: LoadedModel) -> None:
    assert type(loaded.model.lm_head) is torch.nn.Linear
    assert loaded.model.lm_head.weight.dtype == loaded.model.model.embed_tokens.weight.dtype == torch.bfloat16


def test_effective_bits_count_scales_and_code_books(loaded: LoadedModel, double_quant: bool) -> None:
    expected = tiny.LINEAR_WEIGHTS // 2 + scale_bytes(double_quant)
    assert loaded.linear_bytes == expected
    assert loaded.effective_bits_per_weight == pytest.approx(expected * 8 / tiny.LINEAR_WEIGHTS)


def test_weight_bytes_are_everything(loaded: LoadedModel) -> None:
    assert loaded.weight_bytes == loaded.linear_bytes + 2 * tiny.OTHER_WEIGHTS + tiny.ROTARY_BYTES


def test_a_forward_changes_no_bytes(loaded: LoadedModel) -> None:
    before = loaded.weight_bytes
    tiny.logits(loaded)
    states = [loaded.model.get_submodule(name).weight.quant_state for name in loaded.quantized]
    scales = {tensor.data_ptr() for state in states for tensor in state_tensors(state)}
    assert scales == {tensor.data_ptr() for tensor in loaded.extra_tensors}
    assert loaded.weight_bytes == before


def test_outputs_are_near_the_16_bit_ones(loaded: LoadedModel, tiny_llama: Path, tmp_path: Path) -> None:
    reference = fp16.load(tiny.options(tiny_llama, tmp_path), FP16(), None)
    assert 0.01 < tiny.relative_error(tiny.logits(loaded), tiny.logits(reference)) < 0.35


def test_a_model_without_tokenizer(tmp_path: Path) -> None:
    folder = tiny.save_tiny_llama(tmp_path / "bare", tokenizer=False)
    loaded = nf4.load(tiny.options(folder, tmp_path), NF4(), None)
    assert loaded.tokenizer is None
    assert tiny.logits(loaded).isfinite().all()
