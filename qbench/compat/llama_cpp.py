"""llama.cpp says how large its buffers are, and why a call failed, only in its log.

The C API is that of llama-cpp-python, whose names are llama.cpp's own; what it promises to keep is used where it is
needed, from `qbench.engine.llama_cpp` on.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from typing import Any

import llama_cpp

BUFFER = re.compile(r"^\S+?:\s+(?P<place>\S+)\s+(?P<what>model|KV|compute|output) buffer size =\s+(?P<mib>[\d.]+) MiB")
"""A line of `llama_model_load` or `llama_init_from_model`; MiB have two decimals."""

WARNING, CONTINUED = 3, 5
"""Of `ggml_log_level`; error is 4. A continuation goes on with the line before it."""

KEPT_LINES = 20


class Log:
    """What llama.cpp has said since `restart`: bytes of buffers, and its last complaints.

    Complaints go to standard error, which is the worker's log; the rest of its chatter goes nowhere.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[str, float]] = []
        self._complaints: deque[str] = deque(maxlen=KEPT_LINES)
        # The library keeps the pointer alone.
        self._callback = llama_cpp.llama_log_callback(self._hear)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def restart(self) -> None:
        """Forget what was said."""
        self._buffers.clear()
        self._complaints.clear()

    def bytes_of(self, what: str) -> int:
        """Bytes of the buffers that were announced as `model`, `KV`, `compute` or `output`, all places together.

        The lines round to 0.01 MiB.
        """
        return round(sum(mib for kind, mib in self._buffers if kind == what) * 2**20)

    @property
    def complaint(self) -> str:
        """The last thing that it was unhappy about; empty if there was none."""
        return self._complaints[-1] if self._complaints else ""

    def _hear(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        found = BUFFER.match(line)
        if found:
            self._buffers.append((found["what"], float(found["mib"])))
        elif level >= WARNING and level != CONTINUED and line:
            self._complaints.append(line)
            print(line, file=sys.stderr, flush=True)


LOG = Log()
"""The library has one log for all of its models."""


def features() -> list[str]:
    """Instruction sets and options that the library was built with and finds here, as `llama_print_system_info` names
    them: AVX2, AVX512_VNNI, AMX_INT8, OPENMP, REPACK, …."""
    text = llama_cpp.llama_print_system_info().decode()
    return re.findall(r"(\w+) = 1\b", text)


def build() -> str:
    """The version of llama-cpp-python, which decides that of llama.cpp."""
    return str(llama_cpp.__version__)
