"""The machine's state: real processes, a hand-written /proc/stat, and NVML in the shape of the real module."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from qbench.machine.conditions import FOREIGN_BOUND, Conditions, Sample, Sampler, compare
from qbench.machine.gpu import GPUState, open_gpu
from qbench.records.rows import SustainedRow, ThroughputRow

IDLE = Sample(total_s=0, busy_s=0, steal_s=0, own_s=0, cpu_mhz=None, own_pids=frozenset({10, 11}))
UUID = "GPU-8f2c"


def later(**fields: Any) -> Sample:
    """The machine a thousand CPU seconds after `IDLE`, idle but for `fields`."""
    return dataclasses.replace(IDLE, **{"total_s": 1000, **fields})


@pytest.fixture
def strangers() -> Iterator[None]:
    """Busy processes that are not ours: their parent is gone. More than a tenth of the cores."""
    busy = f"{sys.executable} -c 'while True: pass' >/dev/null 2>&1 & echo $!"
    pids = [
        int(subprocess.run(["/bin/sh", "-c", busy], stdout=subprocess.PIPE, check=True).stdout)
        for _ in range(1 + (os.cpu_count() or 1) // 8)
    ]
    yield
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("nothing happened for a minute")


@pytest.mark.usefixtures("strangers")
def test_a_busy_process_of_someone_else_is_foreign_load() -> None:
    sampler = Sampler()
    before = sampler.sample()
    # An interpreter starts before it is busy: look until it has been.
    wait_for(lambda: "foreign_load" in sampler.since(before).validity)
    found = sampler.since(before)
    assert found.foreign_cpu is not None
    assert FOREIGN_BOUND < found.foreign_cpu <= 1


def test_what_our_children_use_is_ours_while_they_live_and_afterwards() -> None:
    code = (
        "import sys, time\n"
        "while time.process_time() < 0.5: pass\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
    )  # fmt: skip
    sampler = Sampler()
    before = sampler.sample()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"done\n"
    living = sampler.sample()
    assert child.pid in living.own_pids
    # The kernel rounds to hundredths.
    assert living.own_s - before.own_s >= 0.45
    child.communicate()
    reaped = sampler.sample()
    assert child.pid not in reaped.own_pids
    assert reaped.own_s - before.own_s >= 0.45


def test_what_our_own_threads_use_is_ours() -> None:
    sampler = Sampler()
    before, started = sampler.sample(), time.process_time()
    while time.process_time() - started < 0.2:
        pass
    assert sampler.sample().own_s - before.own_s >= 0.2


def test_the_process_that_started_the_worker_is_ours() -> None:
    code = "from qbench.machine.conditions import Sampler; print(*Sampler().sample().own_pids)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert str(os.getpid()) in found
    assert len(found) == 2


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes the first line of a /proc/stat; all else is that of the real one."""
    _, *others = Path("/proc/stat").read_text().splitlines(keepends=True)
    for name in (str(os.getpid()), str(os.getppid()), "cpuinfo"):
        (tmp_path / name).symlink_to(f"/proc/{name}")

    def write(line: str) -> None:
        (tmp_path / "stat").write_text("".join([f"cpu  {line}\n", *others]))

    write("0 0 0 0 0 0 0 0 0 0")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    return write


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    # Ticks: user nice system idle iowait irq softirq steal guest guest_nice; a million of them are 10,000 s.
    ("line", "foreign", "steal", "validity"),
    [
        ("20000 0 10000 960000 0 0 0 10000 0 0", 0.03, 0.01, "ok"),
        ("20000 0 10000 930000 0 0 0 40000 0 0", 0.03, 0.04, "throttled"),
        ("200000 50000 50000 600000 60000 20000 20000 0 0 0", 0.3, 0, "foreign_load"),
        ("200000 50000 50000 600000 0 0 0 100000 0 0", 0.3, 0.1, "foreign_load+throttled"),
        # Guests are in user already, waiting and interrupts are no process.
        ("40000 0 0 500000 400000 30000 20000 10000 40000 0", 0.04, 0.01, "ok"),
    ],
)
def test_shares_are_read_from_the_counters_of_the_system(
    proc: Callable[[str], None], line: str, foreign: float, steal: float, validity: str
) -> None:
    sampler = Sampler()
    before = sampler.sample()
    proc(line)
    found = sampler.since(before)
    # This process has used some of it.
    assert found.foreign_cpu == pytest.approx(foreign, abs=1e-3)
    assert found.steal == pytest.approx(steal)
    assert found.validity == validity


def test_what_is_ours_is_taken_off() -> None:
    assert compare(IDLE, later(busy_s=900, own_s=880), 0).foreign_cpu == pytest.approx(0.02)
    assert compare(IDLE, later(busy_s=900, own_s=910), 0).foreign_cpu == 0, "counters do not agree to the tick"


def test_a_tick_of_every_core_in_a_short_time_is_no_foreign_load() -> None:
    cores = os.cpu_count() or 1
    short = later(total_s=0.1 * cores, busy_s=0.01 * cores)
    found = compare(IDLE, short, 0)
    assert found.foreign_cpu == pytest.approx(0.1)
    assert found.validity == "ok"
    assert compare(IDLE, dataclasses.replace(short, busy_s=0.02 * cores), 0).validity == "foreign_load"


def test_no_time_has_no_shares() -> None:
    found = compare(IDLE, IDLE, 0)
    assert (found.foreign_cpu, found.steal, found.validity) == (None, None, "ok")


def test_a_system_that_does_not_say_what_was_stolen() -> None:
    found = compare(dataclasses.replace(IDLE, steal_s=None), later(steal_s=None), 0)
    assert (found.steal, found.validity) == (None, "ok")


@pytest.mark.parametrize(("mhz", "validity"), [(4000, "ok"), (3001, "ok"), (2999, "throttled"), (None, "ok")])
def test_a_clock_a_quarter_below_the_highest_is_throttled(mhz: float | None, validity: str) -> None:
    found = compare(IDLE, later(cpu_mhz=mhz), 4000)
    assert (found.validity, found.cpu_mhz) == (validity, mhz)


def test_the_highest_clock_is_that_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([[3000, 4000], [3500, 3900], [2500, 2900]])
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [SimpleNamespace(current=mhz) for mhz in next(clocks)])
    sampler = Sampler()
    sampler.sample()
    found = sampler.since(sampler.sample())
    assert found.cpu_mhz == 2900
    assert "throttled" in found.validity


def test_a_system_without_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(percpu: bool) -> None:
        raise NotImplementedError("can't find current frequency file")

    monkeypatch.setattr(psutil, "cpu_freq", nowhere)
    assert Sampler().sample().cpu_mhz is None


class NVML(ModuleType):
    """A driver with one device. What it is given beyond functions and constants of the real module is an error."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("pynvml")
        names = [name for name in dir(pynvml) if name.startswith(("nvmlClocksThrottleReason", "NVML_", "NVMLError"))]
        self.__dict__.update({name: getattr(pynvml, name) for name in names})
        self.nvmlInit = lambda: None
        assert answers.keys() <= set(dir(pynvml))
        for name, answer in answers.items():
            setattr(self, name, self._function(answer))

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != UUID:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "device"

    @staticmethod
    def _function(answer: Any) -> Callable[..., Any]:
        def function(handle: str, *arguments: int) -> Any:
            assert handle == "device"
            if isinstance(answer, pynvml.NVMLError):
                raise answer
            return answer[arguments] if isinstance(answer, dict) else answer

        return function


THERMAL = pynvml.nvmlClocksThrottleReasonHwThermalSlowdown | pynvml.nvmlClocksThrottleReasonHwSlowdown
POWER = pynvml.nvmlClocksThrottleReasonSwPowerCap
HARMLESS = (
    pynvml.nvmlClocksThrottleReasonGpuIdle
    | pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting
    | pynvml.nvmlClocksThrottleReasonSyncBoost
)


def driver(pids: list[int], reasons: int = 0, **answers: Any) -> NVML:
    return NVML(
        **{
            "nvmlDeviceGetClockInfo": {(pynvml.NVML_CLOCK_SM,): 1410, (pynvml.NVML_CLOCK_MEM,): 1593},
            "nvmlDeviceGetTemperature": {(pynvml.NVML_TEMPERATURE_GPU,): 61},
            "nvmlDeviceGetPowerUsage": 287_500,
            "nvmlDeviceGetCurrentClocksThrottleReasons": reasons,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=pid, usedGpuMemory=1) for pid in pids],
        }
        | answers
    )


def conditions(monkeypatch: pytest.MonkeyPatch, nvml: NVML) -> Conditions:
    """What the driver alone says: the processors stand still."""
    times = psutil.cpu_times()
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    sampler = Sampler(UUID)
    return sampler.since(sampler.sample())


def test_a_gpu_of_our_own_is_ok_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = conditions(monkeypatch, driver([os.getpid()], HARMLESS))
    assert found.validity == "ok"
    assert (found.gpu_sm_mhz, found.gpu_mem_mhz, found.gpu_temperature_c, found.gpu_power_w) == (1410, 1593, 61, 287.5)
    assert (found.throttle_reasons, found.foreign_gpu_pids) == ("none", 0)


@pytest.mark.parametrize(
    ("reasons", "names", "validity"),
    [
        (THERMAL, "hw_slowdown+hw_thermal", "throttled"),
        (pynvml.nvmlClocksThrottleReasonSwThermalSlowdown, "sw_thermal", "throttled"),
        (pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown | POWER, "power_brake+sw_power_cap", "throttled"),
        (POWER | HARMLESS, "sw_power_cap", "ok"),
    ],
)
@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetCurrentClocksEventReasons"]
)
def test_heat_and_power_brakes_are_throttling_and_rated_power_is_named_apart(
    monkeypatch: pytest.MonkeyPatch, function: str, reasons: int, names: str, validity: str
) -> None:
    found = conditions(monkeypatch, driver([os.getpid()], **{function: reasons}))
    assert (found.throttle_reasons, found.validity) == (names, validity)


def test_throttling_that_ended_before_the_trial_did_is_seen() -> None:
    cool = GPUState(sm_mhz=1980, throttle=frozenset())
    hot = dataclasses.replace(cool, throttle=frozenset({"hw_thermal"}))
    found = compare(dataclasses.replace(IDLE, gpu=hot), later(gpu=cool), 0)
    assert (found.validity, found.throttle_reasons, found.gpu_sm_mhz) == ("throttled", "hw_thermal", 1980)


@pytest.mark.parametrize(
    ("pids", "foreign", "validity"),
    [
        ([10, 99], 1, "foreign_load"),
        ([10, 11], 0, "ok"),
        # In a container the driver may call processes as the host does: one of these is ours.
        ([4711], 0, "ok"),
        ([4711, 4712], 1, "foreign_load"),
        # We have a context on the device, so an empty list tells nothing.
        ([], None, "ok"),
    ],
)
def test_other_processes_on_the_gpu_are_foreign_load(pids: list[int], foreign: int | None, validity: str) -> None:
    gpu = GPUState(pids=frozenset(pids))
    found = compare(IDLE, later(gpu=gpu), 0)
    assert (found.foreign_gpu_pids, found.validity) == (foreign, validity)


def test_what_a_driver_does_not_tell_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    not_supported = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    nvml = driver(
        [],
        nvmlDeviceGetPowerUsage=not_supported,
        nvmlDeviceGetComputeRunningProcesses=not_supported,
        nvmlDeviceGetCurrentClocksThrottleReasons=not_supported,
    )
    found = conditions(monkeypatch, nvml)
    assert (found.gpu_power_w, found.throttle_reasons, found.foreign_gpu_pids) == (None, None, None)
    assert (found.gpu_sm_mhz, found.validity) == (1410, "ok")


def test_a_machine_without_a_driver_or_with_another_device_has_no_gpu_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_gpu("GPU-no-such-device") is None
    monkeypatch.setitem(sys.modules, "pynvml", driver([]))
    assert open_gpu("GPU-no-such-device") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    sampler = Sampler(UUID)
    found = sampler.since(sampler.sample())
    assert (found.gpu_sm_mhz, found.throttle_reasons, found.foreign_gpu_pids) == (None, None, None)


def test_every_condition_is_a_column_of_the_rows_that_have_them() -> None:
    names = [field.name for field in dataclasses.fields(Conditions)]
    for row_type in (ThroughputRow, SustainedRow):
        columns = list(row_type.model_fields)
        start = columns.index("validity")
        assert columns[start : start + len(names)] == names


def test_import_leaves_torch_and_nvml_alone() -> None:
    code = "import sys, qbench.machine.conditions; sys.exit(bool({'torch', 'pynvml', 'scipy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
