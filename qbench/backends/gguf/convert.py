"""A model's safetensors as a GGUF file, quantized by llama.cpp itself.

The file holds what llama.cpp, Ollama and LM Studio need: dimensions, tensors by GGUF's names, tokenizer and chat
template. Weights are handed to llama.cpp as the checkpoint has them, without a detour over another 16-bit type; norms
and biases are float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from safetensors import safe_open

from qbench.backends.gguf import vocabulary
from qbench.backends.gguf.imatrix import CHUNKS, DATASET, Imatrix, collect, passed
from qbench.backends.gguf.options import ELSEWHERE, FILE, GGUF
from qbench.compat.llama_cpp import LOG
from qbench.errors import QbenchError
from qbench.model.architecture import Architecture, parse, rope_of
from qbench.model.calibration import Calibration
from qbench.model.find import INDEX, SINGLE_FILE, read_config, read_json
from qbench.model.load import LoadOptions, load_tokenizer

TYPES = {
    torch.float32: gguf.GGMLQuantizationType.F32,
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
}
PLAIN = {"F16": torch.float16, "BF16": torch.bfloat16}
"""Quantizations that are none: the file is written in this type."""

ROPE_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the checkpoint, still on disk."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def convert(options: LoadOptions, config: GGUF, calibration: Calibration | None, out: Path) -> float:
    """Write the model of `options` as `config.quant` into the folder `out`; return the seconds spent quantizing.

    They include those of reading the calibration text.

    Raises:
        QbenchError: its architecture is not known here, a tensor is missing, or llama.cpp refuses.
    """
    assert config.quant is not None, "a file is not made again"
    out.mkdir(parents=True, exist_ok=True)
    content = read_config(options.folder)
    config.check_model(content)
    if config.quant in PLAIN:
        start = time.perf_counter()
        write(options, content, out / FILE, PLAIN[config.quant], config.quant)
        return time.perf_counter() - start
    source = out / f"source-{FILE}"
    try:
        write(options, content, source, None, None, calibration)
        start = time.perf_counter()
        matrix = collect(source, options, calibration) if calibration else None
        options.progress("quantizing", 0, 1)
        quantize(source, out / FILE, config, matrix)
        return time.perf_counter() - start
    finally:
        source.unlink(missing_ok=True)


def quantize(source: Path, target: Path, config: GGUF, matrix: Imatrix | None) -> None:
    """Let llama.cpp write `source` as `config.quant`, with an importance matrix or without.

    Raises:
        QbenchError: it refuses.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{config.quant}")
    parameters.nthread = torch.get_num_threads()
    LOG.restart()
    with passed(matrix, parameters):
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    if failed:
        raise QbenchError(
            f"backends.{config.label}.quant: llama.cpp cannot quantize this model as {config.quant}: "
            f"{LOG.complaint or 'it gives no reason'}; choose another quant"
        )


def write(
    options: LoadOptions,
    content: Mapping[str, Any],
    path: Path,
    dtype: torch.dtype | None,
    quant: str | None,
    calibration: Calibration | None = None,
) -> None:
    """Write the model as one GGUF file whose matrices are of `dtype`, or as the checkpoint has them if None.

    The header names the calibration text of an importance matrix, if there is to be one.

    Raises:
        QbenchError: the checkpoint lacks a tensor, or has one that is not known here.
    """
    model = parse(content, str(options.folder))
    arch = gguf.MODEL_ARCH.QWEN2 if model.model_type == "qwen2" else gguf.MODEL_ARCH.LLAMA
    sources = dict(_named(options.folder, model, arch))
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    try:
        _describe(writer, content, model, options.folder)
        if quant:
            writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{quant}"))
        if calibration:
            writer.add_string(DATASET, f"sha256:{calibration.sha256}")
            writer.add_uint32(CHUNKS, calibration.samples)
        vocabulary.write(writer, load_tokenizer(options), model.vocab_size, f"{options.folder}")
        frequencies = rope_frequencies(content, model)
        if frequencies is not None:
            writer.add_tensor_info(ROPE_FREQUENCIES, frequencies.shape, frequencies.dtype, frequencies.nbytes)
        for name, source in sources.items():
            stored = _stored(source, dtype)
            size = math.prod(source.shape) * stored.itemsize
            # Only a raw type tells bfloat16, which NumPy lacks.
            writer.add_tensor_info(name, source.shape, np.dtype(np.float32), size, raw_dtype=TYPES[stored])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if frequencies is not None:
            writer.write_tensor_data(frequencies)
        for number, (name, source) in enumerate(sources.items()):
            options.progress("converting", number, len(sources))
            writer.write_tensor_data(_read(name, source, model, arch, _stored(source, dtype)))
    finally:
        writer.close()


def rope_frequencies(content: Mapping[str, Any], model: Architecture) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """What llama.cpp divides the rotary frequencies by for Llama 3.1's long contexts: float32 [head_dim / 2].

    Long waves by `factor`, short ones by 1, those between by what is between, as transformers'
    `_compute_llama3_parameters` (`modeling_rope_utils.py`) has it. None for other scalings, which are header entries.
    """
    rope = rope_of(content)
    if rope["rope_type"] != "llama3":
        return None
    wavelength = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, model.head_dim, 2) / model.head_dim)
    cycles = rope["original_max_position_embeddings"] / wavelength
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((cycles - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - kept) / rope["factor"] + kept), np.float32)


def _describe(writer: Any, content: Mapping[str, Any], model: Architecture, folder: Path) -> None:
    """The header's dimensions."""
    rope = rope_of(content)
    writer.add_type("model")
    writer.add_name(str(content.get("_name_or_path") or folder.name))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(model.vocab_size)
    writer.add_block_count(model.num_hidden_layers)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_attention_heads)
    writer.add_head_count_kv(model.num_key_value_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(content["rms_norm_eps"])
    if model.max_position_embeddings:
        writer.add_context_length(model.max_position_embeddings)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _named(folder: Path, model: Architecture, arch: gguf.MODEL_ARCH) -> Iterator[tuple[str, Source]]:
    """The checkpoint's tensors by GGUF's names, in the order of the blocks."""
    index = folder / INDEX
    files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [SINGLE_FILE]
    names = gguf.get_tensor_name_map(arch, model.num_hidden_layers)
    found: dict[str, Source] = {}
    for file in files:
        with safe_open(folder / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if name.endswith("rotary_emb.inv_freq") or (target == "output.weight" and model.tied):
                    continue
                if target is None:
                    raise QbenchError(f"{folder / file}: {name} is not written as GGUF here; {ELSEWHERE}")
                part = tensors.get_slice(name)
                dtype = getattr(torch, DTYPES[part.get_dtype()])
                found[target] = Source(folder / file, name, tuple(part.get_shape()), dtype)
    needed = ["token_embd.weight", "output_norm.weight", *(() if model.tied else ["output.weight"])]
    linears = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")
    needed += [f"blk.{block}.{name}.weight" for block in range(model.num_hidden_layers) for name in linears]
    missing = [name for name in needed if name not in found]
    if missing:
        raise QbenchError(f"{folder}: the checkpoint has nothing for {missing[0]}; download it again")
    rest = sorted(found.keys() - set(needed))  # biases
    return iter([(name, found[name]) for name in [*needed, *rest]])


DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of what is converted here."""


def _stored(source: Source, dtype: torch.dtype | None) -> torch.dtype:
    return torch.float32 if len(source.shape) == 1 else dtype or source.dtype


def _read(
    name: str, source: Source, model: Architecture, arch: gguf.MODEL_ARCH, dtype: torch.dtype
) -> np.ndarray[Any, Any]:
    with safe_open(source.file, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(source.name)
    if arch == gguf.MODEL_ARCH.LLAMA and (".attn_q." in name or ".attn_k." in name):
        tensor = interleaved(tensor, model.num_attention_heads if ".attn_q." in name else model.num_key_value_heads)
    tensor = tensor.to(dtype).contiguous()
    return (tensor.view(torch.int16) if dtype == torch.bfloat16 else tensor).numpy()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key projection as llama.cpp's rotation of Llama wants them.

    transformers rotates row i of a head with row i + head_dim / 2, llama.cpp row 2i with row 2i + 1.
    """
    halves = weight.view(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)
