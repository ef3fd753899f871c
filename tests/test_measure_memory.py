import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qbench.engine.torch.memory import cuda_peak_bytes, peak_live_bytes

MIB = 2**20


def test_peak_is_the_most_that_was_live_at_once() -> None:
    def call() -> None:
        a = torch.empty(4 * MIB, dtype=torch.uint8)
        b = torch.empty(2 * MIB, dtype=torch.uint8)
        del a
        c = torch.empty(3 * MIB, dtype=torch.uint8)
        assert b.numel() + c.numel() == 5 * MIB

    assert peak_live_bytes(call) == 6 * MIB


def test_what_an_operation_allocates_inside_is_counted() -> None:
    """log_softmax of a bfloat16 tensor in float32: the copy and the result live side by side."""
    x = torch.randn(MIB, dtype=torch.bfloat16)
    assert peak_live_bytes(lambda: torch.log_softmax(x.float(), dim=0)) == 8 * MIB


def test_what_was_there_before_is_not_counted() -> None:
    kept = torch.empty(8 * MIB, dtype=torch.uint8)
    assert peak_live_bytes(lambda: kept.fill_(1)) == 0


RESIDENT = """
from qbench.machine.resident import ResidentPeak
watch = ResidentPeak()
block = bytearray(64 * 2**20)
block[::4096] = b"x" * len(block[::4096])
del block
print(watch.bytes())
watch.restart()
print(watch.bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is only known on Linux")
def test_resident_peak_sees_what_was_freed_again() -> None:
    """In a process of its own, as a worker is: one that has freed much may hand the same pages out once more."""
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, after = map(int, done.stdout.split())
    assert peak > 60 * MIB
    assert after < 32 * MIB


def test_the_peak_of_every_gpu_is_that_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for two GPUs that keeps the statistics as torch does."""
    gpus = [torch.device("cuda", 0), torch.device("cuda", 1)]
    live, peak, busy = {gpus[0]: 5, gpus[1]: 7}, {gpus[0]: 50, gpus[1]: 70}, set(gpus)

    def allocate(device: torch.device, size: int) -> None:
        assert device not in busy, "the statistics were not waited for"
        live[device] += size
        peak[device] = max(peak[device], live[device])

    monkeypatch.setattr(torch.cuda, "synchronize", busy.discard)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update({device: live[device]}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak.__getitem__)

    def call() -> None:
        allocate(gpus[0], 3)
        allocate(gpus[0], -3)
        allocate(gpus[1], 1)
        busy.update(gpus)

    assert cuda_peak_bytes(gpus, call) == [8, 8]
    assert not busy
