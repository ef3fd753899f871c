"""`python -m qbench`."""

from qbench.cli import app

app(prog_name="qbench")
