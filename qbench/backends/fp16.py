"""The 16-bit reference that every other backend is compared with."""

from __future__ import annotations

from qbench.config import FP16
from qbench.engine.torch.loaded import LoadedModel, block_linears, storage_bytes
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, load_pretrained, load_tokenizer


def load(options: LoadOptions, config: FP16, calibration: Calibration | None) -> LoadedModel:
    """The checkpoint as published, in `options.dtype`. Nothing is quantized, so nothing is expected to be."""
    model = load_pretrained(options)
    linears = block_linears(model).values()
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=model.dtype,
        kernel="torch.nn.Linear",
        linear_bytes=storage_bytes(tensor for linear in linears for tensor in linear.parameters()),
        linear_weights=sum(linear.weight.numel() for linear in linears),
    )
