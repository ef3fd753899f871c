"""`python -m qbench`."""

from qbench.cli.app import app

app(prog_name="qbench")
