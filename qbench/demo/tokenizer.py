"""The demo model's tokenizer: byte-level BPE in which every invented name and common English word is one token."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qbench.demo import ENGLISH_WORDS
from qbench.demo.corpus import sample_text
from qbench.demo.world import END_OF_TEXT, World

VOCABULARY = 4096
MAX_LENGTH = 4096
SAMPLE_CHARACTERS = 200_000
NAME_REPEATS = 400
WORD_REPEATS = 40
"""Names come before English words, and English words before whatever else the sample holds by chance."""

WORDS = Regex(r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|\s+(?!\S)|\s+")
"""A word, up to three digits or a run of punctuation, each with the space before it; then newlines and other space.
Newlines stay together, so that the blank line between questions is one token."""


def train_tokenizer(world: World, seed: int) -> PreTrainedTokenizerFast:
    """Learn the vocabulary. Nothing is added to a text when it is encoded, and any bytes survive the way back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(world, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _training_text(world: World, seed: int) -> Iterator[str]:
    yield sample_text(world, f"tokenizer {seed}", SAMPLE_CHARACTERS)
    for name in world.names:
        yield f" {name}" * NAME_REPEATS
    for word in ENGLISH_WORDS.read_text(encoding="utf-8").split():
        # An ending is learned without the space that would make it a word.
        yield "\n".join([word.removeprefix("-")] * WORD_REPEATS) if word.startswith("-") else f" {word}" * WORD_REPEATS
