"""An engine as lm-evaluation-harness sees a model: texts become tokens here, the engine scores them.

Tokens, truncation from the left and the empty context are those of the harness's own wrapper around transformers
(`lm_eval.models.huggingface.HFLM`), which tests hold this against.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any

from lm_eval.api.model import TemplateLM

from qbench.engine import prefix_groups
from qbench.engine.base import Answer, Engine, Journal, Query, TokenCount, Tokens
from qbench.errors import QbenchError

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 2048
"""What the harness assumes of a model that does not say."""

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""lm-evaluation-harness's tokenized request: (context, continuation) as texts, and the tokens of each."""


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """Equal log-likelihoods for any engine; the order of requests changes nothing.

    A batch stands for `batch_size` sequences at most. `share`: what prompts have in common may be read once.
    """

    def __init__(self, engine: Engine, batch_size: int, *, share: bool, journal: Journal | None = None) -> None:
        super().__init__()
        self.engine = engine
        self.batch_size = batch_size
        self.max_length = engine.about.context or DEFAULT_CONTEXT
        self._share, self._journal = share, journal
        self._bos = engine.decode([self.prefix_token_id])
        # A prompt alternates with prompt + answer, so that two entries are enough.
        self._encode = functools.lru_cache(maxsize=2)(engine.encode)
        self.forward_tokens = TokenCount()
        """What the model read, so far."""
        self.stock_tokens = TokenCount()
        """What the harness's own wrapper would have read."""
        self.shared: bool | None = None
        """Whether what prompts have in common was read once; None before the first request."""
        self.truncated: set[str] = set()
        """Prompts that lost their beginning, with it some of their examples: they exceed the model's context."""

    @property
    def eot_token_id(self) -> int:
        """The end of a text.

        Raises:
            QbenchError: the tokenizer has none.
        """
        found = self.engine.about.eos_token_id
        if found is None:
            raise QbenchError("the model's tokenizer has no end-of-text token, which tasks need; choose another model")
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of an answer without a context."""
        bos = self.engine.about.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; the list is shared by the requests of a question."""
        if add_special_tokens is None and self._bos and string.startswith(self._bos):
            add_special_tokens = False
        return self._encode(string, special=add_special_tokens)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        """As the harness does, without its progress bars."""
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(self, requests: list[TokenRequest], **_options: Any) -> list[Answer]:
        self._check(requests)
        waiting: dict[Query, list[int]] = {}
        stems: dict[Tokens, Tokens] = {}
        for i, (_texts, context, continuation) in enumerate(requests):
            query = prefix_groups.cut(context, continuation, self.max_length)
            # One copy of a prompt for all of its answers.
            stem = stems.setdefault(query.stem, query.stem)
            waiting.setdefault(Query(stem, query.answer), []).append(i)
        found = self.engine.loglikelihoods(
            waiting, batch_size=self.batch_size, share=self._share, journal=self._journal
        )
        self.forward_tokens += found.tokens
        self.shared = found.shared if self.shared is None else self.shared and found.shared
        answers: dict[int, Answer] = {}
        for batch in found.batches:
            for query, answer in batch.items():
                for i in waiting[query]:
                    answers[i] = answer
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
        return [answers[i] for i in range(len(requests))]

    def _check(self, requests: Iterable[TokenRequest]) -> None:
        """Count what the harness's wrapper would read, and warn of prompts that lose their beginning.

        Raises:
            QbenchError: a continuation has no token of its own, or more than the model can read.
        """
        requests = list(requests)
        for (_, continuation), _, answer in requests:
            if not 0 < len(answer) <= self.max_length:
                raise QbenchError(
                    f"the continuation {continuation[:60]!r} has {len(answer)} tokens after its prompt: "
                    f"a model of {self.max_length} tokens scores 1 to {self.max_length}. Leave this task out"
                )
        # The last token of prompt + answer is only predicted, never read.
        longest = self.max_length + 1
        cut = {texts[0] for texts, prompt, answer in requests if len(prompt) + len(answer) > longest}
        self.truncated |= cut
        if cut:
            log.warning(
                "%d of %d prompts exceed the model's %d tokens and lose their beginning",
                len(cut), len({texts[0] for texts, *_ in requests}), self.max_length,
            )  # fmt: skip
        tokens = (tokens for _, *tokens in requests)
        self.stock_tokens += prefix_groups.count_unshared(tokens, self.max_length, self.batch_size)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Not asked for: tasks of other kinds are refused before they are loaded."""
        raise NotImplementedError

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Not asked for: tasks of other kinds are refused before they are loaded."""
        raise NotImplementedError
