"""The example of an engine, imported from its folder."""

import importlib.util

from tests.support.plugin import EXAMPLES

_spec = importlib.util.spec_from_file_location("qbench_numpy", EXAMPLES / "numpy_engine" / "qbench_numpy.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
NumpyEngine = _module.NumpyEngine
