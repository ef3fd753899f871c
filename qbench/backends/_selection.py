"""Which kernel of gptqmodel multiplies here, and compiling it, once, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.util import find_spec

import torch

from qbench.backends import _kernels
from qbench.backends._calibrated import Calibrated
from qbench.compat.gptqmodel import compile_extension, compile_seconds, extension_obstacle, is_compiled
from qbench.config.target import Target
from qbench.errors import UnavailableError
from qbench.model.load import LoadOptions

STEP_S = 1.0
"""Between two reports of progress."""


def choose(options: LoadOptions, config: Calibrated) -> str:
    """The kernel that `config` names; for `auto` on CUDA, Marlin if it is or can be compiled, else Triton, else torch.

    On a CPU `auto` is left to gptqmodel.

    Raises:
        UnavailableError: the kernel that is named cannot run here, or none can.
    """
    target = _target(options)
    if reason := config.refusal(target):
        raise UnavailableError(f"backends.{config.label}.{reason}")
    possible = _kernels.choices(config.kernels, config.group_size, symmetric=config.symmetric, target=target)
    if config.kernel != "auto":
        if reason := _obstacle(config.kernels[config.kernel], target):
            others = [name for name in possible if not _obstacle(config.kernels[name], target)]
            raise UnavailableError(
                f"backends.{config.label}.kernel: {config.kernel}: {reason}; or choose {', '.join(['auto', *others])}"
            )
        return config.kernel
    if target.device == "cpu":
        return "auto"
    serving = (name for name in _kernels.AUTO_ON_CUDA if name in possible)
    return next(name for name in serving if not _obstacle(config.kernels[name], target))


def prepare(options: LoadOptions, config: Calibrated) -> None:
    """Compile the kernel that will multiply, unless it is compiled; where `auto` cannot, it takes the next.

    Raises:
        UnavailableError: see `choose`; or the kernel that is named cannot be compiled.
    """
    name = choose(options, config)
    extension = _extension(config, name, _target(options))
    if extension is None or is_compiled(extension):
        return
    failed = _compile(name, extension, options.progress)
    if failed and config.kernel != "auto":
        raise UnavailableError(f"backends.{config.label}.kernel: {name} cannot be compiled: {failed}; choose another")
    # What failed is an obstacle from now on: `load` chooses another, which is not compiled.


def _compile(name: str, extension: str, progress: Callable[[str, int, int], None]) -> str | None:
    expected = round(compile_seconds(extension))
    what = f"compiling {name}, once, about {round(expected / 60)} minutes"
    with ThreadPoolExecutor(max_workers=1) as pool:
        work = pool.submit(compile_extension, extension)
        seconds = 0
        while wait([work], timeout=STEP_S).not_done:
            seconds += 1
            progress(what, min(seconds, expected), expected)
        return work.result()


def _extension(config: Calibrated, name: str, target: Target) -> str | None:
    kernel = config.kernels.get(name)
    return kernel.extensions.get(target.dtype or "") if kernel else None


def _obstacle(kernel: _kernels.Kernel, target: Target) -> str | None:
    """What this machine lacks to run a kernel that it could run."""
    if kernel.module and find_spec(kernel.module) is None:
        return f"{kernel.module} is not installed: pip install {kernel.module}"
    extension = kernel.extensions.get(target.dtype or "")
    if extension is None or is_compiled(extension):
        return None
    reason = extension_obstacle(extension)
    return f"it is compiled at its first use, and {reason}" if reason else None


def _target(options: LoadOptions) -> Target:
    dtype = str(options.dtype).removeprefix("torch.")
    if options.device.type == "cpu":
        return Target("cpu", options.dtype.itemsize, dtype=dtype)
    capability = torch.cuda.get_device_capability(options.device)
    return Target("cuda", options.dtype.itemsize, dtype=dtype, capability=capability)
