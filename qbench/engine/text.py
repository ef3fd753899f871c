"""Text and token ids, by a model's own tokenizer as transformers loads it: the same prompts whatever runs the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from qbench.errors import QbenchError

TOKENIZER_INFINITY = 10**20
"""What tokenizers without a length say is larger."""


def encode(tokenizer: Any, text: str, embeddings: int, *, special: bool | None = None) -> list[int]:
    """Token ids of a text; `special`: with or without special tokens, the tokenizer's default if None.

    Raises:
        QbenchError: a token is none of the model's, which has so many `embeddings`.
    """
    options = {} if special is None else {"add_special_tokens": special}
    # It would warn of texts that are longer than the model's context.
    ids: list[int] = tokenizer(text, verbose=False, **options)["input_ids"]
    if max(ids, default=0) >= embeddings:
        raise QbenchError(
            f"the tokenizer has a token {max(ids)}, and the model's embedding {embeddings} rows: they do not "
            "belong together; check tokenizer.json beside the model"
        )
    return ids


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special ones included."""
    text: str = tokenizer.decode(list(ids))
    return text


def context_of(tokenizer: Any) -> int | None:
    """The most tokens that a tokenizer takes; None where it does not say, or there is none."""
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length and length < TOKENIZER_INFINITY else None


def chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the assistant answers, by the tokenizer's chat template.

    Raises:
        QbenchError: it has none, or its template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise QbenchError("the model has no chat template; send the prompt's text to /v1/completions")
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise QbenchError(f"messages: the model's chat template refuses them: {error}") from error
    return ids
