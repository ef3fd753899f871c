"""Loading a model in INT4: stream, join, place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from qbench.backends.int4 import checkpoint
from qbench.backends.int4.calibrate import quantize_with_text
from qbench.backends.int4.fuse import join
from qbench.backends.int4.options import Int4
from qbench.backends.int4.stream import QuantizeOne, place, place_head, quantizer, stream
from qbench.engine.torch.loaded import LoadedModel, block_linears, storage_bytes
from qbench.errors import QbenchError
from qbench.int4 import QuantizedTensor, QuantLinear
from qbench.int4.native import give_back
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, load_pretrained, load_tokenizer


def load_quantized(options: LoadOptions, config: Int4, calibration: Calibration | None = None) -> LoadedModel:
    """Quantize the linears of attention and MLP as they are read, or read them quantized from `config.checkpoint`.

    Raises:
        QbenchError: `options` would spread the model, a weight holds NaN or infinity, the kernel does not serve, or the
            files are not right: see `qbench.backends.int4.stream.stream` and `qbench.backends.int4.checkpoint.load`.
    """
    if options.device_map_auto:
        raise QbenchError(f"backends.{config.label}: int4 loads onto one device; use device_map: none")
    config = config.resolved()
    quantize_s = None
    if config.checkpoint is None:
        quantize_one = timed_quantizer(options, config, calibration)
        model, weights = stream(options, quantize_one)
        quantize_s = quantize_one.seconds
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
        quantize_s=quantize_s,
    )


class Stopwatch:
    """A quantizer that counts its time."""

    def __init__(self, quantize_one: QuantizeOne) -> None:
        self._quantize_one = quantize_one
        self.seconds = 0.0

    def __call__(self, name: str, weight: Tensor) -> QuantizedTensor:
        with self.running():
            return self._quantize_one(name, weight)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done within."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def timed_quantizer(options: LoadOptions, config: Int4, calibration: Calibration | None) -> Stopwatch:
    """What quantizes the model's linears one by one as `config` says, with the calibration text if it asks for that.

    Raises:
        QbenchError: see `qbench.backends.int4.calibrate.quantize_with_text`.
    """
    if not config.calibrated:
        return Stopwatch(quantizer(config))
    assert calibration is not None, "config.calibrates"
    found: dict[str, QuantizedTensor] = {}
    watch = Stopwatch(lambda name, weight: found.pop(name.removesuffix(".weight")))
    model, tokenizer = load_pretrained(options), load_tokenizer(options)
    with watch.running():
        found.update(quantize_with_text(model, tokenizer, config, calibration, options.progress))
    del model
    give_back()
    return watch
