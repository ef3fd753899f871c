"""Texts by name, for calibration and for perplexity: the demo model's own, WikiText-2, or a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from qbench import demo
from qbench.config import ModelConfig
from qbench.errors import QbenchError
from qbench.model.content import file_hash

Split = Literal["train", "test"]

NAMED = ("demo", "wikitext2")


def default_text(model: ModelConfig) -> str:
    """The text of a model for which none is named."""
    return "demo" if model.demo else "wikitext2"


def name(choice: str) -> str:
    """What rows call a text: its name, or that of its file."""
    return choice if choice in NAMED else Path(choice).name


def identify(choice: str) -> str:
    """What tells a text from others: its name, with the SHA-256 of a file."""
    path = Path(choice).expanduser()
    if choice in NAMED or not path.is_file():
        return choice
    return f"{path.name} sha256:{file_hash(path)}"


def check(choice: str, key: str) -> None:
    """Refuse a file that is not there; `key` is the key of the configuration that names it.

    Raises:
        QbenchError: there is no such file.
    """
    if choice not in NAMED and not Path(choice).expanduser().is_file():
        raise QbenchError(f"{key}: no file {choice}; give a text file, `demo` or `wikitext2`")


def read(choice: str, split: Split, key: str) -> str:
    """The text that `choice` names; a file has no splits.

    WikiText's own files (`wiki.test.raw`) give the text that their rows give on the hub, see `join_rows`; any other
    file is its text as it is.

    Raises:
        QbenchError: there is no such file, or the hub's WikiText-2 cannot be reached.
    """
    check(choice, key)
    if choice == "demo":
        path = demo.CALIBRATION_TEXT if split == "train" else demo.HELDOUT_TEXT
        return path.read_text(encoding="utf-8")
    if choice == "wikitext2":
        return join_rows(_hub_rows(split, key))
    path = Path(choice).expanduser()
    if path.suffix != ".raw":
        return path.read_text(encoding="utf-8")
    with path.open(encoding="utf-8") as rows:
        return join_rows(rows)


def join_rows(rows: Iterable[str]) -> str:
    """Rows of WikiText joined by two newlines, as the evaluations of the GPTQ and AWQ papers join the hub's.

    The hub's rows are the lines of the published files, newline included, and blank lines as empty rows (`wikitext.py`
    of the dataset Salesforce/wikitext), so that both come to the same text: 287,644 tokens of GPT-2 for the test set.
    """
    return "\n\n".join(row if row.strip() else "" for row in rows)


def _hub_rows(split: Split, key: str) -> list[str]:
    import datasets

    try:
        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
    except Exception as error:
        raise QbenchError(
            f"{key}: WikiText-2 cannot be fetched from the hub "
            f"({type(error).__name__}); set {key} to a text file, such as WikiText-2's wiki.{split}.raw"
        ) from error
    return list(rows["text"])
