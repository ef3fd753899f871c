"""gguf cells of a run: every measure beside torch's, cached checkpoints, export, and a library that is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from qbench.plan import backends
from tests.support.cli import qbench
from tests.support.frames import Frames, read_frames
from tests.support.runs import cells_here

CELLS = ("Q8_0", "Q4_K_M")
SETTINGS = {
    "name": "r",
    "model": {"demo": True},
    "dtype": "float32",
    "threads": 1,
    "backends": [{"kind": "fp16"}, *({"kind": "gguf", "label": quant, "quant": quant} for quant in CELLS)],
    "measure": {
        "memory": {"seq_len": 64},
        "throughput": {
            "batch_sizes": [1, 3], "seq_len": 24, "new_tokens": 8, "warmup": 0, "trials": 1, "kv_cache": "16bit",
        },
        "sustained": {"batch_size": 2, "seq_len": 24, "new_tokens": 8, "minutes": 0.02, "window_s": 0.5},
        "perplexity": {"text": "demo", "window": 128, "limit": 6},
        "mmlu": {"data": "demo", "limit": 2, "num_fewshot": 2},
        "tasks": {"names": ["demo_qa"], "limit": 12},
        "generations": {"prompts": ["The capital of", "Who"], "new_tokens": 12},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf-run")
    (folder / "r.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[Frames]:
    """One thread: those that spin for each other take minutes where something else runs."""
    with cells_here() as patch:
        patch.setenv("QBENCH_CACHE", str(folder / "cache"))
        done = qbench("run", "r.yaml", cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        yield read_frames(folder / "results" / "r")


def test_cells_say_what_they_are(run: Frames) -> None:
    cells = run.cells.set_index("label")
    for quant, bits, effective in (("Q8_0", 8, 8.5), ("Q4_K_M", 4, 4.8)):
        cell = cells.loc[quant]
        assert (cell["status"], cell["bits"], cell["device"], cell["threads"]) == ("ok", bits, "cpu", 1)
        assert cell["kernel"].startswith("llama.cpp 0.3.")
        assert cell["effective_bits_per_weight"] == pytest.approx(effective, abs=0.05)
        assert cell["quantized_layers"] == cell["expected_layers"] == 28
        assert pd.isna(cell["unsupported"])
        assert pd.isna(cell["failed"])
        assert cell["peak_memory_bytes"] > cell["weight_bytes"]


def test_quality_is_that_of_the_model(run: Frames) -> None:
    rows = run.perplexity.set_index("label")
    for quant, kl in (("Q8_0", 1e-3), ("Q4_K_M", 1e-2)):
        assert rows.loc[quant, "perplexity"] == pytest.approx(rows.loc["fp16", "perplexity"], rel=0.02)
        assert 0 < rows.loc[quant, "kl_mean"] < kl
        assert rows.loc[quant, "top1_agreement"] > 0.95
    torch, found = (pd.read_parquet(run.folder / "answers" / f"{label}.parquet") for label in ("fp16", "Q8_0"))
    columns = [f"logprob_{letter}" for letter in "abcd"]
    np.testing.assert_allclose(np.exp(found[columns]), np.exp(torch[columns]), atol=0.05)


def test_answers_are_generated(run: Frames) -> None:
    rows = run.accuracy[run.accuracy["task"] == "demo_qa"].set_index("label")
    assert set(rows["metric"]) == {"exact_match,first-line"}
    assert rows.loc["Q8_0", "accuracy"] == rows.loc["fp16", "accuracy"] == 1
    assert set(run.task_answers["demo_qa"]) == {"fp16", *CELLS}


def test_speed_is_measured_like_any_other(run: Frames) -> None:
    trials = run.throughput[run.throughput["label"].isin(CELLS)]
    assert sorted(trials["batch_size"]) == [1, 1, 3, 3]
    assert set(trials["decode_mode"]) == {"eager"}
    assert (trials["decode_tokens_per_s"] > 0).all()
    assert (trials["ttft_s"] > 0).all()


def test_export_hands_out_the_file_of_the_run(run: Frames, folder: Path) -> None:
    out = folder / "exported"
    done = qbench("export", "r.yaml", "--cell", "Q8_0", "--out", str(out), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "README.md", "qbench-demo-Q8_0.gguf"]
    made = {path.read_bytes() for path in (folder / "cache" / "checkpoints").glob("*/model.gguf")}
    assert len(made) == len(CELLS)
    assert (out / "qbench-demo-Q8_0.gguf").read_bytes() in made  # nothing was quantized again
    card = (out / "README.md").read_text()
    assert "8.50 bits a weight" in card
    assert "llama-cli -m qbench-demo-Q8_0.gguf" in card
    assert (out / "Modelfile").read_text() == "FROM ./qbench-demo-Q8_0.gguf\n"
    for options, problem in (
        (["--cell", "Q8_0", "--out", str(out)], "is not empty"),
        (["--cell", "fp16", "--out", str(folder / "no")], "fp16 is fp16; only gguf cells are exported to gguf"),
        (["--out", str(folder / "no")], "several are gguf; name one with --cell: Q8_0, Q4_K_M"),
        (["--to", "awq", "--out", str(folder / "no")], "--to awq: no such format (there are: gguf, mlx)"),
    ):
        refused = qbench("export", "r.yaml", *options, cwd=folder)
        assert refused.returncode == 2
        assert problem in " ".join(refused.stderr.split())


def test_a_file_is_known_by_its_content(run: Frames, folder: Path) -> None:
    """The key of a unit changes with it, wherever it lies."""
    from qbench.config import RunConfig
    from qbench.machine import environment as machine
    from qbench.run.fingerprint import CELL, units

    def key(path: Path) -> str:
        settings = SETTINGS | {"backends": [{"kind": "gguf", "file": str(path)}], "measure": {}}
        config = RunConfig.model_validate(settings)
        return units(config, config.backends[0], machine.detect(), "model")[CELL]

    (eight, four) = (path for path in sorted((folder / "cache" / "checkpoints").glob("*/model.gguf")))
    copy = folder / "copy" / eight.name
    copy.parent.mkdir()
    copy.write_bytes(eight.read_bytes())
    assert key(copy) == key(eight) != key(four)


def test_a_missing_library_is_said_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ModuleNotFoundError, match="llama_cpp"):
        exec(backends._attempt("gguf"))
    assert backends._remedy("gguf") == "pip install 'qbench-llm[gguf]'"
