"""The commands before a run, as their users meet them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qbench.cli.app import app
from qbench.config import RunConfig
from qbench.show import terminal

cli = CliRunner()
ROOT = Path(__file__).parents[1]
YAML = "name: tiny\nmodel: {demo: true}\nbackends: [{kind: fp16}, {kind: int4}, {kind: int4, label: b}]\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "one.yaml").write_text(YAML)
    (tmp_path / "tiny.yaml").write_text(YAML)
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plan_prints_a_table_or_json(here: Path) -> None:
    printed = cli.invoke(app, ["plan", "tiny.yaml", "--bandwidth", "20GB/s", "--memory", "4GiB"])
    assert printed.exit_code == 0, printed.output
    assert "4.00 GiB (given)" in printed.output
    assert "│ b " in printed.output
    found = cli.invoke(app, ["plan", "tiny.yaml", "--json", "--bandwidth", "20GB/s", "--only", "int4"])
    (data,) = json.loads(found.output)
    assert [cell["label"] for cell in data["cells"]] == ["int4"]
    assert data["cells"][0]["weight_bytes"] == 3773184
    assert sorted(path.name for path in here.iterdir()) == ["configs", "notes.txt", "tiny.yaml"]


def test_plan_predicts_every_run_of_a_matrix(here: Path) -> None:
    varied = ["--set", "matrix={dtype: [float32, bfloat16], backends.int4.group_size: [32, 64]}"]
    result = cli.invoke(app, ["plan", "tiny.yaml", "--json", "--bandwidth", "20GB/s", *varied])
    runs = json.loads(result.output)
    assert [run["run"] for run in runs] == ["tiny-float32", "tiny-bfloat16"]
    assert {cell["label"] for cell in runs[0]["cells"]} == {"fp16", "int4-32", "int4-64", "b"}
    weights = [next(cell["weight_bytes"] for cell in run["cells"] if cell["label"] == "fp16") for run in runs]
    assert weights[0] == pytest.approx(2 * weights[1], rel=0.001)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "nothing.yaml"], "no such file"),
        (["plan", "tiny.yaml", "--memory", "12"], "--memory 12: expected a number with a unit"),
        (["plan", "tiny.yaml", "--bandwidth", "fast"], "--bandwidth fast: expected a number with a unit"),
        (["plan", "tiny.yaml", "--only", "imt4"], "did you mean int4?"),
        (["plan", "tiny.yaml", "--set", "model={id: some/model}"], "give a folder as model.path"),
        (["init", "tiny.yaml", "--yes"], "is there already"),
        (["init", "new.yaml", "--yes", "--model", "demmo"], "did you mean demo?"),
        (["init", "new.yaml", "--yes", "--backends", "fp16,imt4"], "did you mean int4?"),
        (["init", "new.yaml", "--yes", "--model", "llama-3-8b", "--memory", "1GiB"], "no backend fits 1.0 GiB"),
        (["schema", "--out", "tiny.yaml/x"], "cannot be written"),
    ],
)
def test_what_the_user_can_mend_is_status_two_and_one_message(here: Path, arguments: list[str], words: str) -> None:
    result = cli.invoke(app, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (here / "new.yaml").exists()


def test_init_writes_what_plan_and_run_take(here: Path) -> None:
    made = cli.invoke(app, ["init", "new.yaml", "--yes"])
    assert made.exit_code == 0, made.output
    assert "next: qbench plan new.yaml" in made.output
    for command in (["plan", "new.yaml", "--bandwidth", "1GB/s"], ["run", "new.yaml", "--dry-run"]):
        assert cli.invoke(app, command).exit_code == 0


def test_init_asks_where_somebody_can_answer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_attended", lambda: True)
    made = cli.invoke(app, ["init"], input="tinyllama-1.1b\n3GiB\n\n")
    assert made.exit_code == 0, made.output
    # Loading nf4, awq and gptq takes more than 3 GiB.
    assert "Backends [fp16,int4]" in made.output
    assert "kind: int4" in (here / "qbench.yaml").read_text()


def test_schema_is_printed_or_written(here: Path) -> None:
    printed = cli.invoke(app, ["schema"])
    assert set(json.loads(printed.output)["properties"]) > set(RunConfig.model_fields)
    cli.invoke(app, ["schema", "--out", "s.json"])
    assert (here / "s.json").read_text() == printed.output


def completions(line: str, folder: Path) -> list[str]:
    """What bash offers for a line, by the protocol of the script that --install-completion installs."""
    words = line.split(" ")
    variables = {"_QBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from qbench.cli.app import app; app(prog_name='qbench')"],
        cwd=folder,
        env=os.environ | variables | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("qbench pla", ["plan"]),
        ("qbench plan ", ["configs/one.yaml", "configs/", "tiny.yaml"]),
        ("qbench plan --only fp", []),
        ("qbench plan configs/o", ["configs/one.yaml"]),
        ("qbench run ti", ["tiny.yaml"]),
        ("qbench run tiny.yaml --only int", ["int4"]),
        ("qbench run tiny.yaml --only int4 --only ", ["fp16", "b"]),
        ("qbench run nothing.yaml --only ", []),
    ],
)
def test_the_shell_completes_commands_files_and_labels(here: Path, line: str, offered: list[str]) -> None:
    assert completions(line, here) == offered


@pytest.mark.parametrize("command", ["plan", "init", "schema"])
def test_help_has_an_example(command: str) -> None:
    result = cli.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: qbench {command}" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "tiny.yaml", "--bandwidth", "1GB/s"],
        ["init", "new.yaml", "--yes"],
        ["schema"],
        ["validate", "tiny.yaml"],
        ["run", "tiny.yaml", "--dry-run"],
        ["cache", "ls"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_read_no_run_import_nothing_heavy(here: Path, command: list[str]) -> None:
    """Checked by what is imported, since times drift; benchmarks/startup.py takes them."""
    code = (
        f"import sys; from typer.testing import CliRunner; from qbench.cli.app import app; "
        f"r = CliRunner().invoke(app, {command}); assert r.exit_code == 0, r.output; "
        "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'matplotlib', 'lm_eval'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
