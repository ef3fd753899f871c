"""llama.cpp on a GGUF file: written from the model's safetensors and quantized by llama.cpp, or made elsewhere.

Begin with `load`. `options` imports neither torch nor llama.cpp; `convert` writes files, `imatrix` reads the
calibration text for it, `file` reads files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.backends.gguf.options import GGUF

if TYPE_CHECKING:
    from pathlib import Path

    from qbench.engine.llama_cpp.engine import LlamaCppEngine
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

__all__ = ["CONFIG", "GGUF", "load", "quantize"]

CONFIG = GGUF


def quantize(options: LoadOptions, config: GGUF, calibration: Calibration | None, out: Path) -> float:
    """Write the model as a GGUF file into the folder `out`; return the seconds spent quantizing.

    Raises:
        QbenchError: see `qbench.backends.gguf.convert.convert`.
    """
    from qbench.backends.gguf.convert import convert

    return convert(options, config, calibration, out)


def load(options: LoadOptions, config: GGUF, calibration: Calibration | None) -> LlamaCppEngine:
    """Load the file of `config`, or one that is made of the model in `options.work`.

    Raises:
        QbenchError: see `qbench.backends.gguf.loading.load_engine`.
    """
    from qbench.backends.gguf.loading import load_engine

    return load_engine(options, config, calibration)
