"""Greedy continuations of fixed prompts, to be read side by side."""

from __future__ import annotations

import numpy as np

from qbench.config import GenerationsConfig
from qbench.engine.base import Capability, Engine
from qbench.errors import QbenchError
from qbench.measure.base import Context, check_length
from qbench.records.rows import GenerationRow

NEEDS = frozenset({Capability.GENERATE})
"""Capabilities without which a cell's measure is unsupported."""


def measure(engine: Engine, config: GenerationsConfig, context: Context) -> None:
    """Emit a `GenerationRow` for every prompt.

    Raises:
        QbenchError: the model has no tokenizer.
    """
    if Capability.TEXT not in engine.can:
        raise QbenchError("measure.generations: the model has no tokenizer; choose one that has, or remove generations")
    for done, prompt in enumerate(config.prompts):
        context.progress("generations", done, len(config.prompts))
        before = engine.encode(prompt)
        after, written = _continue(engine, before, config.new_tokens)
        text = continuation(engine, before, after) if written is None else written
        context.emit(GenerationRow(**context.identity, prompt=prompt, text=text, token_ids=tuple(after)))
    context.progress("generations", len(config.prompts), len(config.prompts))


def _continue(engine: Engine, before: list[int], new_tokens: int) -> tuple[list[int], str | None]:
    """The tokens that follow, and their text where a server has written it."""
    check_length(engine, len(before) + new_tokens, "measure.generations: a prompt and new_tokens")
    session = engine.session(1, len(before) + new_tokens, decode="eager")
    found = session.generate(np.array([before]), new_tokens)
    session.close()
    tokens = found.tokens[0]
    return tokens[tokens >= 0].tolist(), found.texts[0] if found.texts else None


def continuation(engine: Engine, before: list[int], after: list[int]) -> str:
    """What the tokens `after` add to the text of those `before`, special ones included.

    Some tokenizers drop the space before the first token of a text: it is there where both are decoded together.
    """
    start, whole = engine.decode(before), engine.decode(before + after)
    return whole[len(start) :] if whole.startswith(start) else engine.decode(after)
