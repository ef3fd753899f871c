"""What a rerun keeps, what it measures, and what it refuses."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qbench.config import RunConfig
from qbench.errors import QbenchError
from qbench.plan import cells
from qbench.run.events import EventLog, UnitEvent, read_units
from qbench.run.fingerprint import CELL
from qbench.run.folder import locked
from tests.support.frames import read_frames
from tests.support.runs import QUICK, config, in_order, interpreter, run

INT4 = [{"kind": "int4"}]


def events(folder: Path, label: str = "int4") -> Path:
    return folder / "cells" / label / "events.jsonl"


def forget(folder: Path, *names: str, label: str = "int4", kernel: str | None = None) -> None:
    """As if the worker had been ended before it came to these units, or before its row; or had had another kernel."""
    units = read_units(events(folder, label))
    events(folder, label).unlink()
    log = EventLog(events(folder, label))
    for unit in units.values():
        if unit.name not in (CELL, *names):
            log.kernel = kernel or unit.kernel
            log.unit(unit.name, unit.key, unit.parsed())


def measured_anew(folder: Path, before: dict[str, UnitEvent], label: str = "int4") -> set[str]:
    after = read_units(events(folder, label))
    return {name for name in after if name != CELL and after[name] != before.get(name)}


def test_only_the_missing_trial_is_measured(tiny_llama: Path, tmp_path: Path) -> None:
    folder = run(config(tiny_llama, INT4), tmp_path)[0]
    before = read_units(events(folder))
    forget(folder, "throughput/b2/t0")
    _, ok, watcher = run(config(tiny_llama, INT4), tmp_path)
    assert ok
    assert "goes on; kept are 3 of its parts" in watcher.said[0]
    assert measured_anew(folder, before) == {"throughput/b2/t0"}
    assert [tuple(row) for row in read_frames(folder).throughput[["batch_size", "trial"]].to_numpy()] == [
        (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    assert read_frames(folder).cells["decode_mode"].tolist() == ["eager"]


def test_what_another_kernel_measured_is_measured_again(tiny_llama: Path, tmp_path: Path) -> None:
    folder = run(config(tiny_llama, INT4), tmp_path)[0]
    ours = {unit.kernel for unit in read_units(events(folder)).values()}
    assert ours == {read_frames(folder).cells["kernel"].item()}
    forget(folder, kernel="another")
    assert run(config(tiny_llama, INT4), tmp_path)[1]
    assert {unit.kernel for unit in read_units(events(folder)).values()} == ours
    assert len(read_frames(folder).throughput) == 4


def test_more_trials_batches_and_cells_are_added_to_what_is_there(tiny_llama: Path, tmp_path: Path) -> None:
    folder = run(config(tiny_llama, INT4), tmp_path)[0]
    before = read_units(events(folder))
    started = read_frames(folder).record.started
    more = {"throughput": QUICK["throughput"] | {"batch_sizes": [1, 2, 3], "trials": 3}}
    assert run(config(tiny_llama, [*INT4, {"kind": "fp16"}], measure=more), tmp_path)[1]
    assert measured_anew(folder, before) == {
        "throughput/b1/t2", "throughput/b2/t2", "throughput/b3/t0", "throughput/b3/t1", "throughput/b3/t2",
    }  # fmt: skip
    data = read_frames(folder)
    assert data.throughput.groupby("label").size().to_dict() == {"fp16": 9, "int4": 9}
    assert data.record.started == started


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measure": {"throughput": QUICK["throughput"] | {"trials": 1}}}, "int4: throughput/b1/t1 was measured there"),
        ({"measure": {"throughput": QUICK["throughput"] | {"warmup": 2}}}, r"measure\.throughput\.warmup: 1 there, 2"),
        ({"dtype": "float32"}, "dtype: 'auto' there, 'float32' now"),
        ({"measure": {}}, r"measure\.throughput\.decode: 'auto' there, not here now"),
    ],
)
def test_what_was_measured_otherwise_is_not_mixed(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, once: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(QbenchError, match=words) as caught:
        run(config(tiny_llama, INT4, **change), once)
    assert "--fresh" in str(caught.value)


@pytest.fixture(scope="module")
def once(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("once")
    assert run(config(tiny_llama, INT4), results)[1]
    return results


def test_other_libraries_and_another_model_are_named(tiny_llama: Path, once: Path, tmp_path: Path) -> None:
    path = once / "r" / "run.json"
    record = json.loads(path.read_text())
    try:
        changed = record["facts"] | {"versions.torch": "1.0", "model.fingerprint": "other"}
        path.write_text(json.dumps(record | {"facts": changed}))
        with pytest.raises(QbenchError, match=r"versions\.torch: '1\.0' there, '2.*' now") as caught:
            run(config(tiny_llama, INT4), once)
        assert "model.fingerprint: 'other' there" in str(caught.value)
    finally:
        path.write_text(json.dumps(record))


def test_lost_answers_are_measured_again(tmp_path: Path) -> None:
    measure = {"memory": {"seq_len": 8}, "mmlu": {"data": "demo", "limit": 1}, "perplexity": {"window": 64, "limit": 1}}
    demo = {
        "name": "r",
        "model": {"demo": True},
        "dtype": "float32",
        "backends": [{"kind": "fp16"}],
        "measure": measure,
    }
    settings = RunConfig.model_validate(demo)
    folder = run(settings, tmp_path)[0]
    answers = pd.read_parquet(folder / "answers" / "fp16.parquet")
    (folder / "answers" / "fp16.parquet").unlink()
    (folder / "reference" / "logprobs.safetensors").unlink()
    assert run(settings, tmp_path)[1]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "answers" / "fp16.parquet"), answers)
    assert (folder / "reference" / "logprobs.safetensors").is_file()


def test_cells_run_in_a_random_order_that_the_seed_decides_and_the_record_tells(
    tiny_llama: Path, tmp_path: Path
) -> None:
    backends = [{"kind": "fp16"}, {"kind": "int4"}, {"kind": "int4", "label": "second"}]

    def order(seed: int) -> tuple[str, ...]:
        settings = config(tiny_llama, backends, seed=seed, measure={})
        return tuple(cell.label for cell in cells.shuffle(settings, settings.backends))

    assert order(in_order(3)) == ("fp16", "int4", "second")
    orders = {seed: order(seed) for seed in range(100)}
    assert orders == {seed: order(seed) for seed in range(100)}
    assert len(set(orders.values())) == 6
    seed = next(seed for seed in orders if orders[seed] == ("second", "int4", "fp16"))
    folder, _, watcher = run(config(tiny_llama, backends, seed=seed, measure={}), tmp_path)
    assert tuple(row.label for row in watcher.finished) == read_frames(folder).record.order == orders[seed]
    assert list(read_frames(folder).cells["label"]) == ["fp16", "int4", "second"]


def test_a_worker_says_its_last_words_in_its_row(tiny_llama: Path, tmp_path: Path) -> None:
    broken = interpreter(tmp_path, "echo first; echo 'libfoo.so: undefined symbol' >&2; exit 3")
    row = run(config(tiny_llama, [{"kind": "fp16", "python": broken}]), tmp_path / "results")[2].finished[0]
    assert row.error == "the worker exited with status 3; its last words: libfoo.so: undefined symbol"


def test_two_runs_in_one_folder_at_once_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from qbench.run.folder import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE)
    try:
        assert other.stdout
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(QbenchError, match=rf"at work here \(process {other.pid} on {platform.node()}\)"):
            run(config(tiny_llama, INT4), tmp_path)
    finally:
        other.kill()
        other.wait()
    # Its lock went with it, whatever it left behind.
    assert (tmp_path / "r" / ".owner.json").exists()
    with locked(tmp_path / "r"):
        assert json.loads((tmp_path / "r" / ".owner.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "r" / ".owner.json").exists()
    assert run(config(tiny_llama, INT4, measure={}), tmp_path)[1]


def test_a_run_that_was_killed_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    """The runner itself, by SIGKILL: it can say nothing, write nothing and end nobody."""
    settings = config(
        tiny_llama,
        INT4,
        measure={"memory": {"seq_len": 16}, "throughput": QUICK["throughput"] | {"trials": 150}},
        dtype="float32",
    )
    config_file = tmp_path / "config.json"
    config_file.write_text(settings.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from tests.support.running import execute\n"
        "from qbench.config import RunConfig; from tests.support.watchers import Watcher\n"
        "execute(RunConfig.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Watcher(), "
        "command='')"
    )
    runner = subprocess.Popen([sys.executable, "-c", code, str(config_file), str(tmp_path)])
    deadline = time.monotonic() + 120
    while len(read_units(events(tmp_path / "r"))) < 5:
        assert time.monotonic() < deadline
        assert runner.poll() is None
        time.sleep(0.05)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    time.sleep(1)
    kept = {name: unit for name, unit in read_units(events(tmp_path / "r")).items() if name != CELL}
    assert 4 <= len(kept) < 300
    _, ok, _ = run(settings, tmp_path)
    assert ok
    after = read_units(events(tmp_path / "r"))
    assert {name: after[name] for name in kept} == kept
    assert len(read_frames(tmp_path / "r").throughput) == 300
