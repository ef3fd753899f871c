"""The project's own INT4 (see `qbench.int4`)."""

from __future__ import annotations

import time

from qbench.backends.base import LoadedModel, block_linears, storage_bytes
from qbench.calibration import Calibration
from qbench.config import Int4
from qbench.errors import QbenchError
from qbench.int4 import QuantLinear, quantize_model
from qbench.models import LoadOptions, load_pretrained, load_tokenizer


def load(options: LoadOptions, config: Int4, calibration: Calibration | None) -> LoadedModel:
    """Load in 16 bit, then replace every linear of attention and MLP by its 4-bit counterpart.

    Raises:
        QbenchError: a weight holds NaN or infinity.
    """
    model = load_pretrained(options)
    expected = tuple(block_linears(model))
    started = time.perf_counter()
    try:
        quantize_model(
            model,
            expected,
            bits=config.bits,
            group_size=config.group_size,
            symmetric=config.symmetric,
            search=config.search,
            kernel=config.kernel,
        )
    except ValueError as error:
        raise QbenchError(f"{error}; the checkpoint is damaged or is not in 16 bit") from error
    quantize_s = time.perf_counter() - started
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=options.dtype,
        kernel=next(iter(layers.values())).kernel.name,
        quantized=tuple(layers),
        expected=expected,
        linear_bytes=storage_bytes(t for layer in layers.values() for t in layer.packed().values()),
        linear_weights=sum(layer.out_features * layer.in_features for layer in layers.values()),
        quantize_s=quantize_s,
    )
