"""What the API asks of a model that is served: token ids go in and come out, one at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from qbench.engine.base import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn from the model's distribution."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_p: float = 1.0
    """The most probable tokens that have this much probability together are drawn from (nucleus sampling)."""
    top_k: int = 0
    """As many of the most probable tokens are drawn from; 0 for all. Comes before `top_p`."""
    seed: int | None = None
    """The same seed, prompt and settings give the same tokens; None draws anew each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to be continued."""

    prompt: Tokens
    max_tokens: int
    """At least 1."""
    sampling: Sampling = field(default_factory=Sampling)
    min_tokens: int = 0
    """Before them, no end-of-sequence token is drawn."""
    ignore_eos: bool = False
    """Whether an end-of-sequence token is a token like any other."""
    logprobs: int | None = None
    """How many of the most probable tokens to give with every token and its log-probability; None for neither."""


Alternatives = tuple[tuple[int, float], ...]
"""The most probable tokens and their log-probabilities, most probable first."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer, or of a prompt that is scored."""

    id: int
    logprob: float | None = None
    """Before temperature and top_p; None unless asked for, and of the first token of a prompt."""
    top: Alternatives = ()
    best: bool = False
    """Whether no other token is more probable; of tokens of a prompt."""
    ends: bool = False
    """It is an end-of-sequence token and the last of its answer."""


class Served(Protocol):
    """A loaded model that answers requests, many at a time."""

    @property
    def context(self) -> int:
        """The most tokens of prompt and answer together."""

    @property
    def vocab_size(self) -> int:
        """Token ids are smaller."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `/v1/models` says of it besides its name: kind, kernel, dtype, weight_bytes, …."""

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids, with or without the special tokens that the tokenizer adds.

        Raises:
            QbenchError: there is no tokenizer, or it does not belong to the model.
        """

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The token ids of a conversation up to where the assistant answers, by the model's own chat template.

        Raises:
            QbenchError: the model has no chat template, or the template refuses the messages.
        """

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """The text of token ids, with or without special tokens."""

    def generate(self, request: Request) -> AsyncGenerator[Token, None]:
        """The tokens of an answer as they come; closing the generator ends the request and frees its memory."""

    async def score(self, prompt: Tokens, logprobs: int) -> list[Token]:
        """The tokens of a prompt, each but the first with its log-probability and `logprobs` alternatives."""
