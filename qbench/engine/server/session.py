"""Requests sent at once, as one generation: when each token came, and whether the counts hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qbench.engine.base import Generation, Ints
from qbench.engine.server.client import Completion
from qbench.engine.server.prompts import Prompt, Prompts
from qbench.errors import QbenchError

Send = Callable[[Sequence[Prompt], int], list[Completion]]
"""Sends so many prompts at once and waits for all of their answers of so many new tokens."""

EARLY = (
    "a timed request has to bring all of its tokens: vLLM, SGLang and llama.cpp pass over the end of a sequence when "
    "asked (`ignore_eos`); others stop there, and cannot be timed at a fixed length"
)


class ServerSession:
    """As many requests at a time as there are sequences; what holds them is the server's.

    Args:
        prepare: turns token ids into what the server takes.
        send: sends requests.
        encode: token ids of a text without special tokens; None where there is no tokenizer.
    """

    def __init__(self, prepare: Prompts, send: Send, encode: Callable[[str], list[int]] | None) -> None:
        self._prepare, self._send, self._encode = prepare, send, encode

    def generate(self, prompts: Ints, new_tokens: int) -> Generation:
        """See `qbench.engine.base.Session.generate`.

        Sequences of a server do not step together. Decoding lasts from the first token of any of them to the last of
        all, so that what is read of other prompts meanwhile counts as decoding; step k ends when every sequence has its
        token k. `itl_s` are the gaps within each sequence.

        Raises:
            QbenchError: a request failed, ended early, or its counts are not those of the request.
        """
        asked = [self._prepare([int(token) for token in row]) for row in np.asarray(prompts)]
        began = time.perf_counter()
        answers = self._send(asked, new_tokens)
        for answer in answers:
            check(answer, prompts.shape[1], new_tokens)
        arrived = np.stack([token_times(answer.token_s, new_tokens) for answer in answers])
        ends = arrived.max(0)
        ends[0] = arrived[:, 0].min()
        tokens, texts = self._tokens(answers, new_tokens)
        return Generation(
            tokens=tokens,
            ttft_s=float(arrived[:, 0].max() - began),
            step_s=tuple(np.diff(ends).tolist()),
            itl_s=tuple(np.diff(arrived).ravel().tolist()),
            texts=texts,
        )

    def close(self) -> None:
        """Nothing is held here."""

    def _tokens(self, answers: Sequence[Completion], new_tokens: int) -> tuple[Ints, tuple[str, ...] | None]:
        """The tokens that the server names, or those that our tokenizer makes of its text."""
        tokens = np.full((len(answers), new_tokens), -1)
        for row, answer in zip(tokens, answers, strict=True):
            ids = answer.token_ids
            if ids is None:
                ids = (self._encode(answer.text) if self._encode else [])[:new_tokens]
            row[: len(ids)] = ids
        named = all(answer.token_ids is not None for answer in answers)
        return tokens, None if named else tuple(answer.text for answer in answers)


def token_times(event_s: Sequence[float], tokens: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """When each of `tokens` tokens came, [tokens].

    With an event for every token these are the events' times. Fewer events brought several tokens each, nobody knows
    how many: then tokens are spread over the events evenly, and between two events their times are interpolated. The
    first and the last stay as they were.
    """
    if len(event_s) == tokens:
        return np.array(event_s)
    times: np.ndarray[Any, np.dtype[np.float64]] = np.interp(
        np.linspace(0, len(event_s) - 1, tokens), np.arange(len(event_s)), event_s
    )
    return times


def check(answer: Completion, prompt_tokens: int, new_tokens: int) -> None:
    """Refuse an answer that is not what was asked for: its times would be those of something else.

    Raises:
        QbenchError: it failed, ended early, was counted otherwise, or its prompt came out of a cache.
    """
    if answer.error is not None:
        raise QbenchError(f"{answer.detail} [{answer.error}]")
    if answer.counted and answer.tokens != new_tokens:
        raise QbenchError(
            f"the server sends no usage, and {answer.tokens} events came for {new_tokens} tokens: how many tokens "
            "there were is not known; use a version that takes `stream_options: {include_usage: true}`"
        )
    if answer.tokens < new_tokens:
        raise QbenchError(
            f"the server stopped after {answer.tokens} of {new_tokens} tokens (finish_reason {answer.finish}); {EARLY}"
        )
    if answer.prompt_tokens not in (None, prompt_tokens):
        raise QbenchError(
            f"the server counts {answer.prompt_tokens} tokens in a prompt of {prompt_tokens}; another model may be "
            "behind it"
        )
    if (answer.cached_tokens or 0) > prompt_tokens // 2:
        raise QbenchError(
            f"the server had {answer.cached_tokens} of a prompt's {prompt_tokens} tokens in its cache: its time to the "
            "first token is not that of reading; turn prefix caching off"
        )
