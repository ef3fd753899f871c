"""The four commands on runs of the repository: exit status, what is printed, what is on disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from qbench.cli.app import app

cli = CliRunner()
PUBLISHED = Path(__file__).parent.parent / "results" / "published"
SMOKE = str(PUBLISHED / "smoke-xeon-2core")
SHAPE = str(PUBLISHED / "tinyllama-shape-xeon-2core")
NO_BASELINE = ["gate", SMOKE, "--baseline", SMOKE]


def test_recommend_names_one_as_text_and_as_json() -> None:
    arguments = ["recommend", SMOKE, "--max-memory", "6MiB", "--max-drop", "1", "--cost", "2.50/h"]
    result = cli.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("AWQ at batch 1: 612.8 tok/s, 5.88 MiB, accuracy 99.46 %")
    assert "--max-memory binds: without it INT4 would be named" in result.output
    found = json.loads(cli.invoke(app, [*arguments, "--json"]).stdout)
    speed = pd.read_csv(Path(SMOKE) / "summary.csv").set_index("label").loc["awq", "decode_tokens_per_s_b1"]
    assert found["recommended"]["label"] == "awq"
    assert found["limits"] == {"max_memory_bytes": 6 * 2**20, "max_drop_points": 1.0}
    assert found["recommended"]["cost_per_million_tokens"] == pytest.approx(2.5 / 3600 / speed * 1e6, rel=1e-5)


def test_recommend_is_status_one_when_nothing_fits_and_what_it_says_then_works() -> None:
    result = cli.invoke(app, ["recommend", SMOKE, "--max-memory", "5MiB"])
    assert result.exit_code == 1
    assert "nothing fits --max-memory 5.00MiB" in result.output
    assert "relax --max-memory 5.79MiB (0.79 MiB more): NF4 would be named" in result.output
    again = cli.invoke(app, ["recommend", SMOKE, "--max-memory", "5.79MiB"])
    assert again.exit_code == 0
    assert again.output.startswith("NF4 at batch 1")


def test_recommend_takes_several_runs_each_once() -> None:
    result = cli.invoke(app, ["recommend", str(PUBLISHED), SMOKE, SHAPE, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [found["recommended"]["name"], found["runner_up"]["name"], *(one["name"] for one in found["left_out"])]
    assert len(names) == len(set(names))
    assert found["recommended"]["name"] == "gguf-Q4_0 (formats-epyc-2core)"
    assert any("different models" in note for note in found["notes"])


def test_compare_of_a_run_with_itself() -> None:
    result = cli.invoke(app, ["compare", SMOKE, SMOKE])
    assert result.exit_code == 0, result.output
    assert "same hardware, software and configuration" in result.output
    assert "1.00× [" in result.output
    found = json.loads(cli.invoke(app, ["compare", SMOKE, SMOKE, "--json"]).stdout)
    assert [cell["label"] for cell in found["cells"]] == ["fp16", "int4", "nf4", "awq", "gptq"]
    assert found["cells"][1]["accuracy"]["delta"] == 0


def test_compare_of_different_models_needs_force() -> None:
    result = cli.invoke(app, ["compare", SMOKE, SHAPE])
    assert result.exit_code == 2
    assert "another model; --force compares them all the same" in result.output
    forced = cli.invoke(app, ["compare", SMOKE, SHAPE, "--force"])
    assert forced.exit_code == 0
    assert "different model: name: qbench-demo" in forced.output
    assert "they generated other lengths" in " ".join(forced.output.replace("│", " ").split())


def test_gate_is_status_zero_or_one(tmp_path: Path) -> None:
    arguments = ["gate", SMOKE, "--baseline", SMOKE, "--max-slowdown", "5%", "--max-drop", "0.5"]
    arguments[-3] = "30%"
    passed = cli.invoke(app, [*arguments, "--max-memory-growth", "2%"])
    assert passed.exit_code == 0, passed.output
    assert passed.output.splitlines()[-1].startswith("gate: passed, 45 checks against ")
    assert json.loads(cli.invoke(app, [*arguments, "--json"]).stdout)["ok"] is True
    slower = tmp_path / "slower"
    slower.mkdir()
    for name in ("run.json", "cells.csv"):
        (slower / name).write_bytes((Path(SMOKE) / name).read_bytes())
    header, *rows = (Path(SMOKE) / "throughput.csv").read_text().splitlines()
    label, size, place = (header.split(",").index(name) for name in ("label", "batch_size", "decode_tokens_per_s"))
    fields = [row.split(",") for row in rows]
    for row in fields:
        if (row[label], row[size]) == ("int4", "1"):
            row[place] = str(0.7 * float(row[place]))
    (slower / "throughput.csv").write_text("\n".join([header, *map(",".join, fields)]) + "\n")
    failed = cli.invoke(app, ["gate", str(slower), "--baseline", SMOKE, "--max-slowdown", "5%"])
    assert failed.exit_code == 1
    assert "gate: FAILED, 1 of 20 checks" in failed.output
    assert "INT4 speed at batch 1: 0.700× [" in failed.output.splitlines()[-1]


@pytest.mark.parametrize(("option", "status"), [("report", 3), ("pass", 0), ("fail", 1)])
def test_what_neither_passes_nor_fails_is_status_three_unless_told_otherwise(option: str, status: int) -> None:
    gate = ["gate", SMOKE, "--baseline", SMOKE, "--max-slowdown", "5%"]
    assert cli.invoke(app, [*gate, "--inconclusive", option]).exit_code == status
    recommend = ["recommend", SMOKE, "--max-memory", "6MiB", "--max-drop", "0.5"]
    assert cli.invoke(app, [*recommend, "--inconclusive", option]).exit_code == status


def test_what_would_settle_an_inconclusive_answer_is_said() -> None:
    gate = cli.invoke(app, ["gate", SMOKE, "--baseline", SMOKE, "--max-slowdown", "5%"])
    assert gate.exit_code == 3
    last = gate.output.splitlines()[-1]
    assert last.startswith("gate: inconclusive, 7 of 20 checks against ")
    assert re.search(r"FP16 speed at batch 8: .* limit 0.950×, about \d+ trials of each run would settle it", last)
    recommend = ["recommend", SMOKE, "--max-memory", "6MiB", "--max-drop", "0.5"]
    said = cli.invoke(app, recommend)
    assert said.exit_code == 3
    assert "inconclusive: a drop of more than 0.5 points cannot be excluded: −0.25 points [" in said.output
    assert re.search(r"; about [\d,]+ questions would settle it", said.output)
    found = json.loads(cli.invoke(app, [*recommend, "--json"]).stdout)
    assert len(found["inconclusive"]) == 1


def test_the_margin_decides_what_counts_as_no_loss() -> None:
    for margin, words in (("1", "no worse than 1 point"), ("0.3", "inconclusive")):
        card = cli.invoke(app, ["card", SMOKE, "--backend", "int4", "--json", "--margin", margin])
        assert words in json.loads(card.stdout)["body"]
        compared = cli.invoke(app, ["compare", SMOKE, SMOKE, "--margin", "0.2" if margin == "0.3" else margin])
        assert words in " ".join(compared.output.replace("│", " ").split())


def test_card_is_written_and_not_over_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(app, ["card", SMOKE, "--backend", "int4"]).exit_code == 0
    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert text.startswith("---\n")
    again = cli.invoke(app, ["card", SMOKE, "--backend", "nf4"])
    assert again.exit_code == 2
    assert "is there already; --force replaces it" in again.output
    assert (tmp_path / "MODEL_CARD.md").read_text() == text
    assert cli.invoke(app, ["card", SMOKE, "--backend", "nf4", "--force"]).exit_code == 0
    assert (tmp_path / "MODEL_CARD.md").read_text() != text
    found = json.loads(cli.invoke(app, ["card", SMOKE, "--backend", "int4", "--json"]).stdout)
    assert found["metadata"]["library_name"] == "qbench"
    assert [path.name for path in tmp_path.iterdir()] == ["MODEL_CARD.md"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recommend", "nowhere"], "no such folder"),
        (["recommend", SMOKE, "--max-memory", "12"], "--max-memory 12: give a size with its unit"),
        (["recommend", SMOKE, "--max-memory", "12 bananas"], "give a size with its unit"),
        (["recommend", SMOKE, "--batch", "4"], "--batch 4: was not measured; there are 1, 8, 32"),
        (["recommend", SMOKE, "--cost", "2.50"], "--cost 2.50: give a rate by the hour"),
        (["compare", "nowhere", SMOKE], "no run.json"),
        ([*NO_BASELINE], "give at least one of --max-slowdown"),
        ([*NO_BASELINE, "--max-slowdown", "5"], "--max-slowdown 5: give percent, e.g. 5%"),
        ([*NO_BASELINE, "--max-memory-growth", "-2%"], "give percent"),
        (["card", SMOKE, "--backend", "int8"], "no such cell; did you mean int4?"),
        (["card", SMOKE, "--backend", "int4", "--out", "/nowhere/x.md"], "cannot be written"),
    ],
)
def test_what_the_user_can_mend_is_status_two_and_one_message(arguments: list[str], words: str) -> None:
    result = cli.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["recommend", "compare", "gate", "card"])
def test_help_has_an_example(command: str) -> None:
    result = cli.invoke(app, [command, "--help"])
    assert f"qbench {command}" in " ".join(result.output.split())


@pytest.mark.parametrize("command", ["recommend", "compare", "gate", "card"])
def test_help_imports_nothing_heavy(command: str) -> None:
    """Checked by what is imported, since times drift."""
    code = (
        f"import sys; from typer.testing import CliRunner; from qbench.cli.app import app; "
        f"r = CliRunner().invoke(app, ['{command}', '--help']); assert r.exit_code == 0, r.output; "
        "heavy = {'torch', 'pandas', 'scipy', 'numpy', 'matplotlib', 'huggingface_hub'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_deciding_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from qbench.cli.app import app; invoke = CliRunner().invoke; "
        f"run = {SMOKE!r}; assert invoke(app, ['recommend', run]).exit_code == 0; "
        "assert invoke(app, ['gate', run, '--baseline', run, '--max-drop', '1']).exit_code == 0; "
        "assert invoke(app, ['compare', run, run]).exit_code == 0; "
        "slow = {'pandas', 'scipy.special', 'psutil', 'qbench.config'} & set(sys.modules); assert not slow, slow; "
        "assert invoke(app, ['card', run, '--backend', 'int4', '--json']).exit_code == 0; "
        "heavy = {'torch', 'transformers', 'lm_eval', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
