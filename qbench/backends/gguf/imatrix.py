"""The importance matrix by which llama.cpp weighs the errors of a quantization: what the weights are multiplied by.

For every matrix of the blocks, the mean square of each input over the tokens of the calibration text, as llama.cpp's
`llama-imatrix` collects it (`tools/imatrix/imatrix.cpp`). The embeddings have none there either.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from qbench.compat.llama_cpp import Inputs, Products
from qbench.engine.llama_cpp.context import Context, Model, Tokens, at_once
from qbench.errors import QbenchError
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, load_tokenizer

Imatrix = Mapping[str, Inputs]
"""Mean squares [in_features], by the matrix's name."""

DATASET, CHUNKS = "quantize.imatrix.dataset", "quantize.imatrix.chunks_count"
"""Keys of the header, as `llama-quantize` writes them."""


def collect(source: Path, options: LoadOptions, calibration: Calibration) -> Imatrix:
    """Read the calibration text with a GGUF file in 16 or 32 bits.

    Raises:
        QbenchError: the text is too short, or makes the model overflow.
    """
    sums: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    rows: dict[str, int] = {}

    def see(name: str, inputs: Inputs) -> None:
        sums[name] = sums.get(name, 0) + np.einsum("ij,ij->j", inputs, inputs, dtype=np.float64)
        rows[name] = rows.get(name, 0) + len(inputs)

    model = Model(source)
    sequences = calibration.sequences(load_tokenizer(options), model.vocab_size)
    piece = at_once(model.vocab_size)
    context = Context(
        model,
        tokens=calibration.length,
        sequences=1,
        outputs=piece,
        unified=True,
        threads=torch.get_num_threads(),
        products=Products("blk.", see),
    )
    try:
        for number, ids in enumerate(sequences):
            options.progress("reading the calibration text", number, len(sequences))
            count = len(ids)
            # All logits are wanted: without, the last block would compute no token but the last.
            tokens = Tokens(np.array(ids), np.arange(count), [(0,)] * count, np.ones(count, bool))
            for _ in context.read(tokens, piece):
                pass
            context.forget()
    finally:
        context.close()
    found = {name: (total / rows[name]).astype(np.float32) for name, total in sums.items()}
    bad = next((name for name, values in found.items() if not np.isfinite(values).all()), None)
    if bad:
        raise QbenchError(f"imatrix: {bad} is multiplied by NaN or infinity on the calibration text; leave imatrix out")
    return found


@contextmanager
def passed(matrix: Imatrix | None, parameters: Any) -> Iterator[None]:
    """Make it that of `llama_model_quantize_params` for a while."""
    if matrix is None:
        yield
        return
    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix) + 1))()  # the last one, without a name, ends it
    for entry, (name, values) in zip(entries, matrix.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = entries
    yield
