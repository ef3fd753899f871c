"""A cell on a node, without a cluster: what the actor is asked, in the order in which it is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qbench import __version__
from qbench.config import RunConfig
from qbench.errors import QbenchError
from qbench.machine import environment
from qbench.model import content
from qbench.run import fingerprint
from qbench.run.job import Job
from qbench.run.ray.actor import PREFIX, NodeCell, NodeFolder, Parcel, check_version, facts
from tests.support.runs import interpreter


@pytest.fixture
def cell() -> Iterator[NodeCell]:
    made = NodeCell()
    where = os.getcwd()
    yield made
    made.close()
    os.chdir(where)


def parcel(model: Path, folder: Path, script: str) -> Parcel:
    config = RunConfig.model_validate(
        {
            "name": "r",
            "model": {"path": model},
            "backends": [{"kind": "fp16", "python": interpreter(folder, script)}],
        }
    )
    job = Job(
        config=config,
        label="fp16",
        folder=Path("/the/runner's/model"),
        answers=Path("/the/runner's/answers"),
        reference=Path("/the/runner's/reference/logprobs.safetensors"),
        model_fingerprint=content.fingerprint(model),
        units={"cell": "k"},
        missing=("cell",),
    )
    return Parcel(
        job=job.model_dump_json(),
        version=__version__,
        code=fingerprint.source_hash(),
        machine=environment.detect(),
        cwd=str(folder),
        variables={"OMP_NUM_THREADS": "1"},
        files={"events.jsonl": b"before\n"},
        answers={},
    )


def finish(cell: NodeCell) -> tuple[bytes, bytes]:
    """All events and the whole log, read piece by piece."""
    events = log = b""
    for _ in range(600):
        news = cell.news(len(events), len(log))
        events, log = events + news.events, log + news.log
        if news.over:
            return events, log
        time.sleep(0.1)
    raise AssertionError("it does not end")


def test_a_cell_is_told_in_pieces_and_leaves_its_files(
    cell: NodeCell, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qbench.run.ray.actor.PIECE", 7)
    script = 'echo "an event" >> $3/events.jsonl; echo hello from $PWD; echo kept > $3/notes; mkdir $3/huge; exit 3'
    assert cell.start(parcel(tiny_llama, tmp_path, script), {}) is None
    events, log = finish(cell)
    assert events == b"before\nan event\n"
    assert log.decode() == f"hello from {tmp_path}\n"
    results = cell.results()
    assert results.ending is not None
    assert results.ending.status == "crashed"
    assert results.files == {"notes": b"kept\n"}
    assert (results.answers, results.reference) == ({}, {})
    assert cell._folder
    folder = cell._folder.path
    cell.close()
    assert not folder.exists()


def test_closing_ends_what_runs(cell: NodeCell, tiny_llama: Path, tmp_path: Path) -> None:
    assert cell.start(parcel(tiny_llama, tmp_path, "sleep 600"), {}) is None
    started = time.monotonic()
    cell.close()
    assert time.monotonic() - started < 60
    assert cell._thread is not None
    assert not cell._thread.is_alive()


def test_another_model_and_other_code_are_refused(cell: NodeCell, tiny_llama: Path, tmp_path: Path) -> None:
    good = parcel(tiny_llama, tmp_path, "exit 0")
    other = Job.model_validate_json(good.job).model_copy(update={"model_fingerprint": "f" * 64}).model_dump_json()
    assert "is not the model that the runner has" in str(cell.start(replace(good, job=other), {}))
    assert "has other code of qbench" in str(cell.start(replace(good, code="0" * 64), {}))
    with pytest.raises(QbenchError, match=rf"has qbench {__version__} .* the runner has 9\.9 "):
        check_version("9.9", good.code, facts())


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    script = (
        "from qbench.run.ray.actor import NodeFolder; made = NodeFolder(); "
        "(made.path / 'checkpoint').write_text('large'); print(made.path, flush=True); input()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        lives, ended = (Path(process.stdout.readline().strip()) for process in processes if process.stdout)
        processes[1].send_signal(signal.SIGKILL)
        processes[1].wait()
        assert (ended / "checkpoint").exists()
        own = NodeFolder()
        assert {path for path in tmp_path.glob(f"{PREFIX}*") if path.is_dir()} == {lives, own.path}
        assert (lives / "checkpoint").exists()
        own.remove()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    NodeFolder().remove()
    assert list(tmp_path.iterdir()) == []
