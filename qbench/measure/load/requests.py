"""What is sent: prompts and lengths, the same for every cell of a run, and another prompt each time.

A prompt that a server has seen before it need not read again, so prompts are random tokens, and no two requests share
one.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from qbench.config import LoadConfig
from qbench.config.requests import Asked, Length, Lognormal, Uniform, read_requests

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Request:
    """One to be sent."""

    prompt: Prompt
    output_tokens: int


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that the run's seed and names alone decide."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def identify(config: LoadConfig) -> str:
    """What tells settings, and the content of a file of requests, from others."""
    content = config.requests.expanduser().read_bytes() if config.requests else b""
    return hashlib.sha256(config.model_dump_json().encode() + content).hexdigest()[:12]


def lengths(length: Length, count: int, random: np.random.Generator) -> list[int]:
    """So many numbers of tokens: a number itself; uniform between two; exp(N(ln median, sigma²)), rounded, in 1…max."""
    if isinstance(length, Uniform):
        return [int(n) for n in random.integers(*length.uniform, endpoint=True, size=count)]
    if isinstance(length, Lognormal):
        shape = length.lognormal
        drawn = random.lognormal(np.log(shape.median), shape.sigma, size=count)
        return [int(n) for n in np.clip(np.rint(drawn), 1, shape.max)]
    return [length] * count


def make(
    config: LoadConfig, level: str, count: int, seed: int, vocab_size: int, spell: Callable[[list[int]], Prompt]
) -> list[Request]:
    """The requests of a level, warm-up and tail included.

    Those of a file are taken in its order, from its beginning again when it ends.

    Args:
        spell: token ids as the server takes them: ids, or their text.
    """
    asked = _asked(config, level, count, seed)
    random = generator(seed, level, "prompts")

    def prompt(one: Asked) -> Prompt:
        return one.prompt or spell([int(token) for token in random.integers(vocab_size, size=one.prompt_tokens)])

    return [Request(prompt(one), one.output_tokens) for one in asked]


def _asked(config: LoadConfig, level: str, count: int, seed: int) -> Sequence[Asked]:
    if config.requests:
        return list(islice(cycle(read_requests(config.requests)), count))
    random = generator(seed, level, "lengths")
    pairs = zip(lengths(config.prompt_tokens, count, random), lengths(config.output_tokens, count, random), strict=True)
    return [Asked(prompt_tokens=prompt, output_tokens=output) for prompt, output in pairs]


def arrivals(rate: float, seed: int, level: str) -> Iterator[float]:
    """Moments of a Poisson process, in seconds from its beginning: gaps are exponential with mean 1 ÷ rate."""
    random, moment = generator(seed, level, "arrivals"), 0.0
    while True:
        moment += float(random.exponential(1 / rate))
        yield moment
