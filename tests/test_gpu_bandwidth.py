"""How fast a GPU copies: the arithmetic, and the measurement on a stand-in for a GPU.

`benchmarks/gpu_check.py` measures a real one.
"""

from __future__ import annotations

from itertools import count

import pytest
import torch

from qbench.engine.torch import bandwidth
from qbench.machine.bandwidth import Bandwidth
from qbench.run import cell

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "copied"),
    [(80 * GIB, GIB), (4 * GIB, GIB), (2 * GIB, GIB // 2), (GIB, GIB // 4), (GIB - 4, None), (0, None)],
)
def test_buffer_and_copy_take_half_of_the_free_memory_at_most(free: int, copied: int | None) -> None:
    assert bandwidth.copied_bytes(free) == copied


def test_a_copy_reads_and_writes_every_byte_and_the_median_counts() -> None:
    # 1 GB read and 1 GB written in 1 ms; the slow copy does not matter.
    assert bandwidth.rate(10**9, [1e-3, 1e-3, 5e-3, 0.9e-3, 1e-3]) == pytest.approx(2e12)


class StandIn:
    """What `torch.cuda` offers, on a card on which a copy takes 2 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.calls: list[str] = []
        ticks = count()

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                self.at = 2.0 * next(ticks)

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        monkeypatch.setattr(bandwidth, "WARM_UP_S", 0)
        monkeypatch.setattr(bandwidth, "BUFFER_BYTES", (1 << 10, 1 << 20))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: self.calls.append(name))


def test_copies_are_timed_on_the_device_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    card = StandIn(monkeypatch, free=1 << 30)
    assert bandwidth.copy_bytes_per_s(torch.device("cpu")) == pytest.approx(2 * 2**20 / 2e-3)
    assert card.calls == ["synchronize", "empty_cache", "reset_peak_memory_stats"]


def test_a_full_card_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    card = StandIn(monkeypatch, free=1 << 10)
    assert bandwidth.copy_bytes_per_s(torch.device("cpu")) is None
    assert card.calls == []

    def refuse(device: torch.device, size: int) -> list[float]:
        raise torch.OutOfMemoryError

    card = StandIn(monkeypatch, free=1 << 30)
    monkeypatch.setattr(bandwidth, "_copy_s", refuse)
    assert bandwidth.copy_bytes_per_s(torch.device("cpu")) is None
    assert card.calls == ["empty_cache", "reset_peak_memory_stats"]


def test_a_worker_asks_the_device_that_its_cell_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "copy_bytes_per_s", lambda device: 3e12 + device.index)
    monkeypatch.setattr(cell.bandwidth, "of_host", lambda: Bandwidth(2e10, "measured here"))
    assert cell.read_bytes_per_s(torch.device("cuda", 1)) == 3e12 + 1
    assert cell.read_bytes_per_s(torch.device("cpu")) == 2e10
