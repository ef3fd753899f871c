"""What the driver of an NVIDIA device says of it at one moment: clocks, heat, power, and who computes on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

THROTTLE_BITS = {
    "hw_slowdown": "nvmlClocksThrottleReasonHwSlowdown",
    "hw_thermal": "nvmlClocksThrottleReasonHwThermalSlowdown",
    "power_brake": "nvmlClocksThrottleReasonHwPowerBrakeSlowdown",
    "sw_power_cap": "nvmlClocksThrottleReasonSwPowerCap",
    "sw_thermal": "nvmlClocksThrottleReasonSwThermalSlowdown",
}
"""Reasons for lower clocks that heat and power give, by NVML's names. Idle clocks, clocks set by hand and clocks shared
with other boards are no faults."""


@dataclass(frozen=True, slots=True)
class GPUState:
    """A device at one moment; what its driver does not tell is None."""

    sm_mhz: int | None = None
    mem_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttle: frozenset[str] | None = None
    """Names of `THROTTLE_BITS` that are set."""
    pids: frozenset[int] | None = None
    """Processes with a compute context on it."""


class GPUReader:
    """Reads one device again and again."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    def read(self) -> GPUState:
        """The device now."""
        nvml = self._nvml
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        # The second names are those of older drivers and of older versions of the Python package.
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        temperature = self._ask("nvmlDeviceGetTemperatureV", nvml.NVML_TEMPERATURE_GPU)
        if temperature is None:
            temperature = self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return GPUState(
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            mem_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            temperature_c=temperature,
            power_w=None if milliwatts is None else milliwatts / 1000,
            throttle=None if reasons is None else self._names(reasons),
            pids=None if processes is None else frozenset(process.pid for process in processes),
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What a function of NVML answers; None if this version or this device does not have it."""
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (AttributeError, self._nvml.NVMLError):
            return None

    def _names(self, reasons: int) -> frozenset[str]:
        return frozenset(name for name, bit in THROTTLE_BITS.items() if reasons & getattr(self._nvml, bit))


class GPUMemory:
    """The memory that processes hold on the GPUs of this machine."""

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml, self._handles = nvml, handles

    @classmethod
    def open(cls) -> GPUMemory | None:
        """Of all GPUs; None where NVML cannot be reached."""
        try:
            import pynvml

            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            return cls(pynvml, [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)])
        except ImportError:
            return None
        except pynvml.NVMLError:
            return None

    def bytes(self, pids: Collection[int]) -> tuple[int, ...]:
        """What processes hold on each GPU together; 0 where the driver does not tell."""
        return tuple(
            sum(one.usedGpuMemory or 0 for one in self._running(handle) if one.pid in pids) for handle in self._handles
        )

    def _running(self, handle: Any) -> Sequence[Any]:
        try:
            found: Sequence[Any] = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except self._nvml.NVMLError:
            return ()
        return found


def open_gpu(uuid: str) -> GPUReader | None:
    """A reader of the device with this UUID (`GPU-…`); None where NVML or the device cannot be reached."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return GPUReader(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
