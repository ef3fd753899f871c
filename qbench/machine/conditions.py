"""What else went on while something was timed, and whether the time can be trusted.

The machine is looked at before and after a timed region, never in it, and by the process that is timed: nothing runs
beside the measurement. Shares are of the time of all cores between the two looks, from the counters of the system less
those of our own processes: this one, its descendants, and the runner that started it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

from qbench.machine.gpu import GPUState, open_gpu

FOREIGN_BOUND = 0.05
"""Share of all cores' time. On two to sixteen cores it is a tenth of a core up to most of one, as much as differences
between kernels; what an idle system does by itself stays below a hundredth."""

STEAL_BOUND = 0.02
"""Share of all cores' time that the hypervisor gave to others. It is lower because it can only come out of what we
asked for, where a foreign process may run on a core that we leave idle."""

CLOCK_DROP = 0.25
"""Part of the highest clock seen. Processors with one busy core run up to a fifth faster than with all of them, and
that is no fault; one that is too hot falls further."""

POWER_CAP = "sw_power_cap"
"""Recorded with the other reasons, but no fault alone: a board at its rated power is as fast as it can be bought."""

TICK_S = 0.01
"""The kernel's counters move in hundredths of a second. Over a short time, a tick of every core may be the error alone,
so that much is taken off before a share is held against its bound."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The machine at one moment. Seconds are CPU time since it or the process started, summed over cores."""

    total_s: float
    """Busy, idle, waiting and stolen."""
    busy_s: float
    """Spent in processes."""
    steal_s: float | None
    """Taken by the hypervisor; None where the system does not say."""
    own_s: float
    """Spent in our own processes."""
    cpu_mhz: float | None
    """Of the fastest core: idle ones say nothing of the clock under load."""
    own_pids: frozenset[int]
    gpu: GPUState | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """The columns that tell what a trial ran under; clocks, heat and power are those at its end."""

    validity: str
    """`ok`, or reasons joined by `+`: foreign_load, throttled."""
    foreign_cpu: float | None
    """Share of all cores' time that other processes used, 0…1."""
    steal: float | None
    """Share of all cores' time that the hypervisor took, 0…1."""
    cpu_mhz: float | None
    gpu_sm_mhz: int | None = None
    gpu_mem_mhz: int | None = None
    gpu_temperature_c: int | None = None
    gpu_power_w: float | None = None
    throttle_reasons: str | None = None
    """Before or after, of `qbench.machine.gpu.THROTTLE_BITS`, joined by `+`; `none` if the driver names none of them.
    """
    foreign_gpu_pids: int | None = None
    """How many other processes compute on the device."""


class Sampler:
    """Looks at the machine between trials."""

    def __init__(self, gpu_uuid: str | None = None) -> None:
        self._self = psutil.Process()
        self._runner = self._self.parent()
        self._gpu = open_gpu(gpu_uuid) if gpu_uuid else None
        self._top_mhz = 0.0

    def sample(self) -> Sample:
        """The machine now. Takes milliseconds: never call it in a timed region."""
        times = psutil.cpu_times()
        own_s, own_pids = self._own()
        mhz = _cpu_mhz()
        self._top_mhz = max(self._top_mhz, mhz or 0.0)
        # Linux counts guests in user and nice already; psutil's other fields partition the time.
        fields = {key: value for key, value in times._asdict().items() if not key.startswith("guest")}
        return Sample(
            total_s=sum(fields.values()),
            busy_s=sum(fields.get(key, 0.0) for key in ("user", "nice", "system")),
            steal_s=fields.get("steal"),
            own_s=own_s,
            cpu_mhz=mhz,
            own_pids=own_pids,
            gpu=self._gpu.read() if self._gpu else None,
        )

    def since(self, before: Sample) -> Conditions:
        """What went on from `before` to now; the clock is compared with the highest that any sample has seen."""
        return compare(before, self.sample(), self._top_mhz)

    def _own(self) -> tuple[float, frozenset[int]]:
        """CPU seconds and ids of this process, its descendants, living or reaped, and the runner."""
        reaped = os.times()
        seconds = time.process_time() + reaped.children_user + reaped.children_system
        pids = {self._self.pid}
        for process in self._self.children(recursive=True):
            try:
                times = process.cpu_times()
            except psutil.Error:  # ended meanwhile
                continue
            seconds += times.user + times.system + times.children_user + times.children_system
            pids.add(process.pid)
        if self._runner:
            try:
                times = self._runner.cpu_times()
                seconds += times.user + times.system
                pids.add(self._runner.pid)
            except psutil.Error:
                pass
        return seconds, frozenset(pids)


def compare(before: Sample, after: Sample, top_mhz: float) -> Conditions:
    """What two samples tell of the time between them.

    foreign_cpu = (busy − own) ÷ total and steal = stolen ÷ total, of the seconds between the samples.
    """
    total_s = after.total_s - before.total_s
    foreign_s = max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s))
    steal_s = None
    if before.steal_s is not None and after.steal_s is not None:
        steal_s = max(0.0, after.steal_s - before.steal_s)
    throttle, foreign_pids = _throttle(before.gpu, after.gpu), _foreign_pids(before, after)
    gpu = after.gpu or GPUState()
    reasons = []
    if _exceeds(foreign_s, FOREIGN_BOUND, total_s) or foreign_pids:
        reasons.append("foreign_load")
    slow = after.cpu_mhz is not None and after.cpu_mhz < (1 - CLOCK_DROP) * top_mhz
    if slow or _exceeds(steal_s or 0.0, STEAL_BOUND, total_s) or (throttle or set()) - {POWER_CAP}:
        reasons.append("throttled")
    return Conditions(
        validity="+".join(reasons) or "ok",
        foreign_cpu=min(1.0, foreign_s / total_s) if total_s > 0 else None,
        steal=min(1.0, steal_s / total_s) if total_s > 0 and steal_s is not None else None,
        cpu_mhz=after.cpu_mhz,
        gpu_sm_mhz=gpu.sm_mhz,
        gpu_mem_mhz=gpu.mem_mhz,
        gpu_temperature_c=gpu.temperature_c,
        gpu_power_w=gpu.power_w,
        throttle_reasons=None if throttle is None else "+".join(sorted(throttle)) or "none",
        foreign_gpu_pids=foreign_pids,
    )


def _exceeds(seconds: float, bound: float, total_s: float) -> bool:
    """Whether a share is above its bound beyond the counters' error."""
    return seconds - TICK_S * (psutil.cpu_count() or 1) > bound * total_s


def _throttle(before: GPUState | None, after: GPUState | None) -> frozenset[str] | None:
    told = [gpu.throttle for gpu in (before, after) if gpu and gpu.throttle is not None]
    return frozenset().union(*told) if told else None


def _foreign_pids(before: Sample, after: Sample) -> int | None:
    """The larger number of the two moments; None if neither tells."""
    told = [count for count in map(_others_on_gpu, (before, after)) if count is not None]
    return max(told, default=None)


def _others_on_gpu(sample: Sample) -> int | None:
    """How many processes on the device are not ours.

    We compute on it ourselves. A driver that lists nobody therefore lists nothing here, and one that lists none of our
    ids names processes as they are called outside of our container: one of them is ours.
    """
    pids = sample.gpu.pids if sample.gpu else None
    if not pids:
        return None
    return len(pids - sample.own_pids) if pids & sample.own_pids else len(pids) - 1


def _cpu_mhz() -> float | None:
    """The clock of the fastest core; None where the system does not say."""
    try:
        cores = psutil.cpu_freq(percpu=True)
    except (NotImplementedError, OSError, RuntimeError):
        return None
    return max((core.current for core in cores or () if core.current), default=None)
