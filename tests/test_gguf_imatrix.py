"""The importance matrix of a GGUF file: what it holds, what it changes, and which quantizations need it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from qbench import demo
from qbench.backends import gguf
from qbench.backends.gguf import GGUF, convert
from qbench.backends.gguf.file import File
from qbench.backends.gguf.imatrix import CHUNKS, DATASET, collect
from qbench.backends.gguf.options import FILE
from qbench.config.run import RunConfig
from qbench.model import architecture, ggml, texts
from qbench.model.calibration import Calibration
from qbench.model.find import read_config
from qbench.run import checkpoints
from qbench.run.fingerprint import checkpoint_facts
from tests.support import tiny_variants
from tests.support.cli import qbench
from tests.support.frames import read_frames
from tests.support.runs import cells_here
from tests.support.tiny_llama import options

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""GGUF's names of a block's linears, by those of transformers."""


def written(folder: Path, work: Path) -> Path:
    """A model as its checkpoint has it, ready for llama.cpp to quantize."""
    path = work / FILE
    convert.write(options(folder, work), read_config(folder), path, None, None)
    return path


@pytest.mark.parametrize("make", [tiny_variants.llama, tiny_variants.qwen2])
def test_it_holds_mean_squares_of_what_torch_multiplies(make: Any, tmp_path: Path) -> None:
    model = make().float()
    model.save_pretrained(tmp_path / "model")
    calibration = Calibration(text=None, samples=3, length=70, seed=0)
    found = collect(written(tmp_path / "model", tmp_path), options(tmp_path / "model", tmp_path), calibration)
    squares: dict[str, list[torch.Tensor]] = defaultdict(list)
    for number, block in enumerate(model.model.layers):
        for name, short in NAMES.items():
            key = f"blk.{number}.{short}.weight"
            block.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, key=key: squares[key].append(inputs[0].double().square().mean((0, 1)))
            )
    with torch.inference_mode():
        for ids in calibration.sequences(None, model.config.vocab_size):
            model(torch.tensor([ids]))
    assert found.keys() == squares.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, torch.stack(squares[name]).mean(0), rtol=2e-3)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The demo model in Q2_K, without an importance matrix and with one."""
    text = texts.read("demo", "train", "calibration.text")
    found = {}
    for imatrix in (False, True):
        folder = tmp_path_factory.mktemp("quantized")
        calibration = Calibration(text, samples=8, length=256, seed=0) if imatrix else None
        gguf.quantize(options(demo.MODEL_DIR, folder), GGUF(quant="Q2_K", imatrix=imatrix), calibration, folder)
        found[imatrix] = folder / FILE
    return found


def test_it_moves_predictions_towards_those_of_the_model(quantized: dict[bool, Path], tmp_path: Path) -> None:
    """Read on other text than was calibrated on."""
    model = AutoModelForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32)
    loaded = {
        imatrix: gguf.load(options(demo.MODEL_DIR, tmp_path), GGUF(file=path), None)
        for imatrix, path in quantized.items()
    }
    ids = np.array(loaded[True].encode(texts.read("demo", "test", "text")))[: 6 * 256].reshape(6, 256)
    errors: dict[bool, list[float]] = {False: [], True: []}
    for window in ids:
        with torch.inference_mode():
            logits = model(torch.from_numpy(window)[None]).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, torch.from_numpy(window)[1:, None])[:, 0].numpy()
        for imatrix, engine in loaded.items():
            errors[imatrix].append(float(np.square(engine.score(window).truth - expected).mean()))
    assert np.mean(errors[True]) < 0.9 * np.mean(errors[False])


def test_a_file_names_the_text_that_it_was_made_with(quantized: dict[bool, Path]) -> None:
    plain, weighed = (File(quantized[imatrix], "") for imatrix in (False, True))
    assert plain.value(CHUNKS) is None
    assert weighed.value(CHUNKS) == 8
    text = texts.read("demo", "train", "calibration.text")
    assert weighed.value(DATASET) == f"sha256:{Calibration(text, 8, 256, 0).sha256}"


def test_another_text_makes_another_checkpoint(tmp_path: Path) -> None:
    def facts(text: str, imatrix: bool) -> dict[str, Any]:
        (tmp_path / "text.txt").write_text(text)
        config = RunConfig.model_validate(
            {
                "name": "r",
                "model": {"demo": True},
                "calibration": {"text": str(tmp_path / "text.txt")},
                "backends": [{"kind": "gguf", "imatrix": imatrix}],
            }
        )
        return checkpoint_facts(config, config.backends[0], "model", device="cpu", dtype="float32")

    assert facts("one", True) != facts("two", True)
    assert facts("one", False) == facts("two", False) != facts("one", True)


def test_row_and_model_card_say_that_there_was_one(tmp_path: Path) -> None:
    cell = {"kind": "gguf", "quant": "Q2_K_S", "imatrix": True}
    settings = {
        "name": "r", "model": {"demo": True}, "threads": 1, "backends": [cell], "measure": {},
        "calibration": {"samples": 2, "length": 64},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(settings))
    with cells_here() as patch:
        patch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
        ran = qbench("run", "r.yaml", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        exported = qbench("export", "r.yaml", "--out", "out", cwd=tmp_path)
        assert exported.returncode == 0, exported.stderr
        assert len(checkpoints.entries()) == 1  # both took the same file
    (row,) = read_frames(tmp_path / "results" / "r").cells.to_dict("records")
    sha256 = Calibration(texts.read("demo", "train", "calibration.text"), 2, 64, 0).sha256
    assert (row["status"], row["bits"], row["calibration_sha256"]) == ("ok", 2, sha256)
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert f"an importance matrix, collected over 2 pieces of a calibration text (sha256:{sha256})" in card
    assert "without an importance matrix" not in card


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"quant": "IQ2_XXS"}, "quant: IQ2_XXS needs an importance matrix; add `imatrix: true`"),
        ({"quant": "F16", "imatrix": True}, "imatrix: F16 quantizes nothing"),
        ({"file": "x.gguf", "imatrix": True}, "imatrix: a file is quantized already"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        GGUF.model_validate({"kind": "gguf", **given})


def of_eight_blocks(folder: Path, heads: int) -> Path:
    """A random Llama, deep enough that the first and the last eighth differ from the rest."""
    torch.manual_seed(0)
    shape = tiny_variants.SHAPE | {
        "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": heads,
        "num_key_value_heads": 1, "head_dim": 256 // heads, "tie_word_embeddings": False,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**shape)).to(torch.float16).save_pretrained(folder)
    return folder


QUICK = ("Q2_K_S", "Q4_0", "Q5_0", "IQ4_NL")
SEARCHING = (*(quant for quant in ggml.IMATRIX_QUANTS if quant not in QUICK), "IQ4_XS")


@pytest.mark.parametrize(
    ("quant", "heads"),
    [
        *((quant, heads) for quant in QUICK for heads in (2, 4)),
        *(pytest.param(quant, 2, marks=pytest.mark.long) for quant in SEARCHING),
    ],
)
def test_files_are_as_large_as_predicted(quant: ggml.Quant, heads: int, tmp_path: Path) -> None:
    """Types that need the matrix, and types that other blocks get with one."""
    folder = of_eight_blocks(tmp_path / "model", heads)
    source = written(folder, tmp_path)
    model = architecture.parse(read_config(folder), "")
    ones = {tensor.name: np.ones(256, np.float32) for tensor in File(source, "").linears}
    convert.quantize(source, tmp_path / "out.gguf", GGUF(quant=quant, imatrix=True), ones)
    file = File(tmp_path / "out.gguf", "")
    assert file.file_type == quant
    assert sum(tensor.bytes for tensor in file.linears) == ggml.linears_bytes(model, quant, imatrix=True)
    assert file.head.bytes == ggml.head_bytes(model, quant)
    (embedding,) = (tensor for tensor in file.tensors if tensor.name == "token_embd.weight")
    assert embedding.bytes == ggml.embedding_bytes(model, quant)
