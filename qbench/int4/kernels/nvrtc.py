"""CUDA C++ from this package as functions on a GPU: compiled once by NVRTC, kept on disk, launched.

NVIDIA's `cuda-bindings` brings both the compiler's interface and the driver's; the compiler itself comes with torch's
CUDA wheels (`nvidia-cuda-nvrtc`). Neither nvcc nor a network is needed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
HEADERS = ("ptx.cuh", "weights.cuh", "finish.cuh")
OLDEST = (8, 0)
"""The first compute capability with products of bfloat16."""

Macros = Mapping[str, int]


def missing() -> str | None:
    """What is not installed of that which compiling needs; None where everything is."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "needs the package cuda-bindings, which is not installed"
    try:
        version()
    except Exception as error:  # whatever the bindings raise where they find no library
        return f"needs NVIDIA's compiler NVRTC (pip install nvidia-cuda-nvrtc): {error}"
    return None


@cache
def version() -> tuple[int, int]:
    """That of NVRTC.

    Raises:
        RuntimeError: there is no such library.
    """
    from cuda.bindings import nvrtc

    major, minor = _checked(nvrtc.nvrtcVersion())
    return int(major), int(minor)


@cache
def architecture(device: torch.device) -> str:
    """What is compiled for a GPU: "sm_90a", with Hopper's own instructions, or "sm_<capability>"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


class Compiled(NamedTuple):
    """What became of a source file."""

    code: bytes
    """For the GPU: a cubin."""
    log: str
    """What the compiler and its assembler say: registers, what does not fit into them, and what else costs speed."""


def compiled(source: str, architecture: str, macros: Macros) -> Compiled:
    """Compile one source file.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    from cuda.bindings import nvrtc

    names = [name.encode() for name in HEADERS]
    headers = [(SOURCES / name).read_bytes() for name in HEADERS]
    text = (SOURCES / source).read_bytes()
    program = _checked(nvrtc.nvrtcCreateProgram(text, source.encode(), len(names), headers, names))
    options = [option.encode() for option in (*_options(architecture, macros), "--ptxas-options=-v")]
    try:
        done = nvrtc.nvrtcCompileProgram(program, len(options), options)[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS
        said = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
        _checked(nvrtc.nvrtcGetProgramLog(program, said))
        log = said.decode(errors="replace")
        if not done:
            raise RuntimeError(f"{source} for {architecture} with {dict(macros)}: {log}")
        code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return Compiled(code, log)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _options(architecture: str, macros: Macros) -> list[str]:
    return [f"-arch={architecture}", "-std=c++17", *(f"-D{name}={value}" for name, value in macros.items())]


def cached(source: str, architecture: str, macros: Macros) -> bytes:
    """`compiled`, from the disk where the same was compiled before by this compiler."""
    text = b"".join((SOURCES / name).read_bytes() for name in (*HEADERS, source))
    said = repr((_options(architecture, macros), version()))
    file = cache_folder() / f"{hashlib.sha256(text + said.encode()).hexdigest()}.cubin"
    if file.is_file():
        return file.read_bytes()
    code = compiled(source, architecture, macros).code
    file.parent.mkdir(parents=True, exist_ok=True)
    # Another process may read it at any time.
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as unfinished:
        unfinished.write(code)
    os.replace(unfinished.name, file)
    return code


def cache_folder() -> Path:
    """Where machine code is kept: in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qbench" / "cuda"


class Function:
    """A kernel of a source file on one GPU."""

    def __init__(self, source: str, name: str, macros: Macros, device: torch.device, shared_bytes: int = 0) -> None:
        """Compile and load it, for launches with so many bytes of dynamic shared memory.

        Raises:
            RuntimeError: it does not compile, or the GPU lacks so much shared memory.
        """
        from cuda.bindings import driver

        self._driver: Any = driver
        self._shared_bytes = shared_bytes
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # makes the context
            library = _checked(driver.cuModuleLoadData(cached(source, architecture(device), macros)))
            self._function = _checked(driver.cuModuleGetFunction(library, name.encode()))
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(self._function, limit, shared_bytes))
        self._overlaps = torch.cuda.get_device_capability(device) >= (9, 0)

    def __call__(
        self, grid: tuple[int, int, int], threads: int, values: Sequence[int], types: Sequence[Any], stream: int
    ) -> None:
        """Launch it on a stream. On Hopper it may begin while the kernel before it ends (see `wait_for_inputs`).

        Raises:
            RuntimeError: the driver refuses.
        """
        driver = self._driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = self._shared_bytes
        config.hStream = driver.CUstream(stream)
        if self._overlaps:
            overlap = driver.CUlaunchAttribute()
            overlap.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            overlap.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [overlap], 1
        _checked(driver.cuLaunchKernelEx(config, self._function, (tuple(values), tuple(types)), 0))


def _checked(returned: tuple[Any, ...]) -> Any:
    """What a call of NVIDIA's bindings returned beside its error code."""
    code, *values = returned
    if code.value:
        raise RuntimeError(str(code))
    return values[0] if len(values) == 1 else values
