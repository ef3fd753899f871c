"""scipy's distributions without the rest of `scipy.special`, which takes longer to import than a run to read.

The package wraps its functions for other array libraries, and for that imports NumPy's tests, its Fortran compiler and
its random generators.

Relied on: the functions are those of the compiled module `scipy.special._ufuncs`, which imports no module of its
package but compiled ones.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.util import find_spec
from types import ModuleType

__all__ = ["bdtr", "fdtri", "stdtr", "stdtrit"]


def _functions() -> ModuleType:
    name = "scipy.special"
    # Another thread that imports the package meanwhile would take the empty one for it.
    if name in sys.modules or threading.active_count() > 1:
        return importlib.import_module(name)
    spec = find_spec(name)
    assert spec is not None, "scipy is installed with qbench"
    empty = ModuleType(name)
    empty.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = empty
    try:
        return importlib.import_module(f"{name}._ufuncs")
    except ImportError:
        del sys.modules[name]
        return importlib.import_module(name)
    finally:
        if sys.modules.get(name) is empty:
            del sys.modules[name]


_found = _functions()
bdtr, fdtri, stdtr, stdtrit = _found.bdtr, _found.fdtri, _found.stdtr, _found.stdtrit
