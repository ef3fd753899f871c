"""What a server's processes hold while it works: resident memory, or their part of the GPUs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from itertools import zip_longest

import psutil

from qbench.machine.gpu import GPUMemory

SAMPLE_S = 0.02
"""Between two looks at the memory of processes."""

LOOKS = 25
"""After so many looks, the processes themselves are looked for again."""

Processes = Sequence[psutil.Process]
Meter = Callable[[Processes], Sequence[int]]
"""Bytes that processes hold at the moment, all together, on each device."""


def meter_of(processes: Processes, device: str | None) -> Meter | None:
    """What counts memory on a device; None where it is not known, or nothing of the processes is seen there.

    A driver shows no processes of another container, and a server on the CPU has none on a GPU.
    """
    if not processes:
        return None
    if device == "cpu":
        return resident
    gpus = GPUMemory.open() if device else None
    if gpus is None:
        return None
    meter = on(gpus)
    return meter if any(meter(processes)) else None


def resident(processes: Processes) -> list[int]:
    """Resident bytes. Pages that several processes share count for each."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return [total]


def on(gpus: GPUMemory) -> Meter:
    """Bytes of every GPU, as its driver counts them: contexts, and what a server keeps for later, are among them."""

    def meter(processes: Processes) -> tuple[int, ...]:
        return gpus.bytes({process.pid for process in processes})

    return meter


def peak(meter: Meter, processes: Callable[[], Processes], call: Callable[[], object]) -> list[int]:
    """The most bytes of each device that processes held while `call` ran; of devices that they are on."""
    most: list[int] = []
    over = threading.Event()

    def look(known: Processes) -> None:
        most[:] = map(max, zip_longest(most, meter(known), fillvalue=0))

    def watch() -> None:
        looks, known = 0, processes()
        while True:
            look(known)
            looks += 1
            if over.wait(SAMPLE_S):
                look(processes())
                return
            if looks % LOOKS == 0:
                known = processes()

    watcher = threading.Thread(target=watch, name="server-memory")
    watcher.start()
    try:
        call()
    finally:
        over.set()
        watcher.join()
    return [one for one in most if one] or [0]
