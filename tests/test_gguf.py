"""llama.cpp's figures of a model are those of torch, and what cannot be measured with it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from qbench import demo
from qbench.backends import fp16, gguf
from qbench.backends.gguf import GGUF
from qbench.backends.gguf.options import FILE
from qbench.engine.base import Answer, Engine, Ints, Query
from qbench.engine.llama_cpp.context import Context, Model
from qbench.engine.llama_cpp.engine import LlamaCppEngine
from qbench.engine.torch.engine import TorchEngine
from qbench.errors import QbenchError
from qbench.model import ggml
from qbench.model.load import LoadOptions
from tests.support.tiny_llama import options

TEXT = (Path(demo.__file__).parent / "heldout.txt").read_text()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other by spinning take minutes where something else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def demo_options(work: Path) -> LoadOptions:
    return options(demo.MODEL_DIR, work, torch.float32)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def reference(work: Path) -> TorchEngine:
    return TorchEngine(fp16.load(demo_options(work), fp16.FP16(), None))


@pytest.fixture(scope="module")
def plain(work: Path) -> LlamaCppEngine:
    """The demo model in float16, as a file in `work`."""
    return gguf.load(demo_options(work), GGUF(quant="F16"), None)


def answers(engine: Engine, *, share: bool) -> dict[Query, Answer]:
    """To questions of one subject: a shared beginning, and answers of one to three tokens."""
    tokens = tuple(engine.encode(TEXT)[:500])
    stems = [tokens[:300] + tokens[300 + 20 * i : 315 + 20 * i + i] for i in range(6)]
    queries = [Query(stem, tokens[10 * k : 10 * k + 1 + k % 3]) for stem in stems for k in range(4)]
    asked = engine.loglikelihoods(queries, batch_size=8, share=share)
    assert asked.shared == share
    found: dict[Query, Answer] = {}
    for batch in asked.batches:
        found |= batch
    return found


def perplexity(engine: Engine, tokens: Ints) -> float:
    return float(np.exp(-engine.score(tokens).truth.astype(np.float64).mean()))


def test_float16_has_torchs_perplexity_and_outlines(plain: LlamaCppEngine, reference: TorchEngine) -> None:
    tokens = np.array(reference.encode(TEXT)[:700])  # more than llama.cpp computes at once
    assert perplexity(plain, tokens) == pytest.approx(perplexity(reference, tokens), rel=1e-3)
    expected = reference.score(tokens, top_k=8)
    found = plain.score(tokens, words=expected.words)
    assert expected.outlines is not None
    assert found.outlines is not None
    np.testing.assert_allclose(np.exp(found.outlines), np.exp(expected.outlines), atol=2e-3)
    own = plain.score(tokens, top_k=8)
    assert own.outlines is not None
    np.testing.assert_allclose(np.exp(own.outlines).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(own.outlines[:, 0], own.best, atol=1e-6)


def test_float16_generates_torchs_tokens_in_a_batch_and_one_by_one(
    plain: LlamaCppEngine, reference: TorchEngine
) -> None:
    prompts = np.array(reference.encode(TEXT)[:60]).reshape(3, 20)
    session = plain.session(3, 40)
    batch = session.generate(prompts, 16)
    np.testing.assert_array_equal(batch.tokens, reference.session(3, 40).generate(prompts, 16).tokens)
    np.testing.assert_array_equal(session.generate(prompts, 16).tokens, batch.tokens)  # the cache was emptied
    filled = session.generate(prompts[:, 13:], 16, after=prompts[:, :13])
    np.testing.assert_array_equal(filled.tokens, batch.tokens)
    alone = plain.session(1, 40)
    rows = [alone.generate(prompts[i : i + 1], 12).tokens[0] for i in range(3)]
    # Later, words tie to a digit of float16, which is what activations are rounded to for a product.
    np.testing.assert_array_equal(batch.tokens[:, :12], rows)
    assert len(batch.step_s) == 15
    assert min(batch.ttft_s, *batch.step_s) > 0


def test_shared_beginnings_change_no_answer(plain: LlamaCppEngine, reference: TorchEngine) -> None:
    shared, whole, torchs = answers(plain, share=True), answers(plain, share=False), answers(reference, share=True)
    assert shared.keys() == torchs.keys()
    for query, (value, greedy) in torchs.items():
        assert shared[query][0] == pytest.approx(whole[query][0], abs=0.01)
        assert shared[query][0] == pytest.approx(value, abs=0.03)
        assert shared[query][1] == greedy


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M"])
def test_a_quantized_file_is_near_the_model(quant: ggml.Quant, work: Path, reference: TorchEngine) -> None:
    engine = gguf.load(demo_options(work / quant), GGUF(quant=quant), None)
    tokens = np.array(reference.encode(TEXT)[:400])
    limit = {"Q8_0": 0.01, "Q4_K_M": 0.15}[quant]
    assert perplexity(engine, tokens) == pytest.approx(perplexity(reference, tokens), rel=limit)
    shared, whole = answers(engine, share=True), answers(engine, share=False)
    assert max(abs(shared[query][0] - whole[query][0]) / len(query.answer) for query in whole) < 0.2
    assert engine.about.quantized_layers == engine.about.expected_layers == 28
    assert engine.about.effective_bits_per_weight == pytest.approx({"Q8_0": 8.5, "Q4_K_M": 5.0}[quant], abs=0.2)


def test_the_log_tells_the_bytes_of_every_buffer(plain: LlamaCppEngine, work: Path) -> None:
    """`qbench.compat.llama_cpp` reads them there."""
    assert plain.about.weight_bytes == pytest.approx(2 * 4_194_304 + 4 * 2_304, rel=1e-3)
    context = Context(Model(work / FILE), tokens=512, sequences=2, outputs=2, unified=False, threads=1)
    # 4 layers, keys and values of 2 heads of 64 in float16, of 512 tokens; two rows of 4,096 logits.
    assert context.buffer_bytes["KV"] == 4 * 2 * 128 * 2 * 512
    assert context.buffer_bytes["output"] == pytest.approx(2 * 4096 * 4, abs=0.01 * 2**20)
    assert context.buffer_bytes["compute"] > 0


def test_files_that_are_no_such_model_are_refused(work: Path, plain: LlamaCppEngine, tmp_path: Path) -> None:
    good = work / FILE
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(good.read_bytes()[:1_000_000])
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    for path in (cut, text):
        with pytest.raises(QbenchError, match=r"no whole GGUF file.*copy or make it again"):
            gguf.load(demo_options(tmp_path), GGUF(file=path), None)
    with pytest.raises(QbenchError, match="no file"):
        GGUF(file=tmp_path / "none.gguf").resolved()
    assert gguf.load(demo_options(tmp_path), GGUF(file=good), None).about.effective_bits_per_weight == 16
    with pytest.raises(QbenchError, match="is F16, not Q8_0"):
        gguf.load(demo_options(tmp_path), GGUF(quant="Q8_0").with_checkpoint(work), None)
