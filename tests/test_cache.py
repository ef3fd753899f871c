"""Checkpoints by content: made once, whole or not at all, verified, and made again when damaged."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from qbench.cli.app import app
from qbench.errors import QbenchError
from qbench.run import checkpoints, fingerprint
from tests.support.runs import config, run

FACTS = {"model": "m", "kind": "awq", "group_size": 128}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


class Maker:
    """Writes a checkpoint and counts how often."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, folder: Path) -> float:
        self.made += 1
        (folder / "sub").mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"w" * 1000)
        (folder / "sub" / "config.json").write_text("{}")
        return 12.5


def obtain(make: Maker, said: list[str] | None = None) -> tuple[checkpoints.Entry, bool]:
    return checkpoints.obtain(FACTS, "model", make, (said if said is not None else []).append)


def test_a_checkpoint_is_made_once(own_cache: Path) -> None:
    make = Maker()
    first, found_first = obtain(make)
    again, found_again = obtain(make)
    assert (found_first, found_again, make.made) == (False, True, 1)
    assert first.folder == again.folder == own_cache / fingerprint.key(FACTS)
    assert again.manifest.quantize_s == 12.5
    assert again.bytes == 1002 + (again.folder / checkpoints.MANIFEST).stat().st_size


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "manifest"])
def test_a_damaged_checkpoint_is_made_again(damage: str) -> None:
    make, said = Maker(), list[str]()
    weights = obtain(make)[0].folder / "weights.safetensors"
    match damage:
        case "changed":
            weights.write_bytes(b"w" * 999 + b"v")
        case "shorter":
            weights.write_bytes(b"w" * 999)
        case "missing":
            weights.unlink()
        case "manifest":
            (weights.parent / checkpoints.MANIFEST).write_text('{"key": ')
    entry, found = obtain(make, said)
    assert (found, make.made) == (False, 2)
    assert not entry.damaged()
    assert "is damaged" in said[-1]


def test_one_that_fails_leaves_nothing(own_cache: Path) -> None:
    def fail(folder: Path) -> float:
        folder.mkdir()
        (folder / "half").write_text("")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        checkpoints.obtain(FACTS, "model", fail, print)
    assert not [path for path in own_cache.iterdir() if path.suffix != ".lock"]
    assert obtain(Maker())[1] is False


HANGING = """
import json, sys, time
from qbench.run import checkpoints

def hang(folder):
    folder.mkdir()
    (folder / "half").write_text("")
    time.sleep(600)

checkpoints.obtain(json.loads(sys.argv[1]), "model", hang, print)
"""


def test_one_whose_process_was_killed_is_made_by_the_next(own_cache: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HANGING, json.dumps(FACTS)])
    try:
        deadline = time.monotonic() + 60
        while not list(own_cache.glob(".*.partial/half")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    make = Maker()
    assert obtain(make)[1] is False
    assert make.made == 1
    assert not list(own_cache.glob(".*.partial"))


def test_a_cache_that_cannot_be_written_is_said(own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(QbenchError, match=r"checkpoints: File exists; make room .*, set QBENCH_CACHE to another"):
        obtain(Maker())


def test_commands_show_verify_and_remove() -> None:
    cli = CliRunner()
    assert "0 checkpoints" in cli.invoke(app, ["cache", "ls"]).output
    entry, _ = obtain(Maker())
    key = entry.manifest.key
    listed = cli.invoke(app, ["cache", "ls"]).output
    assert key[:12] in listed, listed
    assert "awq" in listed
    verified = cli.invoke(app, ["cache", "verify"])
    assert (verified.exit_code, verified.output) == (0, f"{key}: ok\n")
    (entry.folder / "weights.safetensors").write_text("")
    verified = cli.invoke(app, ["cache", "verify"])
    assert verified.exit_code == 1
    assert "damaged: weights.safetensors" in verified.output
    assert cli.invoke(app, ["cache", "rm"]).exit_code == 2
    assert cli.invoke(app, ["cache", "rm", "zz"]).exit_code == 2
    assert cli.invoke(app, ["cache", "rm", key[:6]]).exit_code == 0
    assert not entry.folder.exists()
    assert checkpoints.entries() == []


def test_runs_share_a_checkpoint_and_rows_say_so(tiny_llama: Path, tmp_path: Path) -> None:
    settings = config(tiny_llama, [{"kind": "int4"}])
    first = run(settings, tmp_path / "one")[0]
    second = run(settings, tmp_path / "two")[0]
    a, b = (pd.read_csv(folder / "cells.csv").iloc[0] for folder in (first, second))
    assert (a["cached"], b["cached"]) == (False, True)
    assert a["quantize_s"] == b["quantize_s"] > 0
    assert a["effective_bits_per_weight"] == b["effective_bits_per_weight"] == 4.25
    other = run(config(tiny_llama, [{"kind": "int4", "group_size": 64}]), tmp_path / "three")[0]
    assert not pd.read_csv(other / "cells.csv").iloc[0]["cached"]
    assert len(checkpoints.entries()) == 2


def test_without_the_cache_nothing_is_written(tiny_llama: Path, tmp_path: Path, own_cache: Path) -> None:
    folder = run(config(tiny_llama, [{"kind": "int4"}], cache=False), tmp_path / "results")[0]
    cell = pd.read_csv(folder / "cells.csv").iloc[0]
    assert pd.isna(cell["cached"])
    assert cell["quantize_s"] > 0
    assert not own_cache.exists()
