"""What is kept of a run names no secret and no home folder: `***` for the one, `~` for the other.

Secrets are the values of environment variables whose names say so, the token that `hf auth login` keeps, and whatever
looks like a token of the Hugging Face hub. Everything that a run keeps as text goes through here: the workers' events,
of which all tables are made (`qbench.run.events`), run.json (`qbench.records.run.write_record`) and the logs
(`qbench.run.logs`).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

SECRET_NAME = re.compile(r"(TOKEN|_KEY|_SECRET)$|PASSWORD", re.IGNORECASE)
"""Environment variables with such names hold secrets."""

LEAST_CHARACTERS = 8
"""Shorter values are words such as `true`, not secrets."""

HUB_TOKEN = r"hf_[A-Za-z0-9]{20,}"

LINE_BYTES = 1 << 20
"""A line that is longer is looked at in pieces."""

MARGIN_BYTES = 4 << 10
"""More than the length of a secret."""


class Redactor:
    """Replaces secrets and home folders in texts."""

    def __init__(self, secrets: set[str], homes: set[str]) -> None:
        # A key of several lines is printed line by line, and JSON and Python's repr write a quote in their own way.
        lines = {line for secret in secrets for line in secret.splitlines() if len(line) >= LEAST_CHARACTERS}
        words = lines | {json.dumps(line, ensure_ascii=False)[1:-1] for line in lines}
        parts = [re.escape(word) for word in sorted(words, key=len, reverse=True)] + [HUB_TOKEN]
        if homes:
            folders = "|".join(re.escape(home) for home in sorted(homes, key=len, reverse=True))
            # /home/me is neither in /home/me2 nor in /backup/home/me.
            parts.append(rf"(?P<home>(?<![\w.-])(?:{folders})(?![\w-]|\.\w))")
        self._pattern = re.compile("|".join(parts))

    @classmethod
    def here(cls) -> Redactor:
        """The redactor of this process's environment as it is now."""
        secrets = {value for name, value in os.environ.items() if SECRET_NAME.search(name)} | _hub_token()
        home = Path.home()
        homes = {str(folder) for folder in (home, home.resolve()) if folder != Path(folder.anchor)}
        return cls({secret.strip() for secret in secrets}, homes)

    def text(self, text: str) -> str:
        """`text` without secrets and home folders."""
        return self._pattern.sub(lambda found: "~" if found.lastgroup else "***", text)

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it redacted; keys and numbers stay as they are."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(child) for key, child in value.items()}
        return [self.value(child) for child in value] if isinstance(value, list | tuple) else value

    def encoded(self, data: bytes) -> bytes:
        """`data` redacted; bytes that are no UTF-8 stay as they are."""
        return self.text(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def complete(self, data: bytes) -> int:
        """How many bytes of a text that goes on can be redacted by themselves: whole lines, or a part of a long one."""
        whole = data.rfind(b"\n") + 1
        if whole or len(data) <= LINE_BYTES:
            return whole
        text = data.decode("utf-8", "surrogateescape")
        cut = len(text) - MARGIN_BYTES
        across = [found.start() for found in self._pattern.finditer(text) if found.start() < cut < found.end()]
        return len(text[: across[0] if across else cut].encode("utf-8", "surrogateescape"))


def _hub_token() -> set[str]:
    """What `hf auth login` has left in its file, if it has."""
    from huggingface_hub import constants

    try:
        return {Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError):
        return set()
