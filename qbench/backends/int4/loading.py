"""Loading a model in INT4: stream, join, place."""

from __future__ import annotations

import time

from torch import Tensor

from qbench.backends.int4 import checkpoint
from qbench.backends.int4.fuse import join
from qbench.backends.int4.options import Int4
from qbench.backends.int4.stream import place, place_head, quantizer, stream
from qbench.engine.torch.loaded import LoadedModel, block_linears, storage_bytes
from qbench.errors import QbenchError
from qbench.int4 import QuantizedTensor, QuantLinear
from qbench.model.load import LoadOptions, load_tokenizer


def load_quantized(options: LoadOptions, config: Int4) -> LoadedModel:
    """Quantize the linears of attention and MLP as they are read, or read them quantized from `config.checkpoint`.

    Raises:
        QbenchError: `options` would spread the model, a weight holds NaN or infinity, the kernel does not serve, or the
            files are not right: see `qbench.backends.int4.stream.stream` and `qbench.backends.int4.checkpoint.load`.
    """
    if options.device_map_auto:
        raise QbenchError(f"backends.{config.label}: int4 loads onto one device; use device_map: none")
    config = config.resolved()
    quantize_one = Stopwatch(config)
    if config.checkpoint is None:
        model, weights = stream(options, quantize_one)
    else:
        model, weights = checkpoint.load(options, config.checkpoint.expanduser())
    expected, quantized = tuple(block_linears(model)), tuple(weights)
    try:
        join(model, weights, kernel=config.kernel)
        place(model, weights, kernel=config.kernel)
    except ValueError as error:
        raise QbenchError(f"backends.{config.label}: {error}; use `kernel: auto`, or other settings") from error
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    if config.lm_head == "int8":
        place_head(model)
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=options.dtype,
        kernel="+".join(sorted({layer.kernel_name for layer in layers})),
        quantized=quantized,
        expected=expected,
        linear_bytes=storage_bytes(t for layer in layers for t in layer.packed().values()),
        linear_weights=sum(layer.out_features * layer.in_features for layer in layers),
        lm_head_bits=8 if config.lm_head == "int8" else 16,
        quantize_s=quantize_one.seconds if config.checkpoint is None else None,
    )


class Stopwatch:
    """A quantizer that counts its time."""

    def __init__(self, config: Int4) -> None:
        self._quantize_one = quantizer(config)
        self.seconds = 0.0

    def __call__(self, name: str, weight: Tensor) -> QuantizedTensor:
        started = time.perf_counter()
        quantized = self._quantize_one(name, weight)
        self.seconds += time.perf_counter() - started
        return quantized
