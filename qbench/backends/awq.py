"""Activation-aware weight quantization: asymmetric integers, the channels that matter scaled up beforehand."""

from __future__ import annotations

from qbench.backends._gptqmodel import BACKEND, load_quantized
from qbench.backends.base import LoadedModel
from qbench.calibration import Calibration
from qbench.config import AWQ
from qbench.models import LoadOptions


def load(options: LoadOptions, config: AWQ, calibration: Calibration | None) -> LoadedModel:
    """Quantize the model in AutoAWQ's GEMM format, or load `config.checkpoint`.

    Raises:
        QbenchError: a group size that does not fit, or a checkpoint that is missing or of another kind.
    """
    return load_quantized(
        options,
        config,
        calibration,
        method="awq",
        format="gemm",
        sym=False,
        packer=BACKEND.AWQ_TORCH,  # the automatic choice needs a CUDA device
    )
