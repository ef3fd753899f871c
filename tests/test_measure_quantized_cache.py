"""transformers' quantized cache: its bytes by arithmetic, its tokens beside those of a 16-bit cache, its errors."""

import gc
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import MistralConfig, MistralForCausalLM
from transformers.cache_utils import Cache

from qbench import demo
from qbench.backends import fp16
from qbench.backends._checkpoint import ReadyMade
from qbench.backends.base import import_backend
from qbench.backends.fp16 import FP16
from qbench.config import Backend, ThroughputConfig, backend_kinds
from qbench.config.target import Target
from qbench.engine.torch import cache as module
from qbench.engine.torch.cache import quantized_cache
from qbench.engine.torch.decode import generate
from qbench.engine.torch.eager import EagerDecoder
from qbench.engine.torch.loaded import LoadedModel, storage_bytes
from qbench.engine.torch.step import keeping
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.model.architecture import Architecture
from qbench.model.calibration import Calibration
from qbench.model.kv_cache import QuantizedKeysAndValues, group_size
from qbench.plan import cells
from qbench.plan.memory import Prediction
from tests.support import tiny_llama as tiny
from tests.support.architectures import architecture
from tests.support.runs import run_config
from tests.support.throughput import measured

needs_hqq = pytest.mark.skipif(find_spec("hqq") is None, reason="hqq is not installed")

KINDS = ("int8", "int4")
FEW = Calibration(text=None, samples=2, length=32, seed=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The demo model."""
    return fp16.load(tiny.options(demo.MODEL_DIR, tmp_path_factory.mktemp("work")), FP16(), None)


@pytest.fixture(scope="module")
def shape() -> Architecture:
    """Its dimensions: 4 layers, 2 key-value heads of 64."""
    return architecture(demo.MODEL_DIR)


@pytest.fixture(scope="module")
def tokens(trained: LoadedModel) -> torch.Tensor:
    """The beginning of its held-out text: int64 [1, 512]."""
    ids = trained.tokenizer(demo.HELDOUT_TEXT.read_text())["input_ids"][:512]
    return torch.tensor([ids])


def held_bytes(cache: Cache) -> int:
    """Every storage that the layers hold, in whatever containers."""
    return storage_bytes(tensor for layer in cache.layers for tensor in tensors(vars(layer)))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)


@torch.inference_mode()
def read(model: Any, cache: Cache, *pieces: torch.Tensor) -> None:
    for piece in pieces:
        model(input_ids=piece, **keeping(model, cache), use_cache=True, logits_to_keep=1)


@needs_hqq
@pytest.mark.parametrize(("kind", "share"), [("int8", 8.5 / 16), ("int4", 4.5 / 16)])
def test_the_cache_holds_its_share_of_16_bit(
    trained: LoadedModel, shape: Architecture, tokens: torch.Tensor, kind: Any, share: float
) -> None:
    """4 layers x 2 x 2 heads x 64 channels x 2 bytes are 2 KiB a token in 16 bit."""
    cache, predicted = quantized_cache(trained.model, kind), QuantizedKeysAndValues(shape, kind, 2)
    pair = tokens.repeat(2, 1)
    read(trained.model, cache, pair[:, :384])
    assert held_bytes(cache) == share * 2 * 384 * 2048 == 2 * predicted.held(384)
    read(trained.model, cache, pair[:, 384:400])
    assert held_bytes(cache) == share * 2 * 384 * 2048 + 2 * 16 * 2048 == 2 * predicted.held(400, residual=16)
    read(trained.model, cache, pair[:, 400:512])  # the 128th token in 16 bit
    assert held_bytes(cache) == share * 2 * 512 * 2048
    assert cache.get_seq_length() == 512
    cache.reset()
    assert cache.get_seq_length() == 0
    assert held_bytes(cache) == 0


@needs_hqq
@pytest.mark.parametrize(("kind", "least"), [("int8", 0.99), ("int4", 0.95)])
@torch.inference_mode()
def test_most_greedy_tokens_are_those_of_a_16_bit_cache(
    trained: LoadedModel, tokens: torch.Tensor, kind: Any, least: float
) -> None:
    """Over the same text, so that one other token does not change all that follow; across a second quantization."""
    decoders = [EagerDecoder(trained.model, 512, one) for one in ("16bit", kind)]
    found: list[list[int]] = []
    for decoder in decoders:
        first = decoder.prefill(tokens[:, :320])
        found.append([int(first)] + [int(decoder.step(tokens[:, i : i + 1])) for i in range(320, 511)])
    same = sum(a == b for a, b in zip(*found, strict=True))
    assert least * len(found[0]) <= same
    assert found[0][0] == found[1][0], "attention sees the prompt in 16 bit"


@needs_hqq
@pytest.mark.parametrize(("kind", "prompt", "new"), [("int8", 384, 16), ("int4", 384, 16), ("int4", 64, 144)])
def test_peaks_are_predicted(
    trained: LoadedModel, shape: Architecture, tmp_path: Path, kind: Any, prompt: int, new: int
) -> None:
    settings = {"seq_len": prompt + new, "new_tokens": new, "batch_sizes": [4], "trials": 1}
    (row,) = measured(trained, None, tmp_path, kv_cache=kind, **settings)
    assert (row.kv_cache, row.decode_mode, row.status) == (kind, "eager", "ok")
    target = Target("cpu", 2, environment.detect().cpu_features)
    predicted = Prediction(shape, FP16(), target).generation_bytes(4, prompt, prompt + new, kind)
    assert row.peak_memory_bytes == pytest.approx(predicted, rel=0.05)


@needs_hqq
@pytest.mark.parametrize(
    "kind",
    [kind for kind, cls in backend_kinds().items() if cls.engine == "torch" and not issubclass(cls, ReadyMade)],
)
def test_every_backend_takes_it(tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    for library in set(backend_kinds()[kind].libraries) - set(Backend.libraries):
        if not list(metadata.distributions(name=library)):
            pytest.skip(f"{library} is not installed")
    config = backend_kinds()[kind](kind=kind)
    backend = import_backend(config)
    loaded = backend.load(tiny.options(tiny_llama, tmp_path), config, FEW if config.calibrates else None)
    rows = [row for one in KINDS for row in measured(loaded, None, tmp_path, kv_cache=one, trials=1)]
    assert [(row.kv_cache, row.decode_mode, row.status) for row in rows] == [(one, "eager", "ok") for one in KINDS]
    assert all(row.decode_tokens_per_s for row in rows)
    gc.collect()


def test_groups_divide_a_head_and_are_even_a_token() -> None:
    assert group_size(8, 128) == 64
    assert group_size(2, 64) == 64
    assert group_size(1, 64) == 32  # one group a token could not be packed in pairs
    assert group_size(3, 64) == 32
    assert group_size(4, 80) == 16
    assert group_size(2, 32) == 32


def test_16_bit_is_the_default_and_says_so(trained: LoadedModel, tmp_path: Path) -> None:
    (row,) = measured(trained, None, tmp_path, trials=1)
    assert row.kv_cache == "16bit"

    with pytest.raises(ValidationError, match="decode: graph needs a cache of one length, and kv_cache: int4 grows"):
        ThroughputConfig(decode="graph", kv_cache="int4")


def test_hqq_is_asked_for_before_anything_runs(monkeypatch: pytest.MonkeyPatch, trained: LoadedModel) -> None:
    machine = environment.detect()
    without = {name: version for name, version in machine.versions.items() if name != "hqq"}
    bare = machine.model_copy(update={"versions": without})
    asked = {"throughput": {"kv_cache": "int8"}}
    words = r"measure.throughput.kv_cache: int8 needs hqq.*pip install 'qbench-llm\[kv\]'"
    with pytest.raises(QbenchError, match=words):
        cells.preflight(run_config(measure=asked), bare)
    cells.preflight(run_config(measure={"throughput": {}}), bare)
    cells.preflight(run_config(measure=asked), bare.model_copy(update={"versions": {**without, "hqq": "0.2.8"}}))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(QbenchError, match="kv_cache: int8 needs hqq"):
        quantized_cache(trained.model, "int8")


@needs_hqq
def test_a_model_that_does_not_attend_to_everything_is_refused() -> None:
    config = MistralConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=512, sliding_window=8,
    )  # fmt: skip
    with pytest.raises(QbenchError, match=r"full attention.*use 16bit"):
        quantized_cache(MistralForCausalLM(config), "int8")


@needs_hqq
def test_a_decoder_begins_every_generation_anew(trained: LoadedModel, tokens: torch.Tensor) -> None:
    decoder = EagerDecoder(trained.model, 300, "int4")
    first, second = (generate(decoder, tokens[:, :160], 140) for _ in range(2))
    assert (first.tokens == second.tokens).all()
