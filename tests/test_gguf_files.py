"""GGUF files that are written here: their size as predicted, the model's computation and texts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import gguf as library
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from qbench import demo
from qbench.backends import gguf
from qbench.backends.gguf import GGUF, convert
from qbench.backends.gguf.export import tokenize
from qbench.backends.gguf.file import File
from qbench.backends.gguf.options import FILE
from qbench.cli.app import app
from qbench.config import ModelConfig
from qbench.config.load import load
from qbench.config.target import Target
from qbench.engine.llama_cpp.context import Model
from qbench.engine.llama_cpp.engine import LlamaCppEngine
from qbench.errors import QbenchError
from qbench.model import ggml
from qbench.model.architecture import of_model
from qbench.plan.engines import predict
from tests.support import tiny_variants
from tests.support.tiny_llama import options, save_tiny_llama

PROMPT = np.arange(24)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as its checkpoint has it, in bfloat16, ready for llama.cpp to quantize."""
    path = tmp_path_factory.mktemp("source") / FILE
    content = json.loads((demo.MODEL_DIR / "config.json").read_text())
    convert.write(options(demo.MODEL_DIR, path.parent), content, path, None, None)
    return path


SLOW = ("IQ3_S", "IQ3_M")
"""They search for their codes."""


@pytest.mark.parametrize(
    "quant", [pytest.param(q, marks=pytest.mark.long if q in SLOW else ()) for q in get_args(ggml.DataFreeQuant)]
)
def test_quantizations_are_llama_cpps_and_as_large_as_predicted(
    quant: ggml.Quant, source: Path, tmp_path: Path
) -> None:
    model = of_model(ModelConfig(demo=True))
    convert.quantize(source, tmp_path / FILE, GGUF(quant=quant), None)
    file = File(tmp_path / FILE, "")
    assert file.file_type == quant
    assert sum(tensor.bytes for tensor in file.linears) == ggml.linears_bytes(model, quant, imatrix=False)
    assert file.head.bytes == ggml.embedding_bytes(model, quant)


def test_blocks_are_those_of_the_gguf_package() -> None:
    sizes = {kind.name: size for kind, size in library.GGML_QUANT_SIZES.items()}
    assert {name: sizes[name] for name in ggml.BLOCKS} == ggml.BLOCKS


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.to(torch.float16).save_pretrained(folder)
    return folder


def distance(model: PreTrainedModel, engine: LlamaCppEngine) -> float:
    """Largest difference of a token's log-probability, from transformers in float32."""
    with torch.inference_mode():
        logits = model.float()(torch.from_numpy(PROMPT)[None]).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, torch.from_numpy(PROMPT)[1:, None])[:, 0].numpy()
    return float(np.abs(engine.score(PROMPT).truth - expected).max())


def llama3() -> LlamaForCausalLM:
    """Long waves turn slower, and positions reach where it shows."""
    torch.manual_seed(5)
    scaling = {
        "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**tiny_variants.SHAPE, rope_parameters=scaling))


def biased() -> LlamaForCausalLM:
    torch.manual_seed(6)
    model = LlamaForCausalLM(LlamaConfig(**tiny_variants.SHAPE, attention_bias=True, tie_word_embeddings=True))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("make", [tiny_variants.llama, tiny_variants.qwen2, llama3, biased])
def test_models_compute_what_transformers_computes(make: object, tmp_path: Path) -> None:
    assert callable(make)
    model = make()
    folder = saved(model, tmp_path / "model")
    engine = gguf.load(options(folder, tmp_path), GGUF(quant="F16"), None)
    assert distance(model, engine) < 0.01


def test_what_is_not_written_here_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tiny_variants.neox(), tmp_path / "neox")
    settings = {"name": "r", "model": {"path": str(folder)}, "backends": [{"kind": "gguf"}], "measure": {}}
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(settings))
    done = CliRunner().invoke(app, ["validate", str(path)])
    assert done.exit_code == 2
    assert "model_type gpt_neox is not written as GGUF here; convert it with llama.cpp's" in done.stderr
    with pytest.raises(QbenchError, match="rope_type yarn"):
        GGUF(label="g").check_model({"model_type": "llama", "rope_parameters": {"rope_type": "yarn"}})
    for cell, problem in (
        ({"quant": "F16", "file": "x.gguf"}, "both quant and file"),
        ({"quant": "Q4_K_X"}, r"quant.*Q4_K_M"),
    ):
        path.write_text(json.dumps({**settings, "backends": [{"kind": "gguf", **cell}]}))
        with pytest.raises(QbenchError, match=problem):
            load(path)


def test_a_file_of_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    config = GGUF(label="g", file=source)
    tiny = save_tiny_llama(tmp_path / "tiny")
    with pytest.raises(QbenchError, match=r"has num_hidden_layers 4, and the model 2; give a GGUF file of this model"):
        gguf.load(options(tiny, tmp_path), config, None)
    twin = tmp_path / "twin"  # the demo model's shape and vocabulary, other weights
    twin.mkdir()
    for file in demo.MODEL_DIR.glob("*.json"):
        (twin / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(twin)).to(torch.bfloat16).save_pretrained(twin)
    with pytest.raises(QbenchError, match="holds other weights than the model"):
        gguf.load(options(twin, tmp_path), config, None)
    tokenizer = json.loads((twin / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (twin / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        QbenchError, match=r"has another vocabulary: token \d+ is 'a' there and 'b'|is 'b' there and 'a'"
    ):
        gguf.load(options(twin, tmp_path), config, None)


def test_peak_memory_is_within_a_tenth_of_the_plan(source: Path, tmp_path: Path) -> None:
    """Of shapes of which cache, logits and weights are the most: 32 sequences of 1024 tokens take 67 MB of cache."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engine = gguf.load(options(demo.MODEL_DIR, tmp_path), GGUF(file=source), None)
        predicted = predict(of_model(ModelConfig(demo=True)), GGUF(quant="BF16"), Target("cpu", 4))
        assert engine.about.weight_bytes == pytest.approx(predicted.weights().total, rel=0.01)
        for batch, length in ((1, 64), (32, 1024)):
            session = engine.session(batch, length)
            (peak,) = engine.peak_memory(lambda: session.generate(np.ones((batch, 16), np.int64), 2))  # noqa: B023
            session.close()
            assert peak == pytest.approx(predicted.generation_bytes(batch, 16, length), rel=0.1)
    finally:
        torch.set_num_threads(before)


def test_llama_cpp_reads_text_as_a_tokenizer_with_byte_fallback(tmp_path: Path) -> None:
    """As Llama 2 and Mistral have it: a space before the text, merges by rank, bytes for what no token covers."""
    pairs = ["h e", "l l", "he ll", "hell o", "▁ hello", "w o", "r l", "wo rl", "worl d"]
    merges = [(left, right) for left, right in (pair.split(" ") for pair in pairs)]
    pieces = [*"▁helowrd", *("".join(pair) for pair in merges)]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    vocab |= {piece: 259 + number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.ByteFallback()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    folder = saved(LlamaForCausalLM(LlamaConfig(**tiny_variants.SHAPE | {"vocab_size": 280})), tmp_path / "model")
    tokenizer.save_pretrained(folder)
    gguf.load(options(folder, tmp_path), GGUF(quant="F16"), None)
    for text in ("hello world", "hello, hello", "wor é"):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenize(Model(tmp_path / FILE, vocabulary_only=True), text) == expected
