"""llama.cpp says how large its buffers are, and why a call failed, only in its log; and what a matrix is multiplied by,
only to a callback that is handed ggml's own structs.

The C API is that of llama-cpp-python, whose names are llama.cpp's own; what it promises to keep is used where it is
needed, from `qbench.engine.llama_cpp` on.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._ggml import libggml

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


class Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h as far as its name; what follows is left out."""


DIMENSIONS, SOURCES, NAME_BYTES, PARAMETER_BYTES = 4, 10, 64, 64

Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * DIMENSIONS),
    ("nb", ctypes.c_size_t * DIMENSIONS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_char * PARAMETER_BYTES),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * NAME_BYTES),
]

libggml.ggml_op_desc.restype = ctypes.c_char_p
libggml.ggml_op_desc.argtypes = [ctypes.c_void_p]

F32 = 0
"""Of `ggml_type`."""

Inputs = np.ndarray[Any, np.dtype[np.float32]]


class Products:
    """Tells `see` what every matrix whose name begins with `prefix` is multiplied by, once the product is there.

    `callback` is the `cb_eval` of a context that computes on the CPU. `see` is given the matrix's name and a view of
    the inputs [rows, in_features].
    """

    def __init__(self, prefix: str, see: Callable[[str, Inputs], None]) -> None:
        self._prefix, self._see = prefix.encode(), see
        self._error: BaseException | None = None
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._hear)

    def check(self) -> None:
        """Raise what `see` has raised: llama.cpp cannot."""
        if self._error:
            raise self._error

    def _hear(self, address: int, ask: bool, _: Any) -> bool:
        """Asked first whether a node is of interest, and called again when it has been computed."""
        node = Tensor.from_address(address)
        if ask:
            return libggml.ggml_op_desc(address) == b"MUL_MAT" and self._wants(*node.src[:2])
        try:
            self._see(node.src[0].contents.name.decode(), _array(node.src[1].contents))
        except BaseException as error:  # ctypes would print and drop it
            self._error = self._error or error
        return True

    def _wants(self, weight: Any, inputs: Any) -> bool:
        return bool(weight.contents.name.startswith(self._prefix) and inputs.contents.type == F32)


def _array(tensor: Tensor) -> Inputs:
    """A view [rows, columns] of a float32 tensor in memory."""
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    last = sum(stride * (count - 1) for stride, count in zip(strides, shape, strict=True))
    memory = (ctypes.c_char * (last + ctypes.sizeof(ctypes.c_float))).from_address(tensor.data)
    found: Inputs = np.ndarray(shape, np.float32, memory, strides=strides).reshape(-1, shape[-1])
    return found
