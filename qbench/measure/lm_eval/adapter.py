"""An engine as lm-evaluation-harness sees a model: texts become tokens here, the engine scores them.

Tokens, truncation from the left and the empty context are those of the harness's own wrapper around transformers
(`lm_eval.models.huggingface.HFLM`), which tests hold this against.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from qbench.engine import prefix_groups
from qbench.engine.base import Answer, Engine, Journal, Query, TokenCount, Tokens
from qbench.errors import QbenchError

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 2048
"""What the harness assumes of a model that does not say."""

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""lm-evaluation-harness's tokenized request: (context, continuation) as texts, and the tokens of each."""


DEFAULT_NEW_TOKENS = 256
"""What the harness lets a model generate where a task does not say."""

GREEDY = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"})
"""Options of a task's generation that greedy decoding obeys, or that mean nothing to it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a continuation ends at the latest."""

    new_tokens: int
    stops: tuple[str, ...]

    def ended(self, text: str) -> bool:
        """Whether a stop string is there."""
        return any(stop in text for stop in self.stops)

    def cut(self, text: str) -> str:
        """What stands before every stop string."""
        for stop in self.stops:
            text = text.partition(stop)[0]
        return text


def limits_of(options: Mapping[str, Any], eos: str = "") -> Limits:
    """Of a task's `generation_kwargs`, as `lm_eval.models.huggingface.HFLM` understands them.

    Raises:
        QbenchError: they do not ask for greedy decoding.
    """
    found = normalize_gen_kwargs(dict(options), DEFAULT_NEW_TOKENS)
    if found.get("do_sample"):
        raise QbenchError(
            "it samples (do_sample), so that another start gives other answers; only greedy generation is measured"
        )
    if strange := sorted(found.keys() - GREEDY):
        raise QbenchError(f"it generates with {', '.join(strange)}; only greedy generation to stop strings is measured")
    stops = handle_stop_sequences(found["until"], eos=eos)
    return Limits(found["max_gen_toks"], tuple(stop for stop in stops if stop))


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """Equal log-likelihoods and continuations for any engine; the order of requests changes nothing.

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

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, each cut at the first stop string: longest prompts first, `batch_size` side by side.

        What is generated a batch at a time has the same limit and stop strings.
        """
        prompts: dict[tuple[Limits, Tokens], list[int]] = {}
        for i, (context, options) in enumerate(request.args for request in requests):
            limits = limits_of(options, self.engine.decode([self.eot_token_id]))
            prompt = self._prompt(context, limits.new_tokens)
            prompts.setdefault((limits, prompt), []).append(i)
        answers: dict[int, str] = {}
        for limits in dict.fromkeys(limits for limits, _ in prompts):
            waiting = sorted((p for own, p in prompts if own == limits), key=lambda p: (-len(p), p))
            for start in range(0, len(waiting), self.batch_size):
                batch = waiting[start : start + self.batch_size]
                for prompt, text in zip(batch, self._complete(batch, limits), strict=True):
                    for i in prompts[limits, prompt]:
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return [answers[i] for i in range(len(requests))]

    def _prompt(self, context: str, new_tokens: int) -> Tokens:
        """The tokens of a prompt, its beginning cut off where `new_tokens` more would exceed the model's context.

        Raises:
            QbenchError: so many tokens leave no room for a prompt.
        """
        room = self.max_length - new_tokens
        if room <= 0:
            raise QbenchError(
                f"a question takes up to {new_tokens} new tokens, and the model's context of {self.max_length} leaves "
                "no room for a prompt before them. Leave this task out"
            )
        tokens = self.tok_encode(context)
        if len(tokens) > room:
            self.truncated.add(context)
        self.forward_tokens += TokenCount(min(len(tokens), room))
        self.stock_tokens += TokenCount(min(len(tokens), room))
        return tuple(tokens[-room:])

    def _complete(self, prompts: list[Tokens], limits: Limits) -> list[str]:
        name = hashlib.sha256(repr((prompts, limits)).encode()).hexdigest()
        found = self._journal.get(name) if self._journal else None
        if found is None:
            found = self.engine.complete(
                prompts, limits.new_tokens, lambda tokens: limits.ended(self.engine.decode(tokens))
            )
            if self._journal:
                self._journal.put(name, found)
        return [limits.cut(self.engine.decode(tokens, special=False)) for tokens in found]
