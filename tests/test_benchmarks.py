"""The scripts in benchmarks/, as far as they run without a GPU and in a moment."""

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from qbench.config import load
from qbench.model.load import LoadOptions
from tests.support import tiny_llama as tiny
from tests.support.flash_attention import flash_attention_on_the_cpu

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

TUNE = """
import sys
sys.path.insert(0, "benchmarks")
import torch
import gpu_tune
gpu_tune.candidates = lambda rows: [gpu_tune.Config(16, 32, split, 4, 2) for split in (1, 2)]
weights = [gpu_tune.packed((64, 256), torch.device("cpu"))]
for rows in (1, 16):
    found = gpu_tune.fastest(rows, weights, deadline=float("inf"))
    assert found[0] in gpu_tune.candidates(rows) and found[1] > 0
assert gpu_tune.fastest(1, weights, deadline=0) is None
"""


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_the_gpu_benchmark_says_what_it_lacks(tmp_path: Path) -> None:
    done = run("benchmarks/gpu.py", "check", "--out", str(tmp_path / "out"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "sees no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_step_of_the_gpu_benchmark_is_a_script_or_a_configuration_that_is_there(tmp_path: Path) -> None:
    import gpu

    found = gpu.steps(tmp_path)
    assert [step.name for step in found][:5] == ["check", "attention", "smoke", "products", "models"]
    assert sum(step.limit_s for step in found[:5]) <= 15 * 60
    for step in found:
        file = Path(next(word for word in step.command if word.endswith((".py", ".yaml"))))
        assert file.is_file()
        if file.suffix == ".yaml":
            load.load(file, [b for a, b in pairwise(step.command) if a == "--set"])


def test_either_way_of_attention_is_held_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_attention

    monkeypatch.setattr(gpu_attention, "COLD_BYTES", 1 << 16)
    shape = gpu_attention.Shape(heads=4, kv_heads=2, width=16, seq_len=64)
    with flash_attention_on_the_cpu():
        rows = gpu_attention.rows(shape, 3, torch.float32, torch.device("cpu"))
        assert [(row["attention"], row["filled"], row["ok"]) for row in rows] == [
            ("filled", 56, True),
            ("masked", 56, True),
        ]
        monkeypatch.setattr(gpu_attention.Layer, "masked", lambda layer: layer.exact(60))
        rows = gpu_attention.rows(shape, 3, torch.float32, torch.device("cpu"))
        assert [row["ok"] for row in rows] == [True, False]


def test_the_fastest_block_sizes_are_found() -> None:
    done = run("-c", TUNE, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


def test_the_plot_of_the_linears(tmp_path: Path) -> None:
    import linears_plot

    table = pd.DataFrame(
        [
            {"shape": "x", "linears": group, "batch": batch, "backend": backend, "seconds": batch * factor}
            for group in ("qkv", "o", "gate_up")
            for batch in (1, 8)
            for backend, factor in (("fp16", 1.0), ("int4", 0.5))
        ]
    )
    paths = linears_plot.draw(table, "a machine", tmp_path)
    assert [path.name for path in paths] == ["linears.png", "linears.svg"]
    text = paths[1].read_text(encoding="utf-8")
    assert "INT4" in text or "<!-- INT4 -->" in text


FACTS = {"code": "a", "device": "H200"}


SLOW = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({pid!r}, "w").write(str(child.pid))
open({table!r}, "w").write("half")
time.sleep(600)
"""


class Taken:
    """Steps that are one line of Python each, in a folder of results."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.said: list[str] = []

    def step(self, name: str, program: str = "", limit_s: float = 60, table: bool = True) -> Any:
        import steps

        log, file = self.out / "log.txt", self.out / f"{name}.csv"
        program = f"print({name!r}, file=open({str(log)!r}, 'a'), flush=True); {program or 'pass'}; "
        program += f"open({str(file)!r}, 'w').write('x')"
        tables = (file.name,) if table else ()
        return steps.Step(name, (sys.executable, "-S", "-c", program), limit_s, tables)

    def take(self, *found: Any, **facts: str) -> dict[str, str]:
        import steps

        endings: dict[str, str] = dict(steps.take(found, self.out, FACTS | facts, self.said.append))
        return endings

    @property
    def ran(self) -> list[str]:
        return (self.out / "log.txt").read_text().split()


@pytest.fixture
def taken(tmp_path: Path) -> Taken:
    return Taken(tmp_path)


def test_steps_run_in_order_and_one_that_fails_leaves_the_others(taken: Taken) -> None:
    endings = taken.take(taken.step("b"), taken.step("a", "raise SystemExit(3)"), taken.step("c"))
    assert taken.ran == ["b", "a", "c"]
    assert endings == {"b": "done", "a": "failed", "c": "done"}


def test_a_step_that_is_done_is_not_repeated_but_for_other_code_device_command_or_a_lost_table(taken: Taken) -> None:
    one, failing = taken.step("one"), taken.step("failing", "raise SystemExit(1)")
    taken.take(one, failing)
    assert taken.take(one, failing) == {"one": "kept", "failing": "failed"}
    assert taken.take(one, code="b") == {"one": "done"}
    assert taken.take(one, code="b", device="H100") == {"one": "done"}
    (taken.out / "one.csv").unlink()
    assert taken.take(one, code="b", device="H100") == {"one": "done"}
    assert taken.take(taken.step("one", "1"), code="b", device="H100") == {"one": "done"}
    assert taken.ran.count("one") == 5


def test_a_step_is_ended_at_its_limit_with_all_that_it_started_and_keeps_what_it_wrote(
    taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    import steps

    monkeypatch.setattr(steps, "GRACE_S", 1.0)
    table, pid = taken.out / "slow.csv", taken.out / "pid"
    program = taken.out / "slow.py"
    program.write_text(SLOW.format(table=str(table), pid=str(pid)))
    step = steps.Step("slow", (sys.executable, str(program)), 3, ("slow.csv",))
    assert taken.take(step, taken.step("next")) == {"slow": "too long", "next": "done"}
    assert table.read_text() == "half"
    child = Path("/proc") / pid.read_text()
    assert not child.exists() or ") Z " in (child / "stat").read_text()  # a zombie, where nobody reaps orphans
    assert taken.take(replace(step, command=(sys.executable, "-c", ""))) == {"slow": "done"}


def test_targets_are_held_against_the_tables(tmp_path: Path) -> None:
    import gpu_targets

    published = ROOT / "results" / "published"
    rows = gpu_targets.table(published / "int4-linears-h100", "../llama3-8b-shape-h100")
    found = {row["what"]: (row["target"], row["measured"], row["met"]) for row in rows}
    assert found["INT4 over FP16, linears of a block, 1 rows"] == ("≥ 2.9", pytest.approx(3.4948, rel=1e-4), True)
    assert found["INT4 over FP16, linears of a block, 64 rows"][2]
    # 62.4 MB in the published 23.9 µs, of 3,005 GB/s
    assert found["gate_up at 1 row, share of the copy's bandwidth"] == ("≥ 0.85", pytest.approx(0.87, abs=0.02), True)
    assert found["INT4 over FP16, tokens/s at batch 8"] == ("≥ 1.8", pytest.approx(1.5817, rel=1e-4), False)
    # 99.63 tokens/s; 15.01 GB of weights and 0.27 GB of cache take 5.08 ms at 3,005 GB/s
    limit = found["FP16, a decode step over its bandwidth limit, batch 1"]
    assert limit == ("≤ 1.25", pytest.approx(1 / 99.63 / 5.08e-3, rel=0.01), False)
    nothing = gpu_targets.table(tmp_path, "none")
    assert [row["what"] for row in nothing] == [row["what"] for row in rows]
    assert {(row["measured"], row["met"]) for row in nothing} == {(None, None)}
    assert len(rows) == 4 + 1 + 2 * (3 + 2)
    assert found["INT4 over FP16, tokens/s at batch 8, compiled"] == ("≥ 1.8", None, None)


@pytest.mark.skipif(find_spec("gptqmodel") is None, reason="gptqmodel is not installed")
def test_the_codes_of_one_block_stand_in_every_block(tmp_path: Path) -> None:
    import gpu_one_block

    from qbench.backends import gptq
    from qbench.backends.gptq import GPTQ

    folder = tiny.save_tiny_llama(tmp_path / "model", layers=1)
    gpu_one_block.quantize("gptq", tiny.options(folder, tmp_path / "work"), tmp_path / "one")
    gpu_one_block.repeat(tmp_path / "one", 3, tmp_path / "three")
    whole = tiny.save_tiny_llama(tmp_path / "whole", layers=3)
    options: LoadOptions = tiny.options(whole, tmp_path / "other")
    loaded = gptq.load(options, GPTQ(checkpoint=str(tmp_path / "three")), None)
    loaded.check()
    assert len(loaded.quantized) == 3 * 7
    one = load_file(tmp_path / "one" / "model.safetensors")
    last = load_file(tmp_path / "three" / "model-00003-of-00004.safetensors")
    name = "mlp.down_proj.qweight"
    assert last[f"model.layers.2.{name}"].equal(one[f"model.layers.0.{name}"])


def test_wheels_lose_what_a_gpu_machine_does_not_need(tmp_path: Path) -> None:
    import gpu_wheels

    kept = ["bitsandbytes/libbitsandbytes_cuda130.so", "bitsandbytes/libbitsandbytes_cpu.so", "bitsandbytes/nn.py"]
    left = ["bitsandbytes/libbitsandbytes_cuda128.so", "bitsandbytes/libbitsandbytes_rocm72.so"]
    wheel, record = tmp_path / "bitsandbytes-1-py3-none-any.whl", "bitsandbytes-1.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in kept + left:
            file.writestr(name, name)
        file.writestr(record, "".join(f"{name},sha256=x,1\n" for name in [*kept, *left, record]))
    gpu_wheels.trim(wheel, gpu_wheels.DROPPED["bitsandbytes"])
    with zipfile.ZipFile(wheel) as file:
        assert set(file.namelist()) == {*kept, record}
        assert file.read(record).decode().splitlines() == [f"{name},sha256=x,1" for name in [*kept, record]]
        assert file.read(kept[0]).decode() == kept[0]
    tasks = ["tasks/__init__.py", "tasks/mmlu/default/mmlu_law.yaml", "tasks/mmlu/README.md", "tasks/arc/arc.yaml"]
    dropped = [bool(re.match(gpu_wheels.DROPPED["lm_eval"], f"lm_eval/{name}")) for name in tasks]
    assert dropped == [False, False, False, True]
