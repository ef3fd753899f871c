"""The program `qbench`, as `python -m qbench` and as the installed command."""

from __future__ import annotations

import gc
import os

GARBAGE_AFTER = 50_000
"""New objects between two searches for garbage; Python's own value is 700."""


def main() -> None:
    """Parse the command line and do what it says."""
    # What is imported stays: to look for garbage in it takes a tenth of a short command.
    gc.set_threshold(GARBAGE_AFTER)
    # To find plug-ins for itself, pydantic reads the metadata of every installed distribution; qbench uses none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from qbench.cli.app import app

    app(prog_name="qbench")


if __name__ == "__main__":
    main()
