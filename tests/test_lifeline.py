import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from qbench.run import job
from tests.support.runs import YAML, interpreter

ECHO = (
    "import sys; from qbench.run import job; line = job.receive(); "
    "print(len(line), line[:3], repr(sys.stdin.read()), flush=True)"
)


def start(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )


def test_a_line_of_any_length_arrives_and_leaves_standard_input_empty() -> None:
    with start(ECHO) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        job.send("job" + "ü" * 2**20, worker.stdin)
        assert worker.wait(60) == 0
        assert worker.stdout.read() == b"%d b'job' ''\n" % (3 + 2 * 2**20 + 1)


def test_a_worker_that_never_reads_does_not_hold_up_its_runner() -> None:
    with start("import time; time.sleep(600)") as worker:
        assert worker.stdin is not None
        try:
            job.send("x" * 2**22, worker.stdin)
            assert worker.poll() is None
        finally:
            worker.kill()


def test_a_worker_without_a_job_says_so() -> None:
    with start(ECHO) as worker:
        _, error = worker.communicate(timeout=60)
        assert worker.returncode == 1
        assert b"no job on standard input; `qbench run` starts workers" in error


HANG = (
    "import subprocess, sys, time, qbench.run.cell as cell, qbench.run.worker as worker; "
    "cell.Cell.run = lambda self: (subprocess.Popen(['sleep', '600']), time.sleep(600)); "
    "sys.argv = sys.argv[2:]; worker.main()"
)
"""A worker that has started something and takes its time."""


def test_no_orphan_outlives_a_runner_that_is_killed(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(YAML.format(model=tiny_llama))
    python = interpreter(tmp_path, f'exec {sys.executable} -c "{HANG}" "$@"')
    command = ["run", "tiny.yaml", "--only", "fp16", "--set", f"backends.fp16.python={python}"]
    runner = psutil.Popen(
        [sys.executable, "-m", "qbench", *command], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while len(started := runner.children(recursive=True)) < 2:
        assert runner.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(runner.pid, 9)
    runner.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
