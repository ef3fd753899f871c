"""The project's own INT4: a model loaded tensor by tensor into the weights of `qbench.int4`.

Begin with `load`. `options` and `manifest` import no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.backends.int4.options import Int4

if TYPE_CHECKING:
    from pathlib import Path

    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

__all__ = ["CONFIG", "Int4", "load", "quantize"]

CONFIG = Int4


def quantize(options: LoadOptions, config: Int4, calibration: Calibration | None, out: Path) -> float:
    """Write what `qbench quantize` writes into the folder `out`; return the seconds spent quantizing.

    Raises:
        QbenchError: see `qbench.backends.int4.checkpoint.write`.
    """
    from qbench.backends.int4 import checkpoint
    from qbench.backends.int4.loading import timed_quantizer

    quantize_one = timed_quantizer(options, config, calibration)
    checkpoint.write(options, config, quantize_one, out)
    return quantize_one.seconds


def load(options: LoadOptions, config: Int4, calibration: Calibration | None) -> LoadedModel:
    """Quantize the linears of attention and MLP as they are read, or read them quantized from `config.checkpoint`.

    Raises:
        QbenchError: see `qbench.backends.int4.loading.load_quantized`.
    """
    from qbench.backends.int4.loading import load_quantized

    return load_quantized(options, config, calibration)
