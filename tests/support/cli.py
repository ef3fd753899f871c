"""The program in this process, for tests of what commands do and not of how they start."""

import subprocess
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from qbench.cli.app import app


def qbench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What `qbench` with these arguments printed in the folder `cwd`, and its exit status."""
    with chdir(cwd):
        done = CliRunner().invoke(app, arguments)
    return subprocess.CompletedProcess(["qbench", *arguments], done.exit_code, done.stdout, done.stderr)
