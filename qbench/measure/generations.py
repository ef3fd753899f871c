"""Greedy continuations of fixed prompts, to be read side by side."""

from __future__ import annotations

from typing import Any

import torch

from qbench.backends.base import LoadedModel
from qbench.config import GenerationsConfig
from qbench.engine.torch.decode import generate, make_decoder
from qbench.errors import QbenchError
from qbench.measure.base import Context
from qbench.records.rows import GenerationRow


def measure(loaded: LoadedModel, config: GenerationsConfig, context: Context) -> None:
    """Emit a `GenerationRow` for every prompt.

    Raises:
        QbenchError: the model has no tokenizer.
    """
    if loaded.tokenizer is None:
        raise QbenchError("measure.generations: the model has no tokenizer; choose one that has, or remove generations")
    for done, prompt in enumerate(config.prompts):
        context.progress("generations", done, len(config.prompts))
        before: list[int] = loaded.tokenizer(prompt)["input_ids"]
        after = _continue(loaded, before, config.new_tokens)
        text = continuation(loaded.tokenizer, before, after)
        context.emit(GenerationRow(**context.identity, prompt=prompt, text=text, token_ids=tuple(after)))
    context.progress("generations", len(config.prompts), len(config.prompts))


def _continue(loaded: LoadedModel, before: list[int], new_tokens: int) -> list[int]:
    prompt = torch.tensor([before], device=loaded.device)
    decoder = make_decoder(loaded.model, "eager", 1, len(before) + new_tokens)
    tokens: list[int] = generate(decoder, prompt, new_tokens).tokens[0].tolist()
    return tokens


def continuation(tokenizer: Any, before: list[int], after: list[int]) -> str:
    """What the tokens `after` add to the text of those `before`, special ones included.

    Some tokenizers drop the space before the first token of a text: it is there where both are decoded together.
    """
    start, whole = tokenizer.decode(before), tokenizer.decode(before + after)
    text: str = whole[len(start) :] if whole.startswith(start) else tokenizer.decode(after)
    return text
