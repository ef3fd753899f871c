"""Perplexity against arithmetic by hand in float64, and against itself as weights lose bits."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.engine.torch import logprobs
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel, block_linears
from qbench.errors import QbenchError
from qbench.int4 import quantize_model
from qbench.measure import windows
from tests.support.perplexity import WINDOW, Cell, logprobs_by_hand
from tests.support.tiny_llama import VOCAB, options, save_tiny_llama, word_ids


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


def test_perplexity_is_that_of_float64(loaded: LoadedModel, words_file: str, tmp_path: Path) -> None:
    cell = Cell(tmp_path)
    row = cell.measure(loaded, text=words_file, window=WINDOW)
    # 100 tokens are 6 windows of 16, of which 15 tokens each are predicted; 4 tokens are left over.
    tokens = word_ids()[:96].view(6, WINDOW)
    nll = -logprobs_by_hand(loaded, tokens).gather(2, tokens[:, 1:, None])[..., 0]
    assert row.nll_mean == pytest.approx(nll.mean().item(), rel=1e-6)
    assert row.perplexity == pytest.approx(nll.mean().exp().item(), rel=1e-5)
    assert row.nll_stderr == pytest.approx(scipy.stats.sem(nll.mean(1).numpy()), rel=1e-5)
    assert (row.dataset, row.window, row.n_tokens, row.partial) == ("words.txt", 16, 6 * 15, False)
    assert cell.steps == [("perplexity", done, 6) for done in range(7)]


def test_vocabularies_too_large_for_one_piece_change_nothing(
    loaded: LoadedModel, words_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Cell(tmp_path / "a").measure(loaded, text=words_file, window=WINDOW)
    monkeypatch.setattr(logprobs, "CHUNK_VALUES", 4 * VOCAB + 1)
    pieces = Cell(tmp_path / "b").measure(loaded, text=words_file, window=WINDOW)
    assert pieces.nll_mean == pytest.approx(whole.nll_mean, rel=1e-12)
    assert [len(rows) for _, rows in logprobs.log_probabilities(loaded, word_ids()[:WINDOW])] == [4, 4, 4, 3]


def test_a_limit_is_of_windows_and_marks_the_row(loaded: LoadedModel, words_file: str, tmp_path: Path) -> None:
    row = Cell(tmp_path).measure(loaded, text=words_file, window=WINDOW, limit=2)
    assert (row.n_tokens, row.partial) == (30, True)
    one = Cell(tmp_path).measure(loaded, text=words_file, window=WINDOW, limit=1)
    assert one.nll_stderr is None


def test_the_text_is_tokenized_once(tiny_llama: Path) -> None:
    """A token that the tokenizer puts before a text stands before the first window only."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    cut = windows.cut(tokenizer(" ".join(f"w{index}" for index in range(10, 18)))["input_ids"], 3, None)
    assert cut.tolist() == [[1, 10, 11], [12, 13, 14], [15, 16, 17]]


def test_the_window_is_2048_or_the_whole_context(loaded: LoadedModel) -> None:
    assert loaded.model.config.max_position_embeddings == 256
    assert windows.window_length(TorchEngine(loaded).about.context, None) == 256
    assert windows.window_length(256, 100) == 100
    with pytest.raises(
        QbenchError, match=r"window: 257 tokens, more than the model's context of 256; set it to 256 or"
    ):
        windows.window_length(256, 257)
    assert windows.window_length(131_072, None) == 2048
    assert windows.window_length(None, None) == 2048


def test_a_text_shorter_than_a_window_is_said(loaded: LoadedModel, words_file: str, tmp_path: Path) -> None:
    with pytest.raises(
        QbenchError, match=r"has 100 tokens, fewer than a window \(256\); give a longer text or a small"
    ):
        Cell(tmp_path).measure(loaded, text=words_file)


def test_nan_is_an_error_and_no_row(loaded: LoadedModel, words_file: str, tmp_path: Path) -> None:
    broken = copy.deepcopy(loaded)
    with torch.no_grad():
        broken.model.lm_head.weight[7] = torch.nan
    cell = Cell(tmp_path)
    with pytest.raises(QbenchError, match=r"perplexity, first in window 1: .* NaN or infinite"):
        cell.measure(broken, text=words_file, window=WINDOW)
    assert cell.rows == []
    assert not cell.logprobs.exists()


def test_a_model_without_tokenizer_is_refused(words_file: str, tmp_path: Path) -> None:
    bare = fp16.load(options(save_tiny_llama(tmp_path, tokenizer=False), tmp_path), FP16(), None)
    with pytest.raises(QbenchError, match=r"measure\.perplexity: the model has no tokenizer"):
        Cell(tmp_path).measure(bare, text=words_file)


def test_fewer_bits_are_further_from_the_16_bit_model(tmp_path: Path) -> None:
    """The demo model on part of its held-out text, in float32, so that no rounding of logits is in the way."""
    settings = {"text": "demo", "window": 512, "limit": 4}
    load = options(demo.MODEL_DIR, tmp_path, torch.float32)
    reference = Cell(tmp_path).measure(fp16.load(load, FP16(), None), **settings)
    rows = []
    for bits in (8, 4, 3, 2):
        quantized = fp16.load(load, FP16(), None)
        quantize_model(quantized.model, list(block_linears(quantized.model)), bits=bits)
        rows.append(Cell(tmp_path, label=f"int{bits}").measure(quantized, **settings))
    divergences = [row.kl_mean for row in rows]
    assert all(kl is not None and kl > 0 for kl in divergences)
    assert divergences == sorted(divergences)
    tails = [row.kl_p99 for row in rows]
    assert tails == sorted(tails)
    agreements = [row.top1_agreement for row in rows]
    assert agreements == sorted(agreements, reverse=True)
    assert agreements[0] > 0.99
    assert max([reference, *rows], key=lambda row: row.perplexity) == rows[-1]
    for row in rows:
        assert row.perplexity / reference.perplexity == pytest.approx(
            math.exp(-(row.delta_logprob_mean or 0)), rel=1e-5
        )
