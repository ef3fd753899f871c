"""Completions for engines whose sessions generate a fixed number of tokens for sequences of one length."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

import numpy as np

from qbench.engine.base import About, Session, Stop, Tokens


class Generates(Protocol):
    """What is needed of an engine."""

    @property
    def about(self) -> About: ...

    def session(self, batch_size: int, seq_len: int) -> Session: ...


def complete(engine: Generates, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
    """See `qbench.engine.base.Engine.complete`: one prompt after the other, each with all of `new_tokens`, then cut."""
    session = engine.session(1, max(map(len, prompts)) + new_tokens)
    eos = engine.about.eos_token_id
    try:
        found = [session.generate(np.array([prompt]), new_tokens).tokens[0].tolist() for prompt in prompts]
    finally:
        session.close()
    return [until(tokens, set() if eos is None else {eos}, stop) for tokens in found]


def until(tokens: Sequence[int], ends: Container[int], stop: Stop) -> Tokens:
    """The tokens up to the first that is one of `ends`, or after which `stop` says so; all where there is none."""
    lengths = range(1, len(tokens) + 1)
    end = next((n for n in lengths if tokens[n - 1] in ends or stop(tokens[:n])), len(tokens))
    return tuple(tokens[:end])
