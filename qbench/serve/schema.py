"""What a request may say: OpenAI's names, and those of vLLM's extensions.

An option that would change the answer and is not known here is refused, never ignored. Those that are only accepted at
the value that changes nothing are in `NEUTRAL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from qbench.engine.base import Tokens

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "cache_prompt": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
"""Options of OpenAI's API and of llama.cpp's that are not supported, and the values that change nothing, as null."""

IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls")
"""Options that say nothing of the answer."""

MAX_LOGPROBS = 20
"""Alternatives of a token: OpenAI's limit for chats."""

MAX_PROMPTS = 256
"""Of one request."""


def _prompts(value: object) -> tuple[str | Tokens, ...]:
    """A text, a list of token ids, or a list of either."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) or _is_ids(one) for one in value):
        raise ValueError("give a text, a list of token ids, or a list of either; none of them empty")
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"{len(value)} prompts; send at most {MAX_PROMPTS} at once")
    return tuple(one if isinstance(one, str) else tuple(one) for one in value)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(one, str) and one for one in stops):
        raise ValueError("give a text or a list of at most 16, none of them empty")
    return tuple(stops)


def _text(content: object) -> str:
    """The text of a message, which may come in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError("give a text; images, sound and files are not supported")


class StreamOptions(BaseModel):
    """What a stream holds besides text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    """A last chunk with the number of tokens."""
    continuous_usage_stats: bool | None = None
    """The numbers so far in every chunk, as vLLM gives them."""


class Body(BaseModel):
    """What completions and chats have in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    skip_special_tokens: bool = True
    return_token_ids: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_supported(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for name, harmless in NEUTRAL.items():
            value = data.get(name)
            if value is not None and value not in harmless:
                raise ValueError(f"{name}: not supported; leave it out")
        return {name: value for name, value in data.items() if name not in NEUTRAL and name not in IGNORED}

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk says it."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)


class CompletionBody(Body):
    """The body of `/v1/completions`."""

    prompt: Annotated[tuple[str | Tokens, ...], BeforeValidator(_prompts)]
    max_tokens: int | None = Field(16, ge=0)
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = True
    return_tokens_as_token_ids: bool = False


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text)] = ""


class ChatBody(Body):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def most_tokens(self) -> int | None:
        """Of the answer; None for as many as the context has left."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives to give with every token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
