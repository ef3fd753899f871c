"""transformers imports some libraries wherever they are installed, needed or not; together they take as long as torch.

Relied on: its modules import these libraries if `is_<name>_available()`, an `lru_cache` that asks
`importlib.util.find_spec`, and take the class or function that needs one of them to be unused if it is not there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection

OPTIONAL = {
    "hqq": "transformers.cache_utils",  # for a quantized cache; brings torch's compiler
    "torchao": "transformers.quantizers.auto",  # for models that it has quantized
    "scipy": "transformers.loss.loss_utils",  # for the loss of models that detect objects
}
"""Names of libraries, as modules and as distributions, and the module of transformers that imports each."""


def import_transformers(needed: Collection[str]) -> None:
    """Import transformers' classes of models without the libraries of `OPTIONAL` that are not among `needed`.

    Later imports of these libraries succeed as always. Does nothing where transformers has been imported before.
    """
    unused = [name for name in OPTIONAL if name not in needed and name not in sys.modules]
    if "transformers" in sys.modules or not unused:
        return
    # What Python takes for "there is no such module".
    sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type]
    try:
        for module in OPTIONAL.values():
            importlib.import_module(module)
        importlib.import_module("transformers.modeling_utils")
    except ImportError:
        # Without transformers the cell says so, and how to install it, when it loads its backend.
        pass
    finally:
        for name in unused:
            del sys.modules[name]
    found = sys.modules.get("transformers.utils.import_utils")
    for name in unused:
        if found:
            getattr(found, f"is_{name}_available").cache_clear()
