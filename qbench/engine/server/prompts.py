"""Prompts of a length in tokens, as a server takes them: token ids, or a text that has as many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from qbench.engine import text
from qbench.errors import QbenchError

WORDS = 512
"""Tokens to write a text of, at most."""

Prompt = list[int] | str


class Prompts:
    """Turns token ids into what a server is sent.

    A server keeps what it has read, and answers sooner when a prompt begins as an earlier one did: a prompt that comes
    again gets another first token, so that all of it is read each time.

    Args:
        tokenizer: the model's own; None for random weights of a bare shape.
        as_ids: whether the server takes token ids.
        added: tokens that the server puts before a text by itself.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, *, as_ids: bool = True, added: int = 0) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self.as_ids, self._added = as_ids, added
        self._sent: Counter[tuple[int, ...]] = Counter()
        self._words: list[str] | None = None

    def __call__(self, ids: Sequence[int]) -> Prompt:
        """These tokens, or as many others if they were sent before or are no tokens of any text.

        Raises:
            QbenchError: no text of that many tokens is found.
        """
        asked = tuple(map(int, ids))
        fresh = ((asked[0] + self._sent[asked]) % self._vocab_size, *asked[1:])
        self._sent[asked] += 1
        return list(fresh) if self.as_ids else self._text(fresh)

    def count(self, written: str) -> int:
        """Tokens of a text without special ones, by our tokenizer."""
        return len(text.encode(self._tokenizer, written, self._vocab_size, special=False))

    def _text(self, ids: tuple[int, ...]) -> str:
        body = ids[self._added :]
        plain = text.decode(self._tokenizer, body)
        if tuple(text.encode(self._tokenizer, plain, self._vocab_size, special=False)) == body:
            return plain
        words = self._vocabulary()
        written = "".join(words[token % len(words)] for token in body)
        if (found := self.count(written)) != len(body):
            raise QbenchError(
                f"a text of {len(body)} tokens came out as {found}: this tokenizer joins words; use a server "
                "that takes token ids"
            )
        return written

    def _vocabulary(self) -> list[str]:
        """Words with a space before them that are one token each."""
        if self._words is None:
            self._words = []
            for token in range(self._vocab_size):
                word = text.decode(self._tokenizer, [token])
                if word[:1] == " " and word[1:].isascii() and word[1:].isalpha() and self.count(word) == 1:
                    self._words.append(word)
                if len(self._words) == WORDS:
                    break
            if not self._words:
                raise QbenchError("no word of this tokenizer is one token; use a server that takes token ids")
        return self._words
