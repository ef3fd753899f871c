"""Log-likelihoods through `/v1/completions`, in the two ways in which servers give them exactly.

- vLLM: `prompt_logprobs` returns the log-probability and the rank of every token of the prompt, in one request a query.
- llama.cpp: `logprobs: n` returns the n most probable next tokens with their ids. An answer of k tokens takes k
  requests, each a token longer, whose beginning the server keeps; answers that begin alike share them. A token that is
  not among the first n is asked for again with the whole vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from qbench.engine.base import Answer, Query, Tokens
from qbench.errors import QbenchError

Asked = TypeVar("Asked")
Found = TypeVar("Found")

TOP = 64
"""Most probable tokens that are asked for first."""

Post = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""Sends fields of a completion that is not streamed."""

Method = Callable[[Post, Sequence[Query], int], Coroutine[Any, Any, list[Answer]]]
"""Answers to queries; the last argument is the size of the vocabulary."""


async def by_prompt(post: Post, queries: Sequence[Query], vocab_size: int) -> list[Answer]:
    """By `prompt_logprobs`: [{token id: {logprob, rank}}, …], the first of them null."""

    async def one(query: Query) -> Answer:
        prompt = [*query.stem, *query.answer]
        content = await post({"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0})
        found = content["choices"][0]["prompt_logprobs"][len(query.stem) :]
        told = [at[str(token)] for at, token in zip(found, query.answer, strict=True)]
        return sum(entry["logprob"] for entry in told), all(entry["rank"] == 1 for entry in told)

    return await _all(one, queries)


async def by_next_token(post: Post, queries: Sequence[Query], vocab_size: int) -> list[Answer]:
    """By the `top_logprobs` of the token that follows each beginning of an answer."""
    wanted: dict[Tokens, set[int]] = {}
    for query in queries:
        for position, token in enumerate(query.answer):
            wanted.setdefault((*query.stem, *query.answer[:position]), set()).add(token)

    async def one(prompt: Tokens) -> tuple[dict[int, float], int]:
        for count in (min(TOP, vocab_size), vocab_size):
            content = await post({"prompt": list(prompt), "max_tokens": 1, "temperature": 0.0, "logprobs": count})
            entries = content["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            known = {int(entry["id"]): float(entry["logprob"]) for entry in entries}
            if wanted[prompt] <= known.keys():
                return known, max(known, key=known.__getitem__)
        raise KeyError(f"token {min(wanted[prompt] - known.keys())}")

    prompts = list(wanted)
    found = dict(zip(prompts, await _all(one, prompts), strict=True))
    answers = []
    for query in queries:
        total, greedy = 0.0, True
        for position, token in enumerate(query.answer):
            known, best = found[(*query.stem, *query.answer[:position])]
            total += known[token]
            greedy &= token == best
        answers.append((total, greedy))
    return answers


METHODS: tuple[Method, ...] = (by_prompt, by_next_token)


async def find_method(post: Post, vocab_size: int) -> Method | None:
    """The first that a server answers; None where it gives no log-probabilities of a prompt."""
    for method in METHODS:
        try:
            await method(post, [Query((1, 2), (3,))], vocab_size)
        except QbenchError:
            continue
        return method
    return None


async def _all(one: Callable[[Asked], Coroutine[Any, Any, Found]], asked: Sequence[Asked]) -> list[Found]:
    """All at once; the first that fails ends the others.

    Raises:
        QbenchError: the server refuses, or its answer has another form.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(each)) for each in asked]
    except ExceptionGroup as errors:
        first = errors.exceptions[0]
        if isinstance(first, KeyError | TypeError | ValueError | IndexError | AttributeError):
            raise QbenchError(
                f"the server gives no log-probabilities of a prompt ({type(first).__name__}: {first})"
            ) from first
        raise first from None
    return [task.result() for task in tasks]
