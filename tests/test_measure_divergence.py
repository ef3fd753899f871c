"""Divergence against whole vocabularies in float64, and the file that it needs, over the life of a run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qbench import demo
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.engine.torch.loaded import LoadedModel, block_linears
from qbench.engine.torch.logprobs import outline
from qbench.errors import QbenchError
from qbench.int4 import quantize_model
from qbench.measure import divergence
from qbench.measure.divergence import kl_divergence
from tests.support.frames import read_frames
from tests.support.perplexity import WINDOW, Cell, logprobs_by_hand
from tests.support.runs import config, interpreter, run
from tests.support.tiny_llama import VOCAB, options, word_ids

SETTINGS = {"window": WINDOW, "top_k": 8}
DEMO = {"text": "demo", "window": 512, "limit": 4}


def distributions(seed: int, spread: float, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 log-probabilities [20, 300] of two predictions that are near each other."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(20, 300, generator=generator)
    other = logits + noise * torch.randn(20, 300, generator=generator)
    return logits.log_softmax(1), other.log_softmax(1)


def full_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Over the whole vocabulary, in float64, of log-probabilities normalized anew."""
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def outlined_kl(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
    words = p.topk(k).indices
    return torch.from_numpy(kl_divergence(outline(p, words).numpy(), outline(q, words).numpy()))


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.1, 8), noise=st.floats(0.01, 4), k=st.integers(1, 299))
def test_the_outline_never_overstates_the_divergence(seed: int, spread: float, noise: float, k: int) -> None:
    p, q = distributions(seed, spread, noise)
    found, full = outlined_kl(p, q, k), full_kl(p, q)
    assert (found <= full + 1e-5).all()
    assert (found >= -1e-5).all()


def test_more_words_come_nearer_and_all_of_them_are_the_whole() -> None:
    p, q = distributions(0, 3, 0.5)
    missing = [(full_kl(p, q) - outlined_kl(p, q, k)).mean().item() for k in (1, 4, 16, 64, 256)]
    assert missing == sorted(missing, reverse=True)
    assert missing[0] > 0.01
    np.testing.assert_allclose(outlined_kl(p, q, 300), full_kl(p, q), atol=2e-6)


def test_what_is_left_next_to_certainty_is_not_lost() -> None:
    """Others of 1e-9 together: 1 less the first word's float32 probability would be 0."""
    logits = torch.cat([torch.zeros(1, 1), torch.full((1, 99), math.log(1e-9 / 99))], 1)
    found = outline(logits.log_softmax(1), torch.tensor([[0]]))
    assert found[0, 1].item() == pytest.approx(math.log(1e-9), abs=1e-4)


def test_words_without_probability_add_nothing() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25]]).log()
    # 0.5 ln 2 + 0.5 ln 1 + 0.
    assert kl_divergence(p.numpy(), q.numpy()).item() == pytest.approx(0.5 * math.log(2))
    assert outlined_kl(p, q, 2).item() == pytest.approx(0.5 * math.log(2))


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)


@pytest.fixture(scope="module")
def rounded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The same model in 4 bits."""
    model = fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.float32), FP16(), None)
    quantize_model(model.model, list(block_linears(model.model)), bits=4, kernel="reference")
    return model


@pytest.mark.parametrize("how", [{"top_k": VOCAB}, {"divergence": "full"}])
def test_every_figure_is_that_of_float64(
    loaded: LoadedModel, rounded: LoadedModel, words_file: str, tmp_path: Path, how: dict[str, object]
) -> None:
    own = Cell(tmp_path).measure(loaded, text=words_file, window=WINDOW, **how)
    row = Cell(tmp_path, "int4").measure(rounded, text=words_file, window=WINDOW, **how)
    assert own.kl_mean is own.kl_p99 is own.top1_agreement is own.delta_logprob_mean is own.top_k is None
    tokens = word_ids()[:96].view(6, WINDOW)
    p, q = logprobs_by_hand(loaded, tokens), logprobs_by_hand(rounded, tokens)
    kl = full_kl(p, q).numpy()
    assert row.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert row.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-3)
    assert row.kl_stderr == pytest.approx(kl.mean(1).std(ddof=1) / math.sqrt(6), rel=1e-3)
    agree = (p.argmax(-1) == q.argmax(-1)).double().numpy()
    assert row.top1_agreement == agree.mean()
    assert 0 < row.top1_agreement < 1
    assert row.top1_stderr == pytest.approx(agree.mean(1).std(ddof=1) / math.sqrt(6))
    delta = (q - p).gather(2, tokens[:, 1:, None])[..., 0].numpy()
    assert row.delta_logprob_mean == pytest.approx(delta.mean(), abs=1e-5)
    assert row.delta_logprob_stderr == pytest.approx(delta.mean(1).std(ddof=1) / math.sqrt(6), rel=1e-3)
    assert row.top_k == VOCAB
    assert row.tail_mass_mean == 0


def test_whole_vocabularies_are_kept_where_they_are_small_and_outlines_where_words_are_counted(
    loaded: LoadedModel, rounded: LoadedModel, words_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(name: str, **settings: object) -> tuple[int | None, list[str]]:
        Cell(tmp_path / name).measure(loaded, text=words_file, window=WINDOW, **settings)
        row = Cell(tmp_path / name, "int4").measure(rounded, text=words_file, window=WINDOW, **settings)
        return row.top_k, sorted(path.name for path in (tmp_path / name / "reference").iterdir())

    whole = ["logprobs.safetensors", "logprobs.whole.npy"]
    assert kept("small") == (VOCAB, whole)
    assert kept("counted", top_k=8) == (8, whole[:1])
    monkeypatch.setattr(divergence, "SMALL_BYTES", 6 * 15 * VOCAB * 4 - 1)
    assert kept("large") == (64, whole[:1])
    assert kept("asked", divergence="full") == (VOCAB, whole)
    assert kept("asked", top_k=8) == (8, whole[:1])


@pytest.mark.parametrize(("top_k", "missing"), [(64, 0.12), (256, 0.01)])
def test_what_the_outline_misses_is_little(tmp_path: Path, top_k: int, missing: float) -> None:
    """The demo model in 4 bits on its held-out text, whose facts leave many of its 4,096 words equally probable."""
    load = options(demo.MODEL_DIR, tmp_path, torch.float32)
    reference, quantized = fp16.load(load, FP16(), None), fp16.load(load, FP16(), None)
    quantize_model(quantized.model, list(block_linears(quantized.model)), bits=4)
    Cell(tmp_path).measure(reference, **DEMO, top_k=top_k)
    row = Cell(tmp_path, "int4").measure(quantized, **DEMO, top_k=top_k)
    assert reference.tokenizer is not None
    ids = torch.tensor(reference.tokenizer(demo.HELDOUT_TEXT.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    with torch.inference_mode():
        full = torch.stack(
            [
                full_kl(reference.model(window[None]).logits[0, :-1], quantized.model(window[None]).logits[0, :-1])
                for window in ids[: 4 * 512].view(4, 512)
            ]
        )
    assert (1 - missing) * full.mean().item() <= row.kl_mean <= full.mean().item() + 1e-6
    assert (1 - missing) * full.quantile(0.99).item() <= row.kl_p99 <= full.quantile(0.99).item() + 1e-6


def test_what_is_missing_is_the_mass_of_the_rest_times_the_divergence_among_its_words(
    loaded: LoadedModel, rounded: LoadedModel, words_file: str, tmp_path: Path
) -> None:
    """The chain rule, in float64 over the whole vocabulary."""
    Cell(tmp_path).measure(loaded, text=words_file, window=WINDOW, top_k=8)
    row = Cell(tmp_path, "int4").measure(rounded, text=words_file, window=WINDOW, top_k=8)
    tokens = word_ids()[:96].view(6, WINDOW)
    p, q = (logprobs_by_hand(model, tokens).double().log_softmax(-1) for model in (loaded, rounded))
    rest = torch.ones_like(p, dtype=torch.bool).scatter(-1, p.topk(8).indices, False)
    mass = torch.where(rest, p.exp(), 0).sum(-1)
    inside = [torch.where(rest, one, -torch.inf).log_softmax(-1) for one in (p, q)]
    missing = mass * torch.where(rest, inside[0].exp() * (inside[0] - inside[1]), 0).sum(-1)
    assert row.tail_mass_mean == pytest.approx(mass.mean().item(), rel=1e-4)
    assert row.tail_mass_mean > 0.01
    assert row.kl_mean + missing.mean().item() == pytest.approx(full_kl(p, q).mean().item(), rel=1e-3)


def test_a_model_does_not_diverge_from_itself(tiny_llama: Path, words_file: str, tmp_path: Path) -> None:
    """In bfloat16, whose logits often tie."""
    model = fp16.load(options(tiny_llama, tmp_path), FP16(), None)
    first = Cell(tmp_path).measure(model, text=words_file, **SETTINGS)
    second = Cell(tmp_path, "again").measure(model, text=words_file, **SETTINGS)
    assert second.kl_mean == pytest.approx(0, abs=1e-7)
    assert (second.top1_agreement, second.top1_stderr, second.delta_logprob_mean) == (1, 0, 0)
    assert second.nll_mean == first.nll_mean


def test_the_file_is_small_and_says_what_it_is_of(loaded: LoadedModel, words_file: str, tmp_path: Path) -> None:
    cell = Cell(tmp_path)
    row = cell.measure(loaded, text=words_file, **SETTINGS)
    kept = load_file(cell.logprobs)
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == {
        "words": (6, 15, 8), "outlines": (6, 15, 9), "truth": (6, 15),
    }  # fmt: skip
    assert kept["outlines"].double().exp().sum(-1) == pytest.approx(np.ones((6, 15)), abs=1e-5)
    assert -kept["truth"].double().mean().item() == pytest.approx(row.nll_mean)
    assert [path.name for path in cell.logprobs.parent.iterdir()] == ["logprobs.safetensors"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 8}, "window 16, not 8"),
        ({"top_k": 9}, "top_k 8, not 9"),
        ({"limit": 5}, "windows 6, not 5"),
        ({"fingerprint": "g"}, "model_fingerprint f, not g"),
        ({"text": "other"}, "tokens_sha256 [0-9a-f]{64}, not [0-9a-f]{64}"),
    ],
)
def test_a_file_of_something_else_is_refused_and_perplexity_kept(
    loaded: LoadedModel, words_file: str, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    alone = Cell(tmp_path).measure(loaded, text=words_file, **SETTINGS)
    other = tmp_path / "other.txt"
    other.write_text(Path(words_file).read_text().replace("w", "w4 w", 1))
    chosen = {"text": words_file, **SETTINGS, **changes}
    if chosen["text"] == "other":
        chosen["text"] = str(other)
    cell = Cell(tmp_path, "int4", str(chosen.pop("fingerprint", "f")))
    with pytest.raises(
        QbenchError, match=rf"log-probabilities of fp16 were made with {words}; start over with --fresh"
    ):
        cell.measure(loaded, **chosen)
    assert cell.rows[0].kl_mean is None
    assert cell.rows[0].nll_mean == pytest.approx(alone.nll_mean, rel=0.2)


def test_a_file_that_is_missing_or_damaged_is_said(loaded: LoadedModel, words_file: str, tmp_path: Path) -> None:
    cell = Cell(tmp_path, "int4")
    with pytest.raises(
        QbenchError, match="the cell fp16 has left no log-probabilities to compare with; mend it and run"
    ):
        cell.measure(loaded, text=words_file, **SETTINGS)
    cell.logprobs.parent.mkdir()
    cell.logprobs.write_bytes(b"not a safetensors file")
    with pytest.raises(QbenchError, match=r"logprobs\.safetensors: damaged .* --fresh"):
        cell.measure(loaded, text=words_file, **SETTINGS)
    alone = cell.measure(loaded, text=words_file, **SETTINGS, divergence=False)
    assert [row.perplexity for row in cell.rows] == [alone.perplexity] * 3


BACKENDS = [{"kind": "int4"}, {"kind": "fp16"}]


def test_a_run_compares_with_the_16_bit_cell_and_goes_on_with_its_file(
    tiny_llama: Path, words_file: str, tmp_path: Path
) -> None:
    chosen = config(tiny_llama, BACKENDS, measure={"perplexity": {"text": words_file, **SETTINGS}})
    with pytest.raises(QbenchError, match=r"int4 is compared with the cell fp16, .*; add --only fp16, start over"):
        run(chosen, tmp_path, only=("int4",))
    assert not (tmp_path / "r").exists()

    folder, ok, watcher = run(chosen, tmp_path)
    assert ok
    assert [row.label for row in watcher.finished] == ["fp16", "int4"]
    rows = read_frames(folder).perplexity.set_index("label")
    assert list(rows.index) == ["int4", "fp16"]
    assert rows.loc["int4", "kl_mean"] > 0
    assert rows.loc["fp16", ["kl_mean", "kl_p99", "top1_agreement", "delta_logprob_mean", "top_k"]].isna().all()
    summary = pd.read_csv(folder / "summary.csv").set_index("label")
    assert summary.loc["int4", "kl_mean"] == rows.loc["int4", "kl_mean"]
    assert list(summary["perplexity"]) == list(rows["perplexity"])

    shutil.rmtree(folder / "cells" / "int4")
    _, _, again = run(chosen, tmp_path, only=("int4",))
    assert [row.label for row in again.finished] == ["int4"]
    assert read_frames(folder).perplexity.set_index("label").loc["int4", "kl_mean"] == rows.loc["int4", "kl_mean"]

    logprobs = folder / "reference" / "logprobs.safetensors"
    logprobs.unlink()
    assert [row.label for row in run(chosen, tmp_path)[2].finished] == ["fp16"]
    assert logprobs.is_file()
    logprobs.unlink()
    shutil.rmtree(folder / "cells" / "int4")
    with pytest.raises(QbenchError, match=r"log-probabilities are not in .*reference"):
        run(chosen, tmp_path, only=("int4",))


def test_cells_keep_their_perplexity_where_the_16_bit_cell_failed(
    tiny_llama: Path, words_file: str, tmp_path: Path
) -> None:
    broken = {"kind": "fp16", "python": interpreter(tmp_path, "exit 3")}
    measure = {"perplexity": {"text": words_file, **SETTINGS}}
    folder, ok, watcher = run(config(tiny_llama, [broken, {"kind": "int4"}], measure=measure), tmp_path / "results")
    assert not ok
    assert [row.status for row in watcher.finished] == ["crashed", "ok"]
    assert "the cell fp16 has left no log-probabilities" in (watcher.finished[1].failed or "")
    rows = read_frames(folder).perplexity
    assert list(rows["label"]) == ["int4"]
    assert rows["perplexity"].notna().all()
    assert rows["kl_mean"].isna().all()
