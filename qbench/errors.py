"""The one exception that is meant for the person at the terminal, and what other exceptions mean for a cell."""

from __future__ import annotations

from typing import Literal

OOM_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


class QbenchError(Exception):
    """Something the user can mend: the message names the thing and the remedy. The command line exits with 2."""


class NotFiniteError(QbenchError):
    """The model computes NaN or infinity: no figure of it means anything, and its cell is not ok."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}: the model's logits are NaN or infinite, so that its figures would mean nothing. Try another "
            "dtype (float16 overflows in some models), or check the quantized weights"
        )


class UnavailableError(QbenchError):
    """A backend cannot work on this device: why, and what to take instead. Its cell is `unavailable`."""


def describe_fault(error: BaseException) -> tuple[Literal["oom", "error", "unavailable"], str]:
    """The status and the one-line reason of a cell or trial that ended with `error`.

    Running out of memory has no type of its own: CUDA raises `torch.OutOfMemoryError`, torch's CPU allocator a
    RuntimeError, Python a MemoryError, libraries whatever they like; they agree on the words.
    """
    text = str(error).strip()
    if isinstance(error, UnavailableError):
        return "unavailable", text
    if isinstance(error, MemoryError) or any(words in text.lower() for words in OOM_WORDS):
        return "oom", _first_line(text) or "out of memory"
    return "error", text if isinstance(error, QbenchError) else f"{type(error).__name__}: {_first_line(text)}"


def _first_line(text: str) -> str:
    return text.splitlines()[0].strip() if text else ""
