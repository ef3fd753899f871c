"""Runs on a real Ray cluster of three nodes, all of them on this machine: a head without CPUs, and two for cells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from qbench.config import RunConfig
from qbench.errors import QbenchError
from qbench.records.rows import CellRow, Row
from qbench.run.events import read_units
from qbench.run.executor import Executor
from qbench.run.ray.executor import connect
from tests.support.frames import read_frames
from tests.support.running import execute
from tests.support.runs import HereExecutor, interpreter
from tests.support.watchers import Watcher

# Before ray is imported: it would take any other address of this machine for 127.0.0.1.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytest.importorskip("ray")

MEASURES = {
    "memory": {"seq_len": 16},
    "throughput": {"batch_sizes": [1], "seq_len": 12, "new_tokens": 4, "trials": 1, "warmup": 0},
    "generations": {"new_tokens": 2, "prompts": ["w5 w6", "w7 w8"]},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Nodes of one CPU each, found dead soon after they are."""
    import ray
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
        "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 4},
    }
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    made.wait_for_nodes()
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def executor(cluster: Any) -> Iterator[Executor]:
    with connect(cluster.address) as connected:
        yield connected


def config(model: Path, backends: list[dict[str, object]], **changes: object) -> RunConfig:
    base = {"name": "r", "model": {"path": model}, "device": "cpu", "backends": backends, "measure": MEASURES}
    return RunConfig.model_validate(base | changes)


def run(settings: RunConfig, results: Path, executor: Executor) -> tuple[Path, bool, Watcher]:
    watcher = Watcher()
    folder, ok = execute(settings, results, watcher, command="qbench run x", executor=executor)
    return folder, ok, watcher


def comparable(row: Row) -> dict[str, object]:
    """A row without what depends on the moment and the place."""
    told = row.model_dump()
    place = ("host", "cached", "validity", "foreign_cpu", "steal", "cpu_mhz")
    measured = ("_s", "_bytes", "tokens_per_s")
    return {key: value for key, value in told.items() if key not in place and not key.endswith(measured)}


def rows(events: Path) -> list[Row]:
    return [row for unit in read_units(events).values() for row in unit.parsed()]


def rows_of(folder: Path, label: str) -> list[dict[str, object]]:
    return [comparable(row) for row in rows(folder / "cells" / label / "events.jsonl")]


def until(true: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def workers() -> list[psutil.Process]:
    """Every worker of a cell that a node has started, by the folder that the node made for it."""
    made = str(Path(tempfile.gettempdir()) / "qbench-cell-")
    return [p for p in psutil.process_iter(["cmdline"]) if any(a.startswith(made) for a in p.info["cmdline"] or [])]


def node_of(cluster: Any, pid: int) -> Any:
    """The cluster's node on which a process runs, by its ancestors."""
    ancestors = {process.pid for process in psutil.Process(pid).parents()}
    return next(
        node for node in cluster.worker_nodes if ancestors & {p.process.pid for p in node.all_processes["raylet"]}
    )


def test_a_cluster_gives_the_rows_and_files_of_one_machine(
    executor: Executor, tiny_llama: Path, words_file: str, tmp_path: Path
) -> None:
    """The 16-bit cell's log-probabilities go there and back, since int4 is compared with them."""
    measure = MEASURES | {"perplexity": {"text": words_file, "window": 32}}
    settings = config(tiny_llama, [{"kind": "int4"}, {"kind": "fp16"}], measure=measure)
    there, ok, watcher = run(settings, tmp_path / "ray", executor)
    assert ok, [row.error for row in watcher.finished]
    here, ok, _ = run(settings, tmp_path / "local", HereExecutor())
    assert ok
    for label in ("fp16", "int4"):
        assert rows_of(there, label) == rows_of(here, label)
    both = [{p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} for folder in (there, here)]
    assert both[0] == both[1]
    ours, theirs = (load_file(folder / "reference/logprobs.safetensors") for folder in (here, there))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [row.label for row in watcher.finished] == ["fp16", "int4"]
    assert set(read_frames(there).cells["host"]) == {os.uname().nodename}
    assert any(line.startswith("int4: throughput, batch 1, trial 1/1") for line in watcher.said)
    assert not workers()


def test_cells_run_side_by_side_and_one_at_a_time_on_a_node(
    executor: Executor, tiny_llama: Path, tmp_path: Path
) -> None:
    """Each of three stand-ins waits for another one to be there: two nodes let two of them meet, never three.

    They have the priority of the node's own processes, which are this process's children.
    """
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    script = (
        f"nice >> {tmp_path}/nice; touch {meeting}/$$; while [ $(ls {meeting} | wc -l) -lt 2 ]; do sleep 0.1; done; "
        f"ls {meeting} | wc -l >> {tmp_path}/seen; sleep 3; rm {meeting}/$$; touch {meeting}/gone; exit 3"
    )
    stand_in = interpreter(tmp_path, script)
    cells: list[dict[str, object]] = [{"kind": "fp16", "label": name, "python": stand_in} for name in "abc"]
    _, ok, watcher = run(config(tiny_llama, cells), tmp_path / "results", executor)
    assert not ok
    assert sorted(row.label for row in watcher.finished) == ["a", "b", "c"]
    assert {row.status for row in watcher.finished} == {"crashed"}
    assert {row.host for row in watcher.finished} == {os.uname().nodename}
    assert {int(line) for line in (tmp_path / "seen").read_text().split()} == {2}
    assert {int(line) for line in (tmp_path / "nice").read_text().split()} == {os.nice(0)}


def test_the_cell_of_a_node_that_dies_runs_again_on_another(
    cluster: Any, executor: Executor, tiny_llama: Path, tmp_path: Path
) -> None:
    """The first attempt measures everything and then hangs; nothing of it is left, and its worker is gone."""
    pid_file = tmp_path / "pid"
    first = (
        "import os, time; from pathlib import Path; from qbench.run import worker; worker.main(); "
        f"Path('{pid_file}').write_text(str(os.getpid())); time.sleep(600)"
    )
    script = f'[ -e {pid_file} ] && exec {sys.executable} "$@"; shift; shift; exec {sys.executable} -c "{first}" "$@"'
    settings = config(tiny_llama, [{"kind": "fp16", "python": interpreter(tmp_path, script)}])
    done: list[tuple[Path, bool, Watcher]] = []
    thread = threading.Thread(target=lambda: done.append(run(settings, tmp_path / "results", executor)))
    thread.start()
    events = tmp_path / "results" / "r" / "cells" / "fp16" / "events.jsonl"
    until(lambda: pid_file.exists() and pid_file.read_text().strip(), "the first attempt has measured")
    until(lambda: any(isinstance(row, CellRow) for row in rows(events)), "its rows have come")
    pid = int(pid_file.read_text())
    cluster.remove_node(node_of(cluster, pid), allow_graceful=False)
    try:
        thread.join(90)
        assert not thread.is_alive()
    finally:
        cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    folder, ok, watcher = done[0]
    assert ok, watcher.finished
    kinds = [type(row).__name__ for row in rows(events)]
    assert sorted(kinds) == ["CellRow", "GenerationRow", "GenerationRow", "ThroughputRow"]
    assert len(read_frames(folder).throughput) == 1
    until(lambda: not alive(pid), "the first attempt's worker is gone")


def test_an_interrupted_run_leaves_no_process_on_any_node(executor: Executor, tiny_llama: Path, tmp_path: Path) -> None:
    """Two cells run and a third one waits; all that the two have started ends, and none of the three has a row."""
    script = f"sleep 600 & echo $! > {tmp_path}/pid-$$; wait"
    cells: list[dict[str, object]] = [
        {"kind": "fp16", "label": name, "python": interpreter(tmp_path, script)} for name in "abc"
    ]

    def interrupt() -> None:
        until(lambda: len(pids()) == 2, "two cells run")
        os.kill(os.getpid(), signal.SIGINT)

    def pids() -> list[int]:
        return [int(text) for text in (path.read_text() for path in tmp_path.glob("pid-*")) if text.strip()]

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(config(tiny_llama, cells), tmp_path / "results", executor)
    thread.join()
    until(lambda: not any(alive(pid) for pid in pids()), "all are gone", seconds=20)
    assert list(read_frames(tmp_path / "results" / "r").cells["label"]) == []


def test_a_runner_that_is_killed_leaves_no_process_on_any_node(cluster: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """With real workers, whose standard input ends when the node's actor is gone."""
    script = (
        "import os, time; from pathlib import Path; from qbench.run import job; job.receive(); "
        f"Path('{tmp_path}/pid').write_text(str(os.getpid())); time.sleep(600)"
    )
    python = interpreter(tmp_path, f'exec {sys.executable} -c "{script}"')
    (tmp_path / "tiny.yaml").write_text(
        f"name: r\nmodel: {{path: {tiny_llama}}}\ndevice: cpu\nbackends: [{{kind: fp16, python: {python}}}]\n"
    )
    command = [sys.executable, "-m", "qbench", "run", "tiny.yaml", "--executor", "ray", "--address", cluster.address]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the worker runs")
    finally:
        process.kill()
        process.wait()
    until(lambda: not alive(int((tmp_path / "pid").read_text())), "the worker is gone")


def test_a_node_with_other_code_is_refused_before_anything_runs(
    executor: Executor, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_code", "0" * 64)
    with pytest.raises(QbenchError, match=r"has other code of qbench .* the runner has .* \(code 000000000000\)"):
        run(config(tiny_llama, [{"kind": "fp16"}]), tmp_path, executor)
    assert not (tmp_path / "r").exists()


def test_a_cell_that_no_node_can_hold_is_refused_before_anything_runs(
    executor: Executor, tiny_llama: Path, tmp_path: Path
) -> None:
    cells: list[dict[str, object]] = [{"kind": "fp16"}, {"kind": "int4", "resources": {"gpus": 1}}]
    with pytest.raises(QbenchError, match=r"backends\.int4: asks for GPU 1, and no node of the cluster has that"):
        run(config(tiny_llama, cells), tmp_path, executor)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_without_a_cluster_it_says_how_to_start_one(address: str) -> None:
    with pytest.raises(QbenchError, match=rf"--address {address}: no Ray cluster answers .* `ray start --head`"):
        connect(address).__enter__()


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(QbenchError, match=r"Ray is not installed; `pip install 'qbench-llm\[ray\]'`"):
        connect("auto").__enter__()
