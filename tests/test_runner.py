"""Runs with workers that end in every way a process can end.

The worker of a cell is whatever `python:` names, so a script in its place crashes, hangs or starves for real.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qbench.backends import fp16
from qbench.decide.constraints import Limits
from qbench.decide.recommend import recommend
from qbench.errors import QbenchError
from qbench.int4 import native
from qbench.records.files import remove
from qbench.records.rows import CellRow
from qbench.records.run import read_run
from qbench.run import local
from qbench.run.cells import side_by_side
from tests.support.frames import read_frames
from tests.support.running import execute, workers
from tests.support.runs import HereExecutor, config, in_order, interpreter, run
from tests.support.watchers import Watcher

KERNEL = "cpu" if native.library() else "aten"


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two real cells."""
    folder, ok, _ = run(config(tiny_llama, [{"kind": "fp16"}, {"kind": "int4"}]), tmp_path_factory.mktemp("results"))
    assert ok
    return folder


def test_every_trial_is_a_row_and_every_cell_is_whole(finished: Path) -> None:
    data = read_frames(finished)
    assert list(data.cells["label"]) == ["fp16", "int4"]
    assert set(data.cells["status"]) == {"ok"}
    assert len(data.throughput) == 2 * 2 * 2
    assert (data.throughput["decode_tokens_per_s"] > 0).all()
    assert list(data.cells["quantized_layers"]) == [0, 14]
    assert data.record.finished is not None
    assert data.record.environment.versions["torch"]


def test_memory_of_the_cells_is_that_of_their_weights_and_more(finished: Path) -> None:
    fp16, int4 = (row for _, row in read_frames(finished).cells.iterrows())
    assert int4["weight_bytes"] < fp16["weight_bytes"] < fp16["peak_memory_bytes"]
    assert fp16["effective_bits_per_weight"] == 16
    assert int4["effective_bits_per_weight"] == 4 + (16 + 16) / 128
    assert fp16["peak_rss_bytes"] > 0


def test_rows_say_what_was_measured(finished: Path) -> None:
    row = read_frames(finished).throughput.iloc[0]
    assert (row["prompt_tokens"], row["new_tokens"], row["decode_mode"]) == (20, 4, "eager")
    cell = read_frames(finished).cells.iloc[1]
    assert (cell["kernel"], cell["dtype"], cell["device"], cell["threads"]) == (KERNEL, "bfloat16", "cpu", 1)


def test_the_summary_is_derived_from_the_rows(finished: Path) -> None:
    summary = pd.read_csv(finished / "summary.csv")
    trials = read_frames(finished).throughput.query("label == 'int4' and batch_size == 2")["decode_tokens_per_s"]
    assert summary.set_index("label").loc["int4", "decode_tokens_per_s_b2"] == pytest.approx(trials.median())


def test_the_same_command_again_measures_nothing(finished: Path, tiny_llama: Path) -> None:
    before = (finished / "throughput.csv").read_bytes()
    _, ok, watcher = run(config(tiny_llama, [{"kind": "fp16"}, {"kind": "int4"}]), finished.parent)
    assert ok
    assert watcher.finished == []
    assert "already measured" in watcher.said[0]
    assert (finished / "throughput.csv").read_bytes() == before


def test_another_configuration_does_not_mix_with_old_rows(finished: Path, tiny_llama: Path) -> None:
    changed = config(tiny_llama, [{"kind": "fp16"}, {"kind": "int4", "group_size": 64}])
    with pytest.raises(QbenchError, match=r"backends\.int4\.group_size: 128 there, 64 now") as caught:
        run(changed, finished.parent)
    assert "--fresh" in str(caught.value)


def test_fresh_starts_over(tiny_llama: Path, tmp_path: Path) -> None:
    run(config(tiny_llama, [{"kind": "int4"}]), tmp_path)
    folder, ok, watcher = run(config(tiny_llama, [{"kind": "fp16"}]), tmp_path, fresh=True)
    assert ok
    assert [row.label for row in watcher.finished] == ["fp16"]
    assert list(read_frames(folder).cells["label"]) == ["fp16"]


def test_only_measures_the_named_cell_and_the_rest_can_follow(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, [{"kind": "fp16"}, {"kind": "int4"}])
    folder, _, _ = run(settings, tmp_path, only=("int4",))
    assert list(read_frames(folder).cells["label"]) == ["int4"]
    _, _, watcher = run(settings, tmp_path)
    assert [row.label for row in watcher.finished] == ["fp16"]
    assert list(read_frames(folder).cells["label"]) == ["fp16", "int4"]


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("kill -KILL $$", "crashed", "killed by SIGKILL, often the system ending a process when memory runs out"),
        ("kill -SEGV $$", "crashed", "killed by SIGSEGV"),
        ("exit 3", "crashed", "exited with status 3"),
        ("exit 0", "crashed", "ended without a result"),
        ("sleep 600", "timeout", "longer than timeout_s (2 s)"),
    ],
)
def test_a_worker_that_dies_is_a_row_and_the_others_run(
    tiny_llama: Path, tmp_path: Path, script: str, status: str, words: str
) -> None:
    broken = {"kind": "fp16", "label": "broken", "python": interpreter(tmp_path, script)}
    limit = {"timeout_s": 2.0} if status == "timeout" else {}
    backends = [broken] if limit else [broken, {"kind": "int4"}]
    folder, ok, watcher = run(config(tiny_llama, backends, **limit), tmp_path / "results")
    assert not ok
    row = next(row for row in watcher.finished if row.label == "broken")
    assert row.status == status
    assert words in (row.error or "")
    assert list(read_frames(folder).cells["status"]) == [status, "ok"][: len(backends)]


def test_a_failed_cell_is_measured_again_by_the_same_command(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise RuntimeError("not today")

    settings = config(tiny_llama, [{"kind": "fp16"}])
    with monkeypatch.context() as today:
        today.setattr(fp16, "load", load)
        _, ok, watcher = run(settings, tmp_path / "results")
    assert not ok
    assert watcher.finished[0].error == "RuntimeError: not today"
    folder, ok, _ = run(settings, tmp_path / "results")
    assert ok
    assert list(read_frames(folder).cells["status"]) == ["ok"]


def test_a_timeout_ends_what_the_worker_started(tiny_llama: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid_file}; wait"
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, script)}], timeout_s=2.0)
    run(settings, tmp_path / "results")
    child = int(pid_file.read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a process of the worker is still alive"
        time.sleep(0.05)


def test_a_batch_that_does_not_fit_is_oom_and_so_are_larger_ones(tiny_llama: Path, tmp_path: Path) -> None:
    sizes = {"batch_sizes": [1, 10**11, 10**12], "seq_len": 8, "new_tokens": 2, "trials": 1}
    folder, ok, watcher = run(config(tiny_llama, [{"kind": "int4"}], measure={"throughput": sizes}), tmp_path)
    assert ok
    assert watcher.finished[0].status == "ok"
    trials = read_frames(folder).throughput
    assert list(trials["status"]) == ["ok", "oom", "oom"]
    assert list(trials["batch_size"]) == [1, 10**11, 10**12]
    assert pd.isna(trials["decode_tokens_per_s"].iloc[1])
    assert "did not fit" in trials["error"].iloc[2]
    pick = recommend([read_run(folder)], 1, "speed", Limits()).pick
    assert pick is not None
    assert pick.named.label == "int4"
    with pytest.raises(QbenchError, match=f"--batch {10**6}"):
        recommend([read_run(folder)], 10**6, "speed", Limits())
    excluded = recommend([read_run(folder)], 10**11, "speed", Limits()).excluded
    assert [why for _, why in excluded] == [f"oom at batch {10**11}"]


def test_a_model_that_does_not_fit_is_oom(tiny_llama: Path, tmp_path: Path) -> None:
    """A real limit on the worker's memory, below the 1 GiB that this shape takes."""
    big = tmp_path / "big"
    shape = LlamaConfig.from_pretrained(tiny_llama, vocab_size=2**21, tie_word_embeddings=True)
    shape.save_pretrained(big)
    write_zeros(big / "model.safetensors", shape)
    script = f'exec {sys.executable} -c "{STARVE}" "$@"'
    settings = config(big, [{"kind": "fp16", "python": interpreter(tmp_path, script)}], measure={})
    _, ok, watcher = run(settings, tmp_path / "results")
    assert not ok
    assert watcher.finished[0].status == "oom", watcher.finished[0].error


def write_zeros(file: Path, shape: LlamaConfig) -> None:
    """A checkpoint in bfloat16 whose tensors the file system makes up when they are read."""
    with torch.device("meta"):
        parameters = dict(LlamaForCausalLM(shape).named_parameters())
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, parameter in parameters.items():
        start, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + end)


STARVE = (
    "from qbench.compat import lean; lean.import_transformers(()); "
    "import resource, runpy, sys, torch, transformers, psutil; "
    "from transformers import AutoModelForCausalLM, PreTrainedModel; import qbench.run.cell, qbench.run.worker; "
    "now = psutil.Process().memory_info().vms; "
    "resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, now + 2**29)); "
    "sys.argv = sys.argv[2:]; qbench.run.worker.main()"
)
"""Takes the worker's arguments after `-m qbench.run.worker`, and leaves it half a GiB beyond what its libraries hold.
"""


@pytest.mark.parametrize("names", [("notes.txt",), ("run.json",)])
def test_a_folder_of_somebody_else_is_not_touched(tiny_llama: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("mine")
    with pytest.raises(QbenchError):
        run(config(tiny_llama, [{"kind": "fp16"}]), tmp_path)
    assert {path.name for path in folder.iterdir()} == set(names)


def test_results_that_cannot_be_written_are_said_before_anything_runs(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(QbenchError, match=r"results cannot be written here .* --results"):
        run(config(tiny_llama, [{"kind": "fp16"}]), tmp_path / "results")


def test_an_interrupt_ends_the_worker_and_keeps_the_rows(tiny_llama: Path, tmp_path: Path) -> None:
    """The second cell is interrupted; the first is in the tables, and the run goes on from there."""
    backends = [{"kind": "int4"}, {"kind": "fp16", "python": interpreter(tmp_path, "sleep 600")}]
    settings = config(tiny_llama, backends, seed=in_order(2))

    class Impatient(Watcher):
        def cell_finished(self, row: CellRow) -> None:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.alarm(2)

    with pytest.raises(KeyboardInterrupt):
        execute(settings, tmp_path / "results", Impatient(), command="qbench run x", executor=HereExecutor())
    assert not workers()
    data = read_frames(tmp_path / "results" / "r")
    assert list(data.cells["label"]) == ["int4"]
    assert len(data.throughput) == 4


def test_an_interrupt_while_the_worker_starts_ends_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the process is there, and before the runner has it in its hands."""

    def interrupted(*arguments: object) -> object:
        started = start(*arguments)
        signal.raise_signal(signal.SIGINT)
        return started

    start = local._start
    monkeypatch.setattr(local, "_start", interrupted)
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, "sleep 600")}])
    with pytest.raises(KeyboardInterrupt):
        execute(settings, tmp_path / "results", Watcher(), command="qbench run x", executor=HereExecutor())
    assert not workers()


@pytest.mark.parametrize("name", ["cells", "logs", "answers", "reference"])
def test_a_link_out_of_the_runs_folder_is_refused_and_never_deleted_through(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, "exit 3")}])
    folder, _, _ = run(settings, tmp_path / "results")
    mine = tmp_path / "mine"
    (mine / "fp16").mkdir(parents=True)
    (mine / "fp16" / "file").write_text("mine")
    remove(folder / name)
    (folder / name).symlink_to(mine)
    with pytest.raises(QbenchError, match=rf"{name}: is a link, .* --fresh"):
        run(settings, tmp_path / "results")
    run(settings, tmp_path / "results", fresh=True)
    assert not (folder / name).is_symlink()
    assert [path.name for path in mine.rglob("*")] == ["fp16", "file"]


def test_a_cell_that_is_a_link_is_measured_in_a_folder_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, "exit 3")}])
    folder, _, _ = run(settings, tmp_path / "results")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    remove(folder / "cells" / "fp16")
    (folder / "cells" / "fp16").symlink_to(tmp_path / "mine")
    run(settings, tmp_path / "results")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_an_interrupt_that_another_thread_receives_stops_what_is_under_way() -> None:
    """As with the threads of a library, which the system may choose; the main thread has nothing else to wake it."""
    begun, stopping, ended = (threading.Event() for _ in range(3))
    stopped: list[bool] = []

    def measure(label: str) -> CellRow:
        begun.set()
        stopped.append(stopping.wait(60))
        ended.set()
        raise AssertionError("nobody asks for the row")

    def interrupt() -> None:
        begun.wait()
        time.sleep(0.2)  # the main thread waits by now
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(["a"], None, measure, stopping.set)
    thread.join()
    assert ended.wait(60)
    assert stopped == [True]
