"""The program as its users meet it: exit status, what is printed, what is on disk."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from qbench.cli.app import app
from qbench.config import backend_kinds
from qbench.show import terminal
from qbench.show.plots import charts
from tests.support.cli import qbench
from tests.support.runs import YAML, cells_here, in_order, interpreter

cli = CliRunner()


@pytest.fixture
def here(tmp_path: Path, tiny_llama: Path) -> Iterator[Path]:
    """A working folder with tiny.yaml in it; what is invoked from it runs its cells in this process."""
    (tmp_path / "tiny.yaml").write_text(YAML.format(model=tiny_llama))
    with cells_here(), chdir(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, str]:
    """A finished run and what was printed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(YAML.format(model=tiny_llama))
    with cells_here():
        done = qbench("run", "tiny.yaml", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_a_run_says_where_it_is_and_ends_with_its_tables(measured: tuple[Path, str]) -> None:
    _, printed = measured
    assert re.search(r"\[[12]/2\] int4: throughput, batch 2, trial 2/2", printed)
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == ["FP16", "INT4", "INT4"], printed
    assert printed.index("tok/s at 1") < printed.index("speed, compared with FP16") < printed.rindex("at batch 1")
    assert "qbench plot results/tiny" in printed
    assert "\x1b" not in printed


def test_a_run_leaves_the_files_that_the_readme_names(measured: tuple[Path, str]) -> None:
    folder = measured[0] / "results" / "tiny"
    for name in ("run.json", "cells.csv", "throughput.csv", "accuracy.csv", "summary.csv", "logs/int4.log"):
        assert (folder / name).is_file(), name


def test_plot_draws_a_run_or_a_folder_of_runs(
    measured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder of runs with the first of the charts, memory, alone."""
    monkeypatch.chdir(measured[0])
    names = ("memory", "throughput", "batches", "bandwidth", "latency")
    for number, argument in enumerate(("results/tiny", "results", "results/")):
        out = tmp_path / str(number)
        result = cli.invoke(app, ["plot", argument, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert {path.name for path in (out / "tiny").iterdir()} == {
            f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
        }
        names = names[:1]
        monkeypatch.setattr(charts, "CHARTS", charts.CHARTS[:1])


def test_a_failed_cell_is_status_one_and_a_line_with_the_reason(here: Path) -> None:
    broken = interpreter(here, "exit 3")
    result = cli.invoke(app, ["run", "tiny.yaml", "--only", "fp16", "--set", f"backends.fp16.python={broken}"])
    assert result.exit_code == 1
    assert "crashed fp16: the worker exited with status 3" in " ".join(result.output.split())
    assert "FP16 (crashed)" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nothing.yaml"], "nothing.yaml: no such file"),
        (["run", "tiny.yaml", "--only", "int8"], "did you mean int4?"),
        (["run", "tiny.yaml", "--set", "measure.thruput.trials=1"], "unknown key; did you mean throughput?"),
        (["run", "tiny.yaml", "--set", "device=cuda"], "no NVIDIA GPU is visible"),
        (["run", "tiny.yaml", "--set", "model.path=/nowhere"], "model.path: /nowhere is not a folder"),
        (["run", "tiny.yaml", "--results", "tiny.yaml"], "results cannot be written here"),
        (["run", "tiny.yaml", "--dry-run", "--set", "device=cuda"], "no NVIDIA GPU is visible"),
        (["validate", "nothing.yaml"], "no such file"),
        (["run", "tiny.yaml", "--set", "backends.int4.checkpoint=/nowhere"], "checkpoint: no folder /nowhere"),
        (["run", "tiny.yaml", "--dry-run", "--set", "backends.int4.checkpoint=/nowhere"], "no folder /nowhere"),
        (
            ["run", "tiny.yaml", "--dry-run", "--set", "backends=[{kind: gptq, checkpoint: ./nowhere}]"],
            "backends.gptq.checkpoint: ./nowhere is not a folder; give one, or a hub id (owner/name)",
        ),
        (["quantize", "tiny.yaml", "--out", "."], "--out .: is taken by something that is no checkpoint"),
        (["quantize", "tiny.yaml", "--out", ".", "--force"], "is no checkpoint; choose another folder"),
        (["quantize", "tiny.yaml", "--out", "x", "--cell", "int8"], "--cell int8: no such cell; did you mean int4?"),
        (["quantize", "tiny.yaml", "--out", "x", "--cell", "fp16"], "fp16 is fp16; only int4 is quantized here"),
        (["quantize", "tiny.yaml", "--out", "x", "--set", "backends=[{kind: nf4}]"], "there are nf4; only int4 is"),
        (
            ["quantize", "tiny.yaml", "--out", "x", "--set", "backends=[{kind: int4}, {kind: int4, label: b}]"],
            "several are int4; name one with --cell: int4, b",
        ),
        (["quantize", "tiny.yaml", "--out", "x", "--set", "backends.int4.checkpoint=y"], "has a `checkpoint:` already"),
        (["quantize", "tiny.yaml", "--out", "tiny.yaml/x"], "cannot be written"),
        (["quantize", "tiny.yaml", "--out", "x", "--set", "matrix={seed: [1, 2]}"], "makes several runs"),
        (["run", "tiny.yaml", "--set", "matrix={sed: [1, 2]}"], "sed: unknown key; did you mean seed?"),
        (["run", "tiny.yaml", "--address", "auto"], "--address auto: belongs to --executor ray"),
        (["plot", "nowhere"], "no such folder"),
        (["plot", "."], "no run here"),
    ],
)
def test_what_the_user_can_mend_is_status_two_and_one_message(here: Path, arguments: list[str], words: str) -> None:
    result = cli.invoke(app, arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
    assert sorted(path.name for path in here.iterdir()) == ["tiny.yaml"]


def test_an_unknown_option_is_status_two(here: Path) -> None:
    assert cli.invoke(app, ["run", "tiny.yaml", "--onyl", "int4"]).exit_code == 2


def test_dry_run_says_the_plan_and_touches_nothing(here: Path) -> None:
    result = cli.invoke(app, ["run", "tiny.yaml", "--dry-run", "--set", "seed=7"])
    assert result.exit_code == 0
    assert "cell int4: int4 (bits 4, group_size 128, " in result.output
    assert not (here / "results").exists()


def test_dry_run_says_which_cells_cannot_work_here(here: Path) -> None:
    cells = "backends=[{kind: fp16}, {kind: compressed-tensors, checkpoint: someone/model}]"
    result = cli.invoke(app, ["run", "tiny.yaml", "--dry-run", "--set", cells])
    assert result.exit_code == 0
    assert "note: compressed-tensors will be unavailable: " in result.output


def test_a_run_is_deleted_only_after_asking(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "tiny.yaml", "--only", "fp16", "--set", "measure={}"]
    assert cli.invoke(app, [*arguments, "--fresh"]).exit_code == 0, "there is nothing to delete"
    before = (here / "results/tiny/run.json").read_bytes()
    unattended = cli.invoke(app, [*arguments, "--fresh"])
    assert unattended.exit_code == 2
    assert "--fresh deletes the run in results/tiny; pass --yes" in unattended.output
    monkeypatch.setattr(terminal, "is_attended", lambda: True)
    assert cli.invoke(app, [*arguments, "--fresh"], input="n\n").exit_code == 1
    assert (here / "results/tiny/run.json").read_bytes() == before
    agreed = cli.invoke(app, [*arguments, "--fresh"], input="y\n")
    assert agreed.exit_code == 0
    assert "already measured" not in agreed.output
    assert cli.invoke(app, [*arguments, "--fresh", "--yes"]).exit_code == 0


def test_a_matrix_runs_all_and_one_that_cannot_run_is_told_at_the_end(here: Path) -> None:
    sweep = "matrix={seed: [0, 1], backends.int4.group_size: [32, 64]}"
    common = ["run", "tiny.yaml", "--set", sweep, "--set", "measure={}"]
    result = cli.invoke(app, [*common, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 runs, 6 cells\ntiny-0: ")
    (here / "results/tiny-0").mkdir(parents=True)
    (here / "results/tiny-0/mine.txt").write_text("mine")
    result = cli.invoke(app, [*common, "--only", "int4-64"])
    assert result.exit_code == 2, result.output
    assert "1 of 2 runs did not run:\n  tiny-0: results/tiny-0: is not empty and holds no run" in result.output
    assert f",int4,int4-64,{platform.node()},4,64,ok," in (here / "results/tiny-1/cells.csv").read_text()


def test_what_quantize_writes_is_what_a_run_measures(here: Path) -> None:
    arguments = ["quantize", "tiny.yaml", "--out", "made", "--set", "backends.int4.group_size=64"]
    result = cli.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "[1/1] int4: quantizing 0/21" in result.output
    assert "made: 1.16 MiB, 4.50 bits a weight" in result.output
    use = next(line for line in result.output.splitlines() if line.startswith("use it: qbench "))
    result = cli.invoke(app, [*use.removeprefix("use it: qbench ").split(), "--only", "int4"])
    assert result.exit_code == 0, result.output
    assert f",int4,int4,{platform.node()},4,64,ok," in (here / "results/tiny/cells.csv").read_text()
    again = cli.invoke(app, arguments)
    assert again.exit_code == 2
    assert "holds a checkpoint; replace it with --force" in again.output
    forced = cli.invoke(app, [*arguments, "--force", "--set", "backends.int4.group_size=32"])
    assert "5.00 bits a weight" in forced.output
    assert sorted(path.name for path in here.iterdir()) == ["made", "results", "tiny.yaml"]


def test_validate_names_the_cells(here: Path) -> None:
    result = cli.invoke(app, ["validate", "tiny.yaml"])
    assert result.exit_code == 0
    assert "cells fp16, int4" in result.output


@pytest.mark.long
def test_backends_says_of_every_kind_whether_it_works_here() -> None:
    result = cli.invoke(app, ["backends"])
    assert result.exit_code == 0
    for kind in backend_kinds():
        assert kind in result.output


@pytest.mark.parametrize("command", [[], ["run"], ["quantize"], ["export"], ["plot"], ["backends"], ["validate"]])
def test_help_has_an_example(command: list[str]) -> None:
    result = cli.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "qbench " + (command[0] if command else "run") in " ".join(result.output.split())


def test_commands_that_need_no_model_import_no_torch(here: Path) -> None:
    """Checked by what is imported, since times drift."""
    code = (
        "import sys; from typer.testing import CliRunner; from qbench.cli.app import app; "
        "r = CliRunner().invoke(app, ['run', 'tiny.yaml', '--dry-run']); assert r.exit_code == 0, r.output; "
        "import qbench.show.plots.files, qbench.run.runner; "
        "heavy = {'torch', 'transformers', 'ray', 'scipy.stats', 'lm_eval'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_interrupted_run_keeps_finished_rows_and_ends_its_worker(here: Path) -> None:
    """The second time it goes on with what was interrupted, without measuring the first cell again."""
    sleeper = interpreter(here, "sleep 600")
    arguments = ["run", "tiny.yaml", "--set", "backends=[{kind: int4}, {kind: fp16, python: " + sleeper + "}]"]
    arguments += ["--set", f"seed={in_order(2)}"]
    for sent, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        returned, error, children = interrupted(arguments, sent)
        assert returned == status
        assert ("finished rows are kept" in error) == (sent == signal.SIGINT)
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert (here / "results/tiny/throughput.csv").read_text().count(",int4,int4,") == 4


def interrupted(arguments: list[str], sent: int) -> tuple[int, str, list[psutil.Process]]:
    """Exit status, standard error and all processes of a program that gets a signal once its worker sleeps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qbench", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them, and what they start, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    children: list[psutil.Process] = []
    while not any(child.name() == "sleep" for child in children):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, sent)
    _, error = process.communicate(timeout=60)
    return process.returncode, error, children
