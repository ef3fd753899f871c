"""configs/servers.yaml as a user runs it, with fewer questions, trials and requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qbench.records.requests import read as read_sent
from qbench.records.run import read_run
from qbench.show.card import read_generations

ROOT = Path(__file__).parents[1]
FEWER = {
    "measure.mmlu.limit": 2,
    "measure.throughput.trials": 1,
    "measure.throughput.max_retries_invalid": 0,
    "measure.load.requests_per_level": 8,
}
SERVERS = {"llama-server-Q8_0", "qbench-serve-int4"}


@pytest.mark.long
def test_the_shipped_configuration_measures_servers_beside_their_engines(tmp_path: Path) -> None:
    changes = [f"--set={key}={value}" for key, value in FEWER.items()]
    command = [sys.executable, "-m", "qbench", "run", "configs/servers.yaml", f"--results={tmp_path}", *changes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = read_run(tmp_path / "servers")
    cells = {cell.label: cell for cell in run.cells}
    assert {cell.status for cell in run.cells} == {"ok"}
    assert {label for label, cell in cells.items() if cell.backend == "server"} == SERVERS
    assert all(cell.failed is None for cell in run.cells)
    speeds = {(trial.label, trial.batch_size) for trial in run.throughput if trial.decode_tokens_per_s}
    assert speeds == {(label, size) for label in cells for size in (1, 8)}

    levels = {(row.label, row.level) for row in run.load if row.status == "ok" and row.answered == row.requests == 8}
    assert levels == {(label, level) for label in SERVERS for level in ("c1", "c8", "r2")}
    counted = [sent for sent in read_sent(run.folder) if sent.phase == "counted"]
    assert len(counted) == 6 * 8
    assert {sent.output_tokens for sent in counted} == {32}

    assert run.answers["qbench-serve-int4"] == run.answers["int4"], "the same weights by the same kernels"
    assert len(run.answers["llama-server-Q8_0"]) == 24
    texts = {row.label: row.text for row in read_generations(run.folder)}
    assert texts.keys() == cells.keys()
    assert texts["qbench-serve-int4"] == texts["int4"]
