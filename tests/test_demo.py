"""The demo model: its data come back from the seed, it knows its world, and rounding its weights crudely shows."""

from __future__ import annotations

import copy
import csv
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from qbench import demo
from qbench.demo import batches, train, world
from qbench.demo.tokenizer import train_tokenizer
from qbench.engine.torch.step import keeping, state_name

SUBJECTS = sorted(path.name.removesuffix("_test.csv") for path in (demo.MMLU_DIR / "test").glob("*_test.csv"))
SAMPLE = 300
LETTERS = ("A", "B", "C", "D")


def read(split: str, subject: str) -> list[list[str]]:
    with (demo.MMLU_DIR / split / f"{subject}_{split}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def shots(subject: str) -> str:
    """How the 5-shot prompts of a subject begin, written anew from MMLU's format: it checks the package's own."""
    text = "The following are multiple choice questions (with answers) about " + subject.replace("_", " ") + ".\n\n"
    return text + "".join(f"{ask(row)} {row[5]}\n\n" for row in read("dev", subject))


def ask(row: list[str]) -> str:
    question, a, b, c, d, _ = row
    return f"{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(demo.MODEL_DIR)
    return loaded


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    loaded = AutoModelForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32)
    assert isinstance(loaded, LlamaForCausalLM)
    return loaded.eval()


@pytest.fixture(scope="module")
def exam() -> dict[str, list[list[str]]]:
    """A fixed sample of the test set, by subject."""
    questions = [(subject, row) for subject in SUBJECTS for row in read("test", subject)]
    sample = random.Random(0).sample(questions, SAMPLE)
    return {subject: [row for other, row in sample if other == subject] for subject in SUBJECTS}


@torch.inference_mode()
def score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, exam: dict[str, list[list[str]]]
) -> tuple[float, float]:
    """Accuracy and mean negative log-likelihood of the right letter among the four. Reads a subject's shots once."""
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in LETTERS]
    correct, loss = 0, 0.0
    for subject, rows in exam.items():
        cache = model.model(tokenizer(shots(subject), return_tensors="pt")["input_ids"])[state_name(model)]
        cache.batch_repeat_interleave(len(rows))
        inputs = tokenizer([ask(row) for row in rows], padding=True, padding_side="right", return_tensors="pt")
        states = model.model(inputs["input_ids"], **keeping(model, cache)).last_hidden_state
        last = inputs["attention_mask"].sum(dim=1) - 1
        logits = model.lm_head(states[torch.arange(len(rows)), last])[:, letters]
        answers = torch.tensor([LETTERS.index(row[5]) for row in rows])
        correct += int((logits.argmax(dim=1) == answers).sum())
        loss += nn.functional.cross_entropy(logits, answers, reduction="sum").item()
    return correct / SAMPLE, loss / SAMPLE


def round_to_nearest(model: LlamaForCausalLM, bits: int, group: int = 128) -> LlamaForCausalLM:
    """A copy whose attention and MLP linears went through asymmetric round-to-nearest and back."""
    rounded = copy.deepcopy(model)
    for name, linear in rounded.model.named_modules():
        if isinstance(linear, nn.Linear):
            weight = linear.weight.data.float()
            assert weight.shape[1] % group == 0, name
            groups = weight.view(weight.shape[0], -1, group)
            low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
            scale = ((high - low) / (2**bits - 1)).clamp(min=1e-30)  # a group may be constant
            nearest = ((groups - low) / scale).round() * scale + low
            linear.weight.data = nearest.view_as(weight).to(linear.weight.dtype)
    return rounded


def test_data_regenerate_byte_for_byte(tmp_path: Path) -> None:
    train.main(out=tmp_path, data_only=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    expected = [demo.CALIBRATION_TEXT, demo.HELDOUT_TEXT, *demo.MMLU_DIR.rglob("*.csv")]
    expected += [demo.MODEL_DIR / name for name in ("tokenizer.json", "tokenizer_config.json")]
    assert made == sorted(path.relative_to(demo.ROOT) for path in expected)
    for path in made:
        assert (tmp_path / path).read_bytes() == (demo.ROOT / path).read_bytes(), path


def test_questions_are_a_sound_exam() -> None:
    assert len(SUBJECTS) >= 6
    dev = {subject: read("dev", subject) for subject in SUBJECTS}
    test = {subject: read("test", subject) for subject in SUBJECTS}
    assert {len(rows) for rows in dev.values()} == {5}
    assert sum(map(len, test.values())) >= 1000
    for subject in SUBJECTS:
        rows = dev[subject] + test[subject]
        assert len({row[0] for row in rows}) == len(rows), "a question is asked twice"
        for _, *options, letter in rows:
            assert len(set(options)) == 4
            assert letter in LETTERS
    counts = Counter(row[5] for rows in test.values() for row in rows)
    assert max(counts.values()) <= 1.05 * min(counts.values())


def test_no_place_of_the_dev_questions_is_in_the_test_set() -> None:
    built = world.build_world(train.SEED)
    for subject in SUBJECTS:
        shots = " ".join(row[0] for row in read("dev", subject))
        asked = [place for place in built.places if place in shots]
        assert len(asked) == 5
        assert not any(place in row[0] for place in asked for row in read("test", subject))


def test_prompts_are_in_the_format_of_mmlu() -> None:
    built = world.build_world(train.SEED)
    theirs = {text for text, _ in train.exam_prompts(built, train.SEED)}
    assert theirs == {shots(subject) + ask(row) for subject in SUBJECTS for row in read("test", subject)}


def test_calibration_and_heldout_texts_share_no_document() -> None:
    calibration, heldout = (path.read_text(encoding="utf-8") for path in (demo.CALIBRATION_TEXT, demo.HELDOUT_TEXT))
    exams = [{text for text in whole.split("\n\n") if "\nD. " in text} for whole in (calibration, heldout)]
    assert not exams[0] & exams[1]


def test_assets_are_small() -> None:
    assert sum(path.stat().st_size for path in demo.ROOT.rglob("*") if path.suffix not in {".py", ".pyc"}) <= 10e6


def test_names_and_letters_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    words = [*world.build_world(train.SEED).names, *LETTERS]
    assert {len(ids) for ids in tokenizer([f" {word}" for word in words])["input_ids"]} == {1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "The quick brown fox, 1234567 times.\n\n  Indented\tand\r\nwrapped  ",
        "Größe, naïve, 東京, Ελλάδα, 🙂🇪🇺, \u200b\u0301, \x00\x7f",
        " A. B.C …«x»— don't!",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_adds_nothing_and_has_one_special_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.all_special_tokens == ["<|endoftext|>"]
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("Answer: A")["input_ids"] == tokenizer("Answer: A", add_special_tokens=False)["input_ids"]
    assert len(tokenizer) <= 4096


def test_every_linear_can_be_grouped_by_128(model: LlamaForCausalLM) -> None:
    assert {layer.in_features % 128 for layer in model.modules() if isinstance(layer, nn.Linear)} == {0}
    assert 3e6 <= model.num_parameters() <= 5e6
    assert model.config.max_position_embeddings >= 4096


def test_crude_rounding_costs_accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, exam: dict[str, list[list[str]]]
) -> None:
    accuracy, loss = score(model, tokenizer, exam)
    accuracy_4bit, loss_4bit = score(round_to_nearest(model, 4), tokenizer, exam)
    accuracy_2bit, loss_2bit = score(round_to_nearest(model, 2), tokenizer, exam)
    assert accuracy >= 0.80
    assert accuracy_2bit <= accuracy - 0.03
    assert accuracy_2bit < accuracy_4bit
    assert loss < loss_4bit < loss_2bit


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrower model in smaller steps, because the optimizer multiplies in bfloat16, which many CPUs do slowly."""
    narrow = {"hidden_size": 64, "intermediate_size": 192}
    monkeypatch.setattr(train, "LlamaConfig", lambda **settings: LlamaConfig(**settings | narrow))
    monkeypatch.setattr(batches, "TOKENS_PER_STEP", 1024)
    built = world.build_world(train.SEED)
    tokenizer = train_tokenizer(built, train.SEED)

    def weights() -> dict[str, torch.Tensor]:
        model = train.build_model(len(tokenizer), train.SEED)
        train.train(model, tokenizer, built, steps=3, seed=train.SEED)
        return dict(model.named_parameters())

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)
