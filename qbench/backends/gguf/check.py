"""Whether a GGUF file is one of the run's model, and of the quantization that its row names.

Its dimensions and vocabulary have to be those of config.json and tokenizer, and its input embedding, dequantized, has
to follow that of the safetensors: a fine-tune or another model of the same shape does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from qbench.backends.gguf.file import File
from qbench.backends.gguf.options import GGUF
from qbench.errors import QbenchError
from qbench.model.find import INDEX, SINGLE_FILE, read_config, read_json
from qbench.model.load import LoadOptions

DIMENSIONS = {
    "{arch}.block_count": "num_hidden_layers",
    "{arch}.embedding_length": "hidden_size",
    "{arch}.feed_forward_length": "intermediate_size",
    "{arch}.attention.head_count": "num_attention_heads",
    "{arch}.attention.head_count_kv": "num_key_value_heads",
}
"""Keys of the header and of config.json."""

EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
"""Names of the input embedding in safetensors."""

ROWS = 16
"""Of the embedding, that are compared."""

CORRELATION = 0.8
"""At least that of a row and its quantized self: about 0.95 in Q2_K, 0 in another model's."""


def check(file: File, options: LoadOptions, config: GGUF, tokenizer: Any) -> None:
    """Refuse a file that is not what the cell's row would say.

    Raises:
        QbenchError: it is of another model, or another quantization than `quant`.
    """
    if config.quant and file.file_type != config.quant:
        raise QbenchError(f"{file.path} is {file.file_type or 'of no known quantization'}, not {config.quant}")
    remedy = "give a GGUF file of this model"
    content = read_config(options.folder)
    for key, name in DIMENSIONS.items():
        found, wanted = file.value(key), content.get(name)
        if found is not None and wanted is not None and found != wanted:
            raise QbenchError(
                f"backends.{config.label}.file: {file.path} has {name} {found}, and the model {wanted}; {remedy}"
            )
    _check_vocabulary(config, file, file.value("tokenizer.ggml.tokens"), tokenizer, remedy)
    _check_embedding(config, file, options.folder, remedy)
    if not file.linears:
        raise QbenchError(f"backends.{config.label}.file: {file.path} has no linears of attention and MLP; {remedy}")


def _check_vocabulary(config: GGUF, file: File, tokens: list[str] | None, tokenizer: Any, remedy: str) -> None:
    if not tokens or tokenizer is None:
        return
    added = set(tokenizer.get_added_vocab().values())  # which converters may write otherwise
    for token, number in tokenizer.get_vocab().items():
        if number not in added and (number >= len(tokens) or tokens[number] != token):
            there = repr(tokens[number]) if number < len(tokens) else "nothing"
            raise QbenchError(
                f"backends.{config.label}.file: {file.path} has another vocabulary: token {number} is {there} there "
                f"and {token!r} in the model's tokenizer; {remedy}"
            )


def _check_embedding(config: GGUF, file: File, folder: Path, remedy: str) -> None:
    reference = _embedding(folder)
    if reference is None:
        return
    stored = next((tensor for tensor in file.tensors if tensor.name == "token_embd.weight"), None)
    if stored is None or stored.weights % reference.shape[1]:
        raise QbenchError(f"backends.{config.label}.file: {file.path} has no embedding of this width; {remedy}")
    chosen = np.linspace(0, min(stored.weights // reference.shape[1], len(reference)) - 1, ROWS).astype(int)
    kind = getattr(gguf.GGMLQuantizationType, stored.type)
    found = gguf.dequantize(file.data(stored.name)[chosen], kind).astype(np.float64).ravel()
    correlation = np.corrcoef(found, reference[chosen].astype(np.float64).ravel())[0, 1]
    if not correlation > CORRELATION:
        raise QbenchError(
            f"backends.{config.label}.file: {file.path} holds other weights than the model (its embedding correlates "
            f"by {correlation:.2f}); {remedy}"
        )


def _embedding(folder: Path) -> np.ndarray[Any, Any] | None:
    """The input embedding [vocabulary, hidden_size] in float32; None under a name that is not known here."""
    index = folder / INDEX
    files = read_json(index)["weight_map"] if index.is_file() else dict.fromkeys(EMBEDDINGS, SINGLE_FILE)
    for name in EMBEDDINGS:
        if name in files:
            with safe_open(folder / files[name], framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    tensor: torch.Tensor = tensors.get_tensor(name)
                    return tensor.float().numpy()
    return None
