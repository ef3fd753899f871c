"""The program in this process, with warm workers: for tests of what commands do and not of how they start."""

import subprocess
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

from typer.testing import CliRunner

from qbench.cli.app import app
from tests.support.warm import WarmExecutor


def qbench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What `qbench` with these arguments printed in the folder `cwd`, and its exit status."""
    with chdir(cwd), patch("qbench.run.local.LocalExecutor", WarmExecutor):
        done = CliRunner().invoke(app, arguments)
    return subprocess.CompletedProcess(["qbench", *arguments], done.exit_code, done.stdout, done.stderr)
