"""The machine and the software a run was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qbench import DISTRIBUTION, __version__

PACKAGES = (
    "qbench", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "bitsandbytes", "gptqmodel",
    "hqq", "torchao", "optimum-quanto", "compressed-tensors", "auto-round",
    "lm_eval", "datasets", "wonderwords", "nltk", "triton", "numpy", "pandas", "scipy", "matplotlib",
)  # fmt: skip
"""Distributions whose versions decide a figure; `qbench` stands for this one, whatever pip calls it."""


CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd")
"""Instructions that kernels for CPUs look for, as Linux names them."""

_AMX = ("amx_int8", "amx_bf16")
_VNNI = ("avx512_vnni", *_AMX)
WITHHELD = {
    "avx512vnni": _AMX,
    "avx512": _VNNI,
    "avx2": ("avx512f", *_VNNI),
    "generic": ("avx2", "avx512f", *_VNNI),
}
"""Features that the INT4 kernels leave unused at a QBENCH_CPU_LEVEL (see `qbench.int4.native`)."""


class GPU(BaseModel):
    """One NVIDIA device as its driver reports it."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_bytes: int
    capability: tuple[int, int] | None = None
    """Compute capability; None in records of older versions."""


class Environment(BaseModel):
    """Everything about the machine that a reader of a figure needs; nothing that names its owner."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    cpu_features: tuple[str, ...] = ()
    """Those of `CPU_FEATURES` that it has, less those that QBENCH_CPU_LEVEL keeps the INT4 kernels from."""
    cores: int
    """Cores this process may use."""
    memory_bytes: int
    gpus: tuple[GPU, ...]
    driver: str | None
    os: str
    python: str
    versions: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None


def detect() -> Environment:
    """Read the environment; what cannot be read is None or empty, never a guess."""
    import psutil  # of no use to the commands that read runs, which import this module for its classes

    gpus, driver = _nvidia()
    commit, dirty = _git(Path(__file__).parents[1])
    return Environment(
        cpu=_cpuinfo("model name") or _cpu_brand(),
        cpu_features=_cpu_features(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus,
        driver=driver,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(),
        git_commit=commit,
        git_dirty=dirty,
    )


def _cpu_features() -> tuple[str, ...]:
    withheld = WITHHELD.get(os.environ.get("QBENCH_CPU_LEVEL", "amx"), ())
    there = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return tuple(feature for feature in CPU_FEATURES if feature in there and feature not in withheld)


def runs_on_gpu(environment: Environment, device: str) -> bool:
    """Whether a run with that `device` setting takes a GPU of the machine."""
    return bool(environment.gpus) and device != "cpu"


def hardware_label(environment: Environment, device: str = "auto") -> str:
    """One phrase for captions: the GPU where there is one and `device` is not cpu, else the CPU with its cores."""
    if runs_on_gpu(environment, device):
        return " + ".join(gpu.name for gpu in environment.gpus)
    return f"{environment.cpu}, {environment.cores} cores"


def versions_of(interpreter: Path, packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of packages in another interpreter's virtual environment; empty where it has none of its own.

    Read from its folders, so that nothing of it is run.
    """
    folders = interpreter.expanduser().absolute().parent.parent.glob("lib/python3.*/site-packages")
    wanted = {(DISTRIBUTION if name == "qbench" else name).replace("_", "-"): name for name in packages}
    found = {}
    for distribution in metadata.distributions(path=[str(folder) for folder in folders]):
        name = wanted.get(distribution.name.lower().replace("_", "-"))
        if name:
            found[name] = distribution.version
    return found


def python_of(interpreter: Path) -> str | None:
    """The version of another interpreter, as its virtual environment says; None where it has none of its own."""
    settings = interpreter.expanduser().absolute().parent.parent / "pyvenv.cfg"
    try:
        lines = settings.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    pairs = (line.partition("=") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() in ("version", "version_info")), None)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Those of distributions that are installed here, by name."""
    found = {}
    for package in packages:
        try:
            found[package] = __version__ if package == "qbench" else metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor under a key; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _cpu_brand() -> str:
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return platform.processor() or platform.machine()


def _nvidia() -> tuple[tuple[GPU, ...], str | None]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        gpus = tuple(
            GPU(
                name=pynvml.nvmlDeviceGetName(h),
                memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(h).total,
                capability=pynvml.nvmlDeviceGetCudaComputeCapability(h),
            )
            for h in handles
        )
        return gpus, pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()


def _git(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the code that runs, if it runs from a checkout of its own."""
    top = _output(["git", "-C", str(folder), "rev-parse", "--show-toplevel"])
    if top is None or Path(top).resolve() != folder.parent.resolve():
        return None, None
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changed = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return commit, None if changed is None else bool(changed)


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
