import hashlib
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qbench import demo
from qbench.config import CalibrationConfig, ModelConfig
from qbench.errors import QbenchError
from qbench.model import calibration

PATH = ModelConfig(path=Path("/models/x"))


def test_sequences_are_stretches_of_the_text_and_follow_the_seed(tmp_path: Path, tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{4 + i % 500}" for i in range(2000)))
    config = CalibrationConfig(text=str(text), samples=5, length=32)
    found = calibration.prepare(config, PATH, seed=1)
    sequences = found.sequences(tokenizer, 512)
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    assert [len(sequence) for sequence in sequences] == [32] * 5
    stretches = {tuple(ids[i : i + 32]) for i in range(len(ids))}
    assert all(tuple(sequence) in stretches for sequence in sequences)
    assert sequences == found.sequences(tokenizer, 512)
    assert sequences != calibration.prepare(config, PATH, seed=2).sequences(tokenizer, 512)
    assert found.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()


def test_a_text_that_is_too_short_is_said(tmp_path: Path, tiny_llama: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w5 w6 w7")
    found = calibration.prepare(CalibrationConfig(text=str(text), length=16), PATH, seed=0)
    with pytest.raises(QbenchError, match=r"has 3 tokens, fewer than calibration\.length \(16\)"):
        found.sequences(AutoTokenizer.from_pretrained(tiny_llama), 512)


def test_the_demo_model_brings_its_text() -> None:
    found = calibration.prepare(CalibrationConfig(), ModelConfig(demo=True), seed=0)
    assert found.text == demo.CALIBRATION_TEXT.read_text(encoding="utf-8")


def test_random_weights_are_calibrated_on_random_tokens() -> None:
    random = ModelConfig(shape="llama-3-8b", weights="random")
    sequences = calibration.prepare(CalibrationConfig(samples=50, length=20), random, seed=0).sequences(None, 7)
    assert {token for sequence in sequences for token in sequence} == set(range(7))


def test_a_missing_file_and_an_unreachable_hub_are_said() -> None:
    with pytest.raises(QbenchError, match=r"calibration\.text: no file nowhere\.txt"):
        calibration.prepare(CalibrationConfig(text="nowhere.txt"), PATH, seed=0)
    with pytest.raises(
        QbenchError, match=r"WikiText-2 cannot be fetched .* set calibration\.text to a text file, .* wiki\.train\.raw"
    ):
        calibration.prepare(CalibrationConfig(), PATH, seed=0)
