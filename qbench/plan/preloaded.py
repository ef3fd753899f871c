"""What the process that `qbench.plan.backends` forks its attempts from imports once: what most kinds have in common.

It is nothing's business but that process's: importing it discards what the process prints from then on. What cannot be
imported here is tried again, and told, by every kind that needs it.
"""

from __future__ import annotations

import importlib
import os
from contextlib import suppress

from qbench.config import Backend

_nowhere = os.open(os.devnull, os.O_WRONLY)
for _stream in (1, 2):
    os.dup2(_nowhere, _stream)
for _name in Backend.modules:
    with suppress(Exception):
        importlib.import_module(_name)
