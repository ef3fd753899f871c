"""A measure that fails, or that an engine cannot take, leaves the others of its cell alone."""

import shutil
from pathlib import Path

import yaml

from qbench import demo
from tests.support.cli import qbench
from tests.support.frames import Frames, read_frames
from tests.support.plugin import install_example, installed
from tests.support.runs import cells_here

QUICK = {"batch_sizes": [1], "seq_len": 12, "new_tokens": 4, "warmup": 0, "trials": 1}


def qbench_run(folder: Path, backends: list[str], **measure: object) -> tuple[int, Frames, str]:
    settings = {
        "name": "r",
        "model": {"demo": True},
        "dtype": "float32",
        "backends": [{"kind": kind} for kind in backends],
        "measure": {"memory": {"seq_len": 16}, **measure},
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(settings))
    with cells_here():
        done = qbench("run", "r.yaml", cwd=folder)
    return done.returncode, read_frames(folder / "results" / "r"), done.stdout + done.stderr


def test_a_measure_that_fails_leaves_the_others_and_is_taken_again(tmp_path: Path) -> None:
    """Questions that are damaged: speed and perplexity are measured all the same, and only MMLU the second time."""
    data = shutil.copytree(demo.MMLU_DIR, tmp_path / "mmlu")
    damaged = sorted((data / "test").glob("*.csv"))[0]
    whole = damaged.read_text(encoding="utf-8")
    damaged.write_text("only,three,columns\n", encoding="utf-8")
    measures = {
        "mmlu": {"data": str(data), "limit": 1, "num_fewshot": 0},
        "throughput": QUICK,
        "perplexity": {"text": "demo", "window": 64, "limit": 2},
    }
    status, run, said = qbench_run(tmp_path, ["fp16"], **measures)
    assert status == 1
    (cell,) = run.cells.to_dict("records")
    assert cell["status"] == "ok"
    assert damaged.name in cell["failed"]
    assert damaged.name in said
    assert list(run.throughput["status"]) == ["ok"]
    assert len(run.perplexity) == 1
    assert run.accuracy.empty
    damaged.write_text(whole, encoding="utf-8")
    status, again, said = qbench_run(tmp_path, ["fp16"], **measures)
    assert status == 0, said
    assert list(again.cells["status"]) == ["ok"]
    assert again.cells["failed"].isna().all()
    assert not again.accuracy.empty
    assert again.throughput.equals(run.throughput)
    assert again.perplexity.equals(run.perplexity)


def test_what_an_engine_cannot_measure_is_said_and_is_no_failure(tmp_path: Path) -> None:
    generations = {"prompts": ["Who"], "new_tokens": 2}
    with installed(install_example(tmp_path / "site", "numpy_engine")):
        status, run, said = qbench_run(
            tmp_path, ["numpy"], throughput=QUICK | {"kv_cache": "int8"}, generations=generations
        )
    assert status == 0, said
    (cell,) = run.cells.to_dict("records")
    assert cell["status"] == "ok"
    assert cell["unsupported"] == "throughput: the engine cannot do what it needs: kv_cache"
    assert run.throughput.empty
    assert (run.folder / "generations.jsonl").read_text().count("\n") == 1
