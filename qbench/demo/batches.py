"""Training batches: full rows of token ids, what each token counts for, and the words that answers stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from qbench.demo.corpus import CHOOSE, FIND, LATE, Document, documents
from qbench.demo.world import LETTERS, World

TOKENS_PER_STEP = 2560
DOCUMENTS_PER_ENCODING = 64
KEPT_FRACTION = 0.3
NO_WORD = -1


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training: how long its rows are, what they are made of, and what an ordinary token counts for."""

    until: float
    """Fraction of all steps at which it ends."""
    row_tokens: int
    mix: dict[str, int]
    word_weight: float
    """Of a token that is no answer; an answer counts 1."""


STAGES = (
    Stage(0.17, 160, FIND, 0.1),
    Stage(0.72, 160, CHOOSE, 0.15),
    Stage(0.92, 256, LATE, 0.5),
    # Rows of a long context, so that perplexity over windows of some thousand tokens is sound.
    Stage(1.0, 1024, LATE, 0.5),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors [rows, row_tokens]."""

    tokens: torch.Tensor
    words: torch.Tensor
    """At each «Answer:», the token of the word that it stands for; elsewhere `NO_WORD`."""
    weights: torch.Tensor
    """What the prediction of the next token counts for."""


def batches(world: World, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches of full rows."""
    # A colon occurs nowhere but before an answer.
    (marker,) = tokenizer(":")["input_ids"]
    letters = torch.tensor([tokenizer(f" {letter}")["input_ids"][0] for letter in LETTERS])
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for number, stage in enumerate(STAGES):
        source = documents(world, Random(f"train {seed} {number}"), stage.mix)
        stream = _token_stream(source, tokenizer, marker, Random(f"ends {seed} {number}"))
        rows = TOKENS_PER_STEP // stage.row_tokens
        pending: list[tuple[int, int]] = []
        while step < round(stage.until * steps):
            while len(pending) < rows * stage.row_tokens:
                pending += next(stream)
            # What is left opens the next batch in mid-document, as any row but the first does.
            taken, pending = pending[: rows * stage.row_tokens], pending[rows * stage.row_tokens :]
            tokens, words = torch.tensor(taken).view(rows, stage.row_tokens, 2).unbind(-1)
            yield Batch(tokens, words, _weights(tokens, words, letters, stage.word_weight, generator))
            step += 1


def _token_stream(
    source: Iterator[Document], tokenizer: PreTrainedTokenizerFast, marker: int, rng: Random
) -> Iterator[list[tuple[int, int]]]:
    """(token, word) of one document after the other; a blank line or the end of text comes after each."""
    while True:
        some = [next(source) for _ in range(DOCUMENTS_PER_ENCODING)]
        texts = [document.text + rng.choice(["\n\n", tokenizer.eos_token]) for document in some]
        for document, ids in zip(some, tokenizer(texts)["input_ids"], strict=True):
            words = iter(document.answers)
            yield [(i, tokenizer(f" {next(words)}")["input_ids"][0] if i == marker else NO_WORD) for i in ids]


def _weights(
    tokens: torch.Tensor, words: torch.Tensor, letters: torch.Tensor, word_weight: float, generator: torch.Generator
) -> torch.Tensor:
    """1 for an answer, be it a letter or a word; `word_weight` or nothing for others.

    Most of the other tokens are options, which nobody can foresee; leaving out a random part saves their softmax.
    """
    kept = torch.rand(tokens.shape, generator=generator) < KEPT_FRACTION
    weights = torch.where(kept, word_weight, 0.0)
    weights[words != NO_WORD] = 1.0
    weights[:, :-1][torch.isin(tokens[:, 1:], letters)] = 1.0
    weights[:, -1] = 0.0
    return weights
