"""A server that a command starts: nothing of it is left, however it or we end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from qbench.engine.server.memory import meter_of, peak, resident
from qbench.engine.server.process import ServerProcess, fill_in, free_port, listening_on
from qbench.errors import QbenchError, UnavailableError

STUBBORN = (
    "import os, signal, socket, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "listening = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "print('up', flush=True)\n"
    "time.sleep(600)\n"
)
"""Listens, passes over SIGTERM, and has started a process in a session of its own."""


def started(port: int, code: str = STUBBORN) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", code, str(port)], "backends.s.command")


def wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_whole_tree_ends_and_the_port_is_free() -> None:
    port = free_port()
    server = started(port, STUBBORN.replace("signal.SIG_IGN", "signal.SIG_DFL"))
    wait_for(lambda: len(server.processes()) == 2 and listens(port), "two processes")
    tree = server.processes()
    assert {one.pid for one in listening_on(port)} == {one.pid for one in tree}
    server.close()
    assert not [one for one in tree if one.is_running()]
    assert not listens(port)
    server.close()  # again: nothing happens


PARENT = (
    "import sys, time\n"
    "from qbench.engine.server.process import ServerProcess\n"
    "server = ServerProcess([sys.executable, '-c', sys.argv[1], sys.argv[2]], 'w')\n"
    "print('started', flush=True)\n"
    "time.sleep(600)\n"
)


def test_nothing_outlives_a_worker_that_is_killed() -> None:
    port = free_port()
    worker = psutil.Popen([sys.executable, "-c", PARENT, STUBBORN, str(port)], stdout=subprocess.PIPE)
    wait_for(lambda: len(worker.children(recursive=True)) == 3 and listens(port), "guard, server and its child")
    tree = worker.children(recursive=True)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    assert not listens(port)


def test_a_command_that_ends_at_once_is_an_error_with_its_last_lines() -> None:
    server = started(0, "import sys; print('no weights there'); sys.exit(3)")
    wait_for(lambda: server._guard.poll() is not None, "its end")
    with pytest.raises(QbenchError, match=r"ended by itself with status 3; its last lines: no weights there"):
        server.check()
    server.close()


def test_a_port_that_is_taken_is_in_the_last_lines() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = started(taken.getsockname()[1])
        wait_for(lambda: server._guard.poll() is not None, "its end")
        with pytest.raises(QbenchError, match="Address already in use"):
            server.check()
        server.close()


def test_a_program_that_is_not_here_makes_its_cell_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"backends.s.command: no program no-such-server is here; docs/servers"):
        ServerProcess(["no-such-server"], "backends.s.command")


def test_the_log_passes_through_without_secrets(capfd: pytest.CaptureFixture[str]) -> None:
    server = ServerProcess(
        [sys.executable, "-c", "print('key is hush-hush')"], "w", lambda line: line.replace("hush-hush", "***")
    )
    wait_for(lambda: server._guard.poll() is not None, "its end")
    server.close()
    assert "server: key is ***" in capfd.readouterr().err


def test_only_known_places_of_a_command_are_filled_in() -> None:
    command = ["serve", "--port={port}", '--config={"a": {b}}', "{model}"]
    assert fill_in(command, {"port": "1", "model": "/m"}) == ["serve", "--port=1", '--config={"a": {b}}', "/m"]


def test_peak_memory_is_that_of_the_processes() -> None:
    """100 MB that are written for a moment, in a process that holds some 10 MB otherwise."""
    code = "import sys, time; print(end='', flush=True); sys.stdin.read(1); b = bytearray(10**8); sys.stdout.write('x'); sys.stdout.flush(); time.sleep(600)"  # noqa: E501
    child = psutil.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        before = child.memory_info().rss

        def call() -> None:
            child.stdin.write(b".")
            child.stdin.flush()
            child.stdout.read(1)

        (most,) = peak(resident, lambda: [child], call)
        assert 10**8 <= most - before < 1.5 * 10**8
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


class Driver(ModuleType):
    """Two GPUs, of whose processes the driver tells one thing after the other."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *told: tuple[list[Any], list[Any]]) -> None:
        super().__init__("pynvml")
        self.told = list(told)
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = lambda index: index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        now = self.told[0]
        if handle and len(self.told) > 1:
            self.told.pop(0)
        return now[handle]


def context(pid: int, used: int | None) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_memory_of_gpus_is_what_the_driver_counts_for_the_servers_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process()
    other = context(own.pid + 1, 10**12)
    told = [([context(own.pid, used), other], [other]) for used in (3 << 30, 5 << 30, 4 << 30)]
    monkeypatch.setitem(sys.modules, "pynvml", Driver(*told))
    meter = meter_of([own], "cuda")
    assert meter
    assert peak(meter, lambda: [own], lambda: time.sleep(0.2)) == [5 << 30]


@pytest.mark.parametrize("used", [None, 0])
def test_memory_that_the_driver_does_not_tell_is_not_counted(monkeypatch: pytest.MonkeyPatch, used: int | None) -> None:
    own = psutil.Process()
    monkeypatch.setitem(sys.modules, "pynvml", Driver(([context(own.pid, used)], [])))
    assert meter_of([own], "cuda") is None
    assert meter_of([], "cpu") is None
    assert meter_of([own], None) is None
