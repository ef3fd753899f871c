"""GPTQ: columns are rounded one after another, each making up for the error of those before it."""

from __future__ import annotations

from qbench.backends._gptqmodel import BACKEND, load_quantized
from qbench.backends.base import LoadedModel
from qbench.calibration import Calibration
from qbench.config import GPTQ
from qbench.models import LoadOptions


def load(options: LoadOptions, config: GPTQ, calibration: Calibration | None) -> LoadedModel:
    """Quantize the model in AutoGPTQ's format, or load `config.checkpoint`.

    Raises:
        QbenchError: a group size that does not fit, or a checkpoint that is missing or of another kind.
    """
    return load_quantized(
        options,
        config,
        calibration,
        method="gptq",
        format="gptq",
        sym=config.sym,
        desc_act=config.desc_act,
        packer=BACKEND.GPTQ_TORCH,
    )
