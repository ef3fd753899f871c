"""The text that AWQ, GPTQ, calibrated INT4 and importance matrices are made with, and the tokens taken from it."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.config import CalibrationConfig, ModelConfig
from qbench.errors import QbenchError
from qbench.model import texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Calibration:
    """Where calibration tokens come from. `text` is None for a model with random weights: tokens are drawn then."""

    text: str | None
    samples: int
    length: int
    seed: int

    @property
    def sha256(self) -> str:
        """Of the text, or of what replaces it."""
        source = self.text if self.text is not None else f"uniform tokens, seed {self.seed}"
        return hashlib.sha256(source.encode()).hexdigest()

    def sequences(self, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> list[list[int]]:
        """`samples` sequences of `length` token ids each, from random places of the text.

        Raises:
            QbenchError: the text is shorter than one sequence.
        """
        rng = random.Random(self.seed)
        if self.text is None or tokenizer is None:
            return [[rng.randrange(vocab_size) for _ in range(self.length)] for _ in range(self.samples)]
        ids: list[int] = tokenizer(self.text, add_special_tokens=False, verbose=False)["input_ids"]
        room = len(ids) - self.length
        if room < 0:
            raise QbenchError(
                f"the calibration text has {len(ids)} tokens, fewer than calibration.length ({self.length}): "
                "give a longer text or a smaller length"
            )
        starts = [rng.randint(0, room) for _ in range(self.samples)]
        return [ids[start : start + self.length] for start in starts]


def prepare(config: CalibrationConfig, model: ModelConfig, seed: int) -> Calibration:
    """Read the text that `config.text` names, or the model's natural choice.

    Raises:
        QbenchError: no such file, or the hub's WikiText-2 cannot be reached.
    """
    return Calibration(_text(config, model), config.samples, config.length, seed)


def _text(config: CalibrationConfig, model: ModelConfig) -> str | None:
    if config.text is None and model.weights == "random":
        return None
    return texts.read(config.text or texts.default_text(model), "train", "calibration.text")
