from pathlib import Path

import pytest
import torch

from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.engine.torch.loaded import LoadedModel
from tests.support import tiny_llama as tiny


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(tiny.options(tiny_llama, tmp_path_factory.mktemp("work")), FP16(), None)


def test_nothing_is_quantized_or_expected_to_be(loaded: LoadedModel) -> None:
    assert loaded.kernel == "torch.nn.Linear"
    assert loaded.quantized == loaded.expected == ()
    assert loaded.quantize_s is None
    loaded.check()


def test_sixteen_bits_a_weight(loaded: LoadedModel) -> None:
    assert loaded.linear_weights == tiny.LINEAR_WEIGHTS
    assert loaded.effective_bits_per_weight == 16


def test_weight_bytes_are_all_weights_and_the_rotary_buffers(loaded: LoadedModel) -> None:
    assert loaded.weight_bytes == 2 * (tiny.LINEAR_WEIGHTS + tiny.OTHER_WEIGHTS) + tiny.ROTARY_BYTES


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_are_in_the_dtype_of_the_run(tiny_llama: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    loaded = fp16.load(tiny.options(tiny_llama, tmp_path, dtype), FP16(), None)
    assert loaded.dtype == loaded.model.dtype == dtype
    assert not loaded.model.training


def test_a_model_without_tokenizer(tmp_path: Path) -> None:
    folder = tiny.save_tiny_llama(tmp_path / "bare", tokenizer=False)
    loaded = fp16.load(tiny.options(folder, tmp_path), FP16(), None)
    assert loaded.tokenizer is None
    assert tiny.logits(loaded).isfinite().all()
