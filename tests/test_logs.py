import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qbench.records.redact import Redactor
from qbench.run import logs
from qbench.run.logs import BoundedLog, PipeReader
from tests.support.runs import config, interpreter
from tests.support.runs import run_in_workers as run

NOTHING = Redactor(set(), set())
SECRET = "the-secret-of-the-house"


def write(path: Path, data: bytes, *, piece: int = 7, redactor: Redactor = NOTHING) -> bytes:
    """What a log of 100 + 100 bytes keeps of `data`, which comes in pieces."""
    with BoundedLog(path, redactor, head_bytes=100, tail_bytes=100) as log:
        for at in range(0, len(data), piece):
            log.write(data[at : at + piece])
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 150, 200])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_what_fits_is_kept_to_the_byte(tmp_path: Path, size: int, end: bytes) -> None:
    data = (b"0123456\n" * 30)[:size] + end
    assert write(tmp_path / "log", data) == data


def test_of_what_does_not_fit_the_beginning_and_the_end_are_kept(tmp_path: Path) -> None:
    lines = [b"line %05d\n" % number for number in range(1000)]
    kept = write(tmp_path / "log", b"".join(lines)).splitlines(keepends=True)
    at = next(number for number, line in enumerate(kept) if line.startswith(b"[qbench left out "))
    assert kept[: at - 1] == lines[: at - 1]
    assert kept[at + 1 :] == lines[-len(kept) + at + 1 :]
    assert 9 <= at - 1 <= 11
    assert 8 <= len(kept) - at - 1 <= 11
    left_out = 11 * (1000 - (at - 1) - (len(kept) - at - 1))
    assert kept[at] == f"[qbench left out {left_out:,} bytes here]\n".encode()


@pytest.mark.parametrize("piece", [1, 5, 64, 1000])
def test_no_secret_is_cut_in_two_wherever_pieces_end(tmp_path: Path, piece: int) -> None:
    redactor = Redactor({SECRET}, set())
    data = f"x{SECRET}y\n".encode() * 200
    kept = write(tmp_path / "log", data, piece=piece, redactor=redactor)
    assert b"secret" not in kept
    assert kept.startswith(b"x***y\n")
    assert kept.endswith(b"x***y\n")
    assert b"left out" in kept


def test_a_link_in_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "mine")
    assert write(tmp_path / "log", b"new\n") == b"new\n"
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_beginning_is_there_while_the_worker_lives(tmp_path: Path) -> None:
    with BoundedLog(tmp_path / "log", NOTHING) as log:
        log.write(b"loading\nquantiz")
        assert (tmp_path / "log").read_bytes() == b"loading\n"


def test_a_disk_that_is_full_does_not_stop_who_is_read() -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    command = [sys.executable, "-c", "print('x' * 2**20)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        reader = PipeReader(process.stdout, full)
        assert process.wait(60) == 0
        reader.finish()


def test_somebody_else_who_holds_the_pipe_open_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LAST_WORDS_S", 0.2)
    ours, theirs = os.pipe()
    read: list[bytes] = []
    came = threading.Event()

    def keep(data: bytes) -> None:
        read.append(data)
        came.set()

    reader = PipeReader(os.fdopen(ours, "rb", buffering=0), keep)
    os.write(theirs, b"last words")
    assert came.wait(60)
    reader.finish()
    assert read == [b"last words"]
    with pytest.raises(BrokenPipeError):
        os.write(theirs, b"nobody reads this")
    os.close(theirs)


FLOOD = (
    "print('the first line'); line = 'flood ' * 170 + chr(10); block = line * 1000; "
    "[print(block, end='') for _ in range(200)]; print('the last line')"
)
"""Prints 200 MB."""


def test_a_worker_that_prints_without_end_fills_no_disk(tiny_llama: Path, tmp_path: Path) -> None:
    script = f'exec {sys.executable} -c "{FLOOD}"'
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, script)}])
    folder, _, watcher = run(settings, tmp_path / "results")
    assert watcher.finished[0].error == "the worker ended without a result; its last words: the last line"
    log = folder / "logs" / "fp16.log"
    bound = logs.HEAD_BYTES + logs.TAIL_BYTES
    assert 0.9 * bound < log.stat().st_size < 1.1 * bound
    content = log.read_bytes()
    assert content.startswith(b"the first line\n")
    assert content.endswith(b"the last line\n")
    assert content.count(b"[qbench left out 18") == 1


def test_a_process_that_left_the_worker_holds_up_no_run(tiny_llama: Path, tmp_path: Path) -> None:
    """In a session of its own it outlives the worker's group, and the pipe with it."""
    pid_file = tmp_path / "pid"
    script = f"setsid sleep 600 & echo $! > {pid_file}; echo gone; exit 3"
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, script)}])
    folder, _, watcher = run(settings, tmp_path / "results")
    os.kill(int(pid_file.read_text()), 9)
    assert watcher.finished[0].error == "the worker exited with status 3; its last words: gone"
    assert (folder / "logs" / "fp16.log").read_bytes() == b"gone\n"
