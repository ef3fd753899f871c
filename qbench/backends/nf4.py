"""4-bit NormalFloat by bitsandbytes, through transformers' own loader.

On a CPU with AVX512-BF16 bitsandbytes repacks every weight at its first forward: the scales become bfloat16, and the
quantized scales of `double_quant` are undone. There both settings hold 4.25 bits a weight and multiply in bfloat16.
Elsewhere a float32 scale for 64 weights makes 4.5 bits, and `double_quant` about 4.13.
"""

from __future__ import annotations

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig

from qbench.config import NF4
from qbench.engine.torch.loaded import LoadedModel, block_linears, run_once, storage_bytes
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, load_pretrained, load_tokenizer, skeleton


def load(options: LoadOptions, config: NF4, calibration: Calibration | None) -> LoadedModel:
    """Quantize while loading. Embeddings and the output head stay in `options.dtype`; no calibration is needed."""
    expected = block_linears(skeleton(options))
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=options.dtype,
        bnb_4bit_use_double_quant=config.double_quant,
    )
    model = load_pretrained(options, quantization_config=how)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit) and name in expected}
    run_once(linears.values(), options)
    scales = tuple(tensor for linear in linears.values() for tensor in state_tensors(linear.weight.quant_state))
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=model.dtype,
        kernel=Linear4bit.__name__,
        quantized=tuple(linears),
        expected=tuple(expected),
        extra_tensors=scales,
        linear_bytes=storage_bytes([*(p for linear in linears.values() for p in linear.parameters()), *scales]),
        linear_weights=sum(linear.weight.numel() for linear in expected.values()),
    )


def state_tensors(state: QuantState) -> list[torch.Tensor]:
    """Block scales, code book and, with double quantization, the scales of the scales with their code book."""
    tensors = [value for value in vars(state).values() if isinstance(value, torch.Tensor)]
    nested = getattr(state, "state2", None)
    return tensors + (state_tensors(nested) if nested is not None else [])
