"""How long commands take that need no model: wall seconds of a fresh interpreter each, from start to end.

`plan` is given a bandwidth: measuring one takes a second of its own. Commands that read a run read the published one of
the smoke configuration, five cells with 2,400 answers each. The target is six tenths of a second for each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import record

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "llama3-8b-shape.yaml")
RUN = str(ROOT / "results" / "published" / "smoke-xeon-2core")
COMMANDS = {
    "python, nothing imported": ["-c", ""],
    "--help": ["-m", "qbench", "--help"],
    "--version": ["-m", "qbench", "--version"],
    "run --help": ["-m", "qbench", "run", "--help"],
    "run --dry-run": ["-m", "qbench", "run", str(ROOT / "configs" / "smoke.yaml"), "--dry-run"],
    "plan": ["-m", "qbench", "plan", CONFIG, "--memory", "24GiB", "--bandwidth", "1TB/s"],
    "init": ["-m", "qbench", "init", "x.yaml", "--yes", "--force", "--model", "llama-3-8b", "--memory", "24GiB"],
    "schema": ["-m", "qbench", "schema"],
    "validate": ["-m", "qbench", "validate", CONFIG],
    "cache ls": ["-m", "qbench", "cache", "ls"],
    "recommend": ["-m", "qbench", "recommend", RUN],
    "compare": ["-m", "qbench", "compare", RUN, RUN],
    "gate": ["-m", "qbench", "gate", RUN, "--baseline", RUN, "--max-drop", "1"],
    "card": ["-m", "qbench", "card", RUN, "--backend", "int4"],
    "recommend, no such folder": ["-m", "qbench", "recommend", "nowhere"],
}
TARGET_S = 0.6


def seconds(command: list[str], folder: str) -> float:
    """Wall time of one run of `command` in `folder`."""
    start = time.perf_counter()
    # Compiled modules are kept, as where qbench is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Take every command in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the table")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS.values():  # compiles what is imported
            seconds(command, folder)
        for _ in range(options.turns):
            for name, command in COMMANDS.items():
                taken[name].append(seconds(command, folder))
    rows = [
        {
            "command": name,
            "median_s": float(np.median(times)),
            "max_s": max(times),
            "under_target": bool(np.median(times) < TARGET_S),
        }
        for name, times in taken.items()
    ]
    record.keep(options.out, {"startup": rows}, script="startup")


if __name__ == "__main__":
    main()
