"""Every command on a run that was just made: what they read is what `qbench run` writes today."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from qbench.machine.bandwidth import of_host
from tests.support.cli import qbench
from tests.support.runs import cells_here

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"
SHORT = [
    "dtype=float32", "measure.memory={seq_len: 64}", "measure.throughput.batch_sizes=[1, 2]",
    "measure.throughput.trials=2", "measure.throughput.seq_len=24", "measure.throughput.new_tokens=4",
    "measure.throughput.max_retries_invalid=0",
    "measure.sustained={minutes: 0.01, window_s: 0.2, seq_len: 24, new_tokens: 4}", "measure.mmlu.limit=2",
    "measure.mmlu.num_fewshot=1", "measure.perplexity.limit=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of the smoke configuration, shortened: a cell in a worker, others in this process."""
    folder = tmp_path_factory.mktemp("fresh")
    measure(folder, "before", "fp16")
    with cells_here():
        measure(folder, "before", "fp16", "int4", "nf4")
        measure(folder, "after", "fp16", "int4")
    return folder


def measure(folder: Path, name: str, *labels: str) -> None:
    options = [word for label in labels for word in ("--only", label)]
    options += [word for value in (*SHORT, f"name={name}") for word in ("--set", value)]
    done = qbench("run", str(SMOKE), *options, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_machine_s_bandwidth_is_recorded_before_each_cell(here: Path) -> None:
    cells = pd.read_csv(here / "results" / "before" / "cells.csv")
    readings = cells["read_bytes_per_s"]
    assert len(readings) == 3
    # A machine that others share is slower at times; a wrong unit would be off by a thousand.
    assert (readings / of_host().bytes_per_s).between(0.05, 20).all()


def test_plots_and_report(here: Path) -> None:
    assert qbench("plot", "results/before", "--allow-partial", cwd=here).returncode == 0
    assert {path.stem for path in here.glob("plots/before/*.png")} >= {"memory", "throughput", "mmlu", "pareto"}
    done = qbench("report", "results/before", "results/after", "--allow-partial", cwd=here)
    assert done.returncode == 0, done.stderr
    text = (here / "BENCHMARK.md").read_text()
    assert "bandwidth ceiling left out" not in text
    assert r"after: asked for and not run\: nf4, awq, gptq" in text
    for heading in ("## Speed and latency", "## Sustained load", "## Predicted and measured", "## By subject"):
        assert heading in text
    page = (here / "report.html").read_text()
    assert all(f'id="plot-{key}-1"' in page for key in ("memory", "pareto", "bandwidth", "sustained"))


def test_recommend(here: Path) -> None:
    arguments = ["recommend", "results/before", "--max-memory", "12MiB", "--objective", "memory"]
    refused = qbench(*arguments, cwd=here)
    assert refused.returncode == 0, refused.stderr
    found = json.loads(qbench(*arguments, "--allow-partial", "--json", cwd=here).stdout)
    cells = pd.read_csv(here / "results" / "before" / "cells.csv").set_index("label")
    fitting = cells[cells["peak_memory_bytes"] <= 12 * 2**20]
    assert found["recommended"]["label"] in fitting.index
    assert "FP32" in [one["name"] for one in found["left_out"]]


def test_compare_and_gate(here: Path) -> None:
    done = qbench("compare", "results/before", "results/after", "--allow-partial", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    cells = {cell["label"]: cell for cell in json.loads(done.stdout)["cells"]}
    # The same weights and the same answers: only time may differ.
    assert cells["int4"]["accuracy"]["delta"] == 0
    gate = ["gate", "results/after", "--baseline", "results/before", "--max-drop", "0.5", "--allow-partial"]
    missing = qbench(*gate, cwd=here)
    assert missing.returncode == 1
    assert "nf4" in missing.stdout.lower()
    itself = [*gate[:2], "--baseline", "results/after", *gate[4:]]
    same = qbench(*itself, cwd=here)
    # 24 questions answered alike do not exclude a loss of half a point.
    assert same.returncode == 3, same.stdout
    assert "inconclusive" in same.stdout
    assert qbench(*itself, "--inconclusive", "pass", cwd=here).returncode == 0


def test_card(here: Path) -> None:
    done = qbench("card", "results/before", "--backend", "int4", "--allow-partial", cwd=here)
    assert done.returncode == 0, done.stderr
    _, front, _ = (here / "MODEL_CARD.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "qbench"


def test_plan_of_what_was_run_predicts_its_memory(here: Path) -> None:
    options = [word for value in SHORT for word in ("--set", value)]
    done = qbench("plan", str(SMOKE), "--json", "--bandwidth", "20GB/s", *options, cwd=here)
    (plan,) = json.loads(done.stdout)
    cells = pd.read_csv(here / "results" / "before" / "cells.csv").set_index("label")
    predicted = {cell["label"]: cell["peak_memory_bytes"] for cell in plan["cells"]}
    for label, cell in cells.iterrows():
        assert cell["peak_memory_bytes"] == pytest.approx(predicted[label], rel=0.1)
