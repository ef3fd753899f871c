"""A server behind the contract of `qbench.engine.base`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil

from qbench.engine import prefix_groups, text
from qbench.engine.base import (
    About,
    Answer,
    Capability,
    Decode,
    Ints,
    Journal,
    KVCache,
    Loglikelihoods,
    Query,
    Scores,
    Stop,
    TokenCount,
    Tokens,
)
from qbench.engine.one_by_one import until
from qbench.engine.server import logprobs
from qbench.engine.server.client import Completion, Endpoint, complete, open_client, post
from qbench.engine.server.memory import meter_of, peak
from qbench.engine.server.process import ServerProcess, listening_on
from qbench.engine.server.prompts import Prompt, Prompts
from qbench.engine.server.session import ServerSession, check
from qbench.errors import QbenchError

TIMED: Mapping[str, Any] = {"cache_prompt": False, "return_token_ids": True}
"""Of requests that are timed: llama.cpp reads the whole prompt, vLLM names the tokens that it generates."""

COMPLETED: Mapping[str, Any] = {"return_token_ids": True, "ignore_eos": None, "min_tokens": None}
"""Of requests whose answers end where the model ends them."""

PROBE = "One two three four five six seven eight."
PROBE_TOKENS = 8
Result = TypeVar("Result")


class ServerEngine:
    """Runs a model that a server of OpenAI's HTTP API serves.

    Args:
        about: what is known of it.
        tokenizer: the model's own, as transformers loads it; None for random weights of a bare shape.
        timeout_s: for one request.
        process: what a command has started, which ends with the engine; None for a server that runs by itself.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        about: About,
        tokenizer: Any,
        *,
        timeout_s: float,
        process: ServerProcess | None = None,
    ) -> None:
        self.endpoint, self.about = endpoint, about
        self._tokenizer, self._timeout_s, self._process = tokenizer, timeout_s, process
        self._runner = asyncio.Runner()
        self._client = open_client(endpoint)
        self._prompts = Prompts(tokenizer, about.vocab_size)
        self._method: logprobs.Method | None = None
        self._meter = meter_of(self._processes(), about.device)

    def probe(self) -> None:
        """Find out what the server takes and gives.

        Raises:
            QbenchError: it does not stream, does not count, stops early, or has another tokenizer.
        """
        ids = list(range(1, PROBE_TOKENS + 1))
        answer = self._send([ids], PROBE_TOKENS)[0]
        if (answer.error or "").startswith("http_4") or answer.prompt_tokens not in (None, len(ids)):
            self._prompts = self._text_prompts(answer)
            answer = self._send([self._prompts(ids)], PROBE_TOKENS)[0]
        self._checked(lambda: check(answer, len(ids), PROBE_TOKENS))
        if self._prompts.as_ids:
            self._method = self._run(logprobs.find_method(self._post, self.about.vocab_size))

    @property
    def can(self) -> frozenset[Capability]:
        """Generation; more where the server gives log-probabilities of a prompt, and its processes are here."""
        found = {Capability.GENERATE, Capability.REQUESTS}
        found |= {Capability.TEXT} if self._tokenizer else set()
        found |= {Capability.LOGLIKELIHOODS} if self._method else set()
        return frozenset(found | ({Capability.PEAK_MEMORY} if self._meter else set()))

    def encode(self, text_: str, *, special: bool | None = None) -> list[int]:
        """Token ids, by the tokenizer of the run's model."""
        return text.encode(self._tokenizer, text_, self.about.vocab_size, special=special)

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of token ids."""
        return text.decode(self._tokenizer, ids, special=special)

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """Token ids as the server takes them: as they are, or a text that has as many."""
        return self._prompts(ids)

    def decode_mode(self, asked: Decode, kv_cache: KVCache = "16bit") -> str:
        """Always `server`: how it decodes is its own affair.

        Raises:
            QbenchError: a mode of another engine is asked for.
        """
        if asked not in ("auto", "eager"):
            raise QbenchError(f"decode: {asked} is a mode of the torch engine; servers take auto or eager")
        return "server"

    def session(
        self, batch_size: int, seq_len: int, *, decode: Decode = "auto", kv_cache: KVCache = "16bit"
    ) -> ServerSession:
        """Requests, `batch_size` at a time."""
        encode = partial(self.encode, special=False) if self._tokenizer else None
        return ServerSession(self._prompts, self._timed, encode)

    def complete(self, prompts: Sequence[Tokens], new_tokens: int, stop: Stop) -> list[Tokens]:
        """See `qbench.engine.base.Engine.complete`: all prompts at a time, each with up to `new_tokens`, then cut.

        Of a server that sends text alone, the tokens are those that our tokenizer makes of it.

        Raises:
            QbenchError: a request failed.
        """
        answers = self._send([self._prompts(list(prompt)) for prompt in prompts], new_tokens, COMPLETED)
        failed = next((answer for answer in answers if answer.error not in (None, "no_tokens")), None)
        if failed:  # a model may end at once
            self._checked(lambda: check(failed, 0, 0))
        ends = () if self.about.eos_token_id is None else (self.about.eos_token_id,)
        return [until(self._ids(answer), ends, stop) for answer in answers]

    def _ids(self, answer: Completion) -> list[int]:
        return answer.token_ids or (self.encode(answer.text, special=False) if answer.text else [])

    def loglikelihoods(
        self, queries: Iterable[Query], *, batch_size: int, share: bool, journal: Journal | None = None
    ) -> Loglikelihoods:
        """See `qbench.engine.server.logprobs`; what is read once is the server's to decide."""
        if self._method is None:
            raise NotImplementedError(f"{self.endpoint.root} gives no log-probabilities of a prompt")
        groups = prefix_groups.plan(queries, batch_size=batch_size, share=False)
        read = prefix_groups.count(groups, batch_size).read
        return Loglikelihoods(TokenCount(read, read), self._answers(self._method, groups, batch_size, journal))

    def _answers(
        self, method: logprobs.Method, groups: Sequence[prefix_groups.Group], batch_size: int, journal: Journal | None
    ) -> Iterator[dict[Query, Answer]]:
        for rows in (rows for group in groups for rows in prefix_groups.batches(group, batch_size)):
            queries, name = prefix_groups.queries_of(rows), prefix_groups.name_of(rows)
            known = journal.get(name) if journal else None
            found = known if known is not None else self._ask(method, queries)
            yield dict(zip(queries, found, strict=True))
            if journal and known is None:
                journal.put(name, found)

    def _ask(self, method: logprobs.Method, queries: Sequence[Query]) -> list[Answer]:
        return self._checked(lambda: self._run(method(self._post, queries, self.about.vocab_size)))

    def score(self, tokens: Ints, *, top_k: int | None = None, words: Ints | None = None) -> Scores:
        """Not through this API: `Capability.SCORE` is missing."""
        raise NotImplementedError("a server scores no windows")

    def peak_memory(self, call: Callable[[], object]) -> list[int]:
        """Resident bytes of the server's processes; on GPUs, those of each that they are on."""
        if self._meter is None:
            raise NotImplementedError("the memory of the server's processes is not seen")
        return peak(self._meter, self._processes, call)

    def close(self) -> None:
        """Close connections, and end the server if it was started here."""
        try:
            self._run(self._client.aclose())
            self._runner.close()
        finally:
            if self._process:
                self._process.close()

    def _processes(self) -> list[psutil.Process]:
        if self._process:
            return self._process.processes()
        parts = urlsplit(self.endpoint.url)
        return listening_on(parts.port or (443 if parts.scheme == "https" else 80)) if self.endpoint.local else []

    def _text_prompts(self, refused: Completion) -> Prompts:
        """Prompts for a server that takes no token ids; it may put some of its own before a text.

        Raises:
            QbenchError: there is no tokenizer, or it is not the server's.
        """
        if self._tokenizer is None:
            raise QbenchError(
                f"{self.endpoint.root} takes no token ids ({refused.detail}), and the model has no tokenizer to write "
                "text with; name a model that has"
            )
        ours = Prompts(self._tokenizer, self.about.vocab_size, as_ids=False).count(PROBE)
        answer = self._send([PROBE], PROBE_TOKENS)[0]
        self._checked(lambda: check(answer, answer.prompt_tokens or ours, PROBE_TOKENS))
        added = (answer.prompt_tokens or ours) - ours
        if added not in (0, 1):
            raise QbenchError(
                f"{self.endpoint.root} counts {answer.prompt_tokens} tokens in a text that has {ours} for the "
                "tokenizer of the run's `model:`; another model is behind it"
            )
        return Prompts(self._tokenizer, self.about.vocab_size, as_ids=False, added=added)

    def _timed(self, prompts: Sequence[Prompt], new_tokens: int) -> list[Completion]:
        answers = self._send(prompts, new_tokens)
        if self._process and any(answer.error for answer in answers):
            self._process.check()
        return answers

    def _send(self, prompts: Sequence[Prompt], new_tokens: int, extra: Mapping[str, Any] = TIMED) -> list[Completion]:
        async def all_at_once() -> list[Completion]:
            return await asyncio.gather(
                *(
                    complete(self._client, self.endpoint, each, new_tokens, timeout_s=self._timeout_s, extra=extra)
                    for each in prompts
                )
            )

        return self._run(all_at_once())

    async def _post(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return await post(self._client, self.endpoint, fields, timeout_s=self._timeout_s)

    def _checked(self, call: Callable[[], Result]) -> Result:
        """`call`; an error of a server that is gone says so, with its last lines."""
        try:
            return call()
        except QbenchError:
            if self._process:
                self._process.check()
            raise

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(coroutine)
