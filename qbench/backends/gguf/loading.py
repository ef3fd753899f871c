"""From a cell's options to a running llama.cpp."""

from __future__ import annotations

from typing import Any

import torch

from qbench.backends.gguf.check import check
from qbench.backends.gguf.convert import convert
from qbench.backends.gguf.file import File
from qbench.backends.gguf.options import FILE, GGUF
from qbench.compat.llama_cpp import build, features
from qbench.engine.base import About
from qbench.engine.llama_cpp.context import Model
from qbench.engine.llama_cpp.engine import LlamaCppEngine
from qbench.engine.text import context_of
from qbench.errors import QbenchError
from qbench.model.calibration import Calibration
from qbench.model.find import context_length, read_config
from qbench.model.load import LoadOptions, load_tokenizer

PLAIN = ("F32", "F16", "BF16", "")
"""Types of files without quantized weights; not every one names its type."""


def load_engine(options: LoadOptions, config: GGUF, calibration: Calibration | None) -> LlamaCppEngine:
    """Load the file of `config`, or one that is made in `options.work`; the engine has the threads that torch has.

    Raises:
        QbenchError: the file is damaged, of another model or another quantization, or some of its linears are in 16
            bits where the cell says that they are quantized.
    """
    quantize_s = None
    path = config.file
    if path is None:
        path = options.work / FILE
        quantize_s = convert(options, config, calibration, options.work)
    file = File(path.expanduser(), f"backends.{config.label}.file")
    tokenizer = load_tokenizer(options)
    check(file, options, config, tokenizer)
    model = Model(file.path)
    about = _about(file, model, read_config(options.folder), tokenizer, quantize_s)
    if (about.quantized_layers or 0) < (about.expected_layers or 0):
        left = next(tensor for tensor in file.linears if tensor.bits >= 16)
        raise QbenchError(
            f"backends.{config.label}: {left.name} is {left.type} in {file.path}, among quantized linears: its "
            "rows fit none of llama.cpp's blocks; use another backend"
        )
    return LlamaCppEngine(model, about, tokenizer, torch.get_num_threads())


def _about(file: File, model: Model, content: dict[str, Any], tokenizer: Any, quantize_s: float | None) -> About:
    linears = file.linears
    quantized = [tensor for tensor in linears if tensor.bits < 16]
    positions = _positions(content)
    return About(
        kernel=f"llama.cpp {build()} {'+'.join(features())}",
        dtype="float32",
        device="cpu",
        weight_bytes=model.weight_bytes,
        effective_bits_per_weight=sum(t.bytes for t in linears) * 8 / sum(t.weights for t in linears),
        vocab_size=content["vocab_size"],
        quantized_layers=len(quantized),
        expected_layers=len(linears) if quantized or file.file_type not in PLAIN else 0,
        lm_head_bits=int(file.head.bits),
        quantize_s=quantize_s,
        context=positions or context_of(tokenizer),
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id if tokenizer else None,
        eos_token_id=tokenizer.eos_token_id if tokenizer else None,
    )


def _positions(content: dict[str, Any]) -> int | None:
    """The context, or the window of attention if that is shorter: files leave windows out, as llama.cpp does."""
    windowed = content.get("use_sliding_window", True)
    limits = (context_length(content), content.get("sliding_window") if windowed else None)
    return min((limit for limit in limits if limit), default=None)
