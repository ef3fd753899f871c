"""A transformers tokenizer behind the contract of `qbench.engine.base`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.errors import QbenchError


class Text:
    """Encodes and decodes for an engine whose embedding has `rows` rows."""

    def __init__(self, tokenizer: Any, rows: int) -> None:
        self.tokenizer = tokenizer
        self._rows = rows

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Token ids. `special`: with or without special tokens; the tokenizer's own default if None.

        Raises:
            QbenchError: a token is not in the embedding.
        """
        options = {} if special is None else {"add_special_tokens": special}
        # It would warn of texts that are longer than the model's context.
        ids: list[int] = self.tokenizer(text, verbose=False, **options)["input_ids"]
        if max(ids, default=0) >= self._rows:
            raise QbenchError(
                f"the tokenizer has a token {max(ids)}, and the model's embedding {self._rows} rows: they do not "
                "belong together; check tokenizer.json beside the model"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special ones included."""
        text: str = self.tokenizer.decode(list(ids))
        return text
