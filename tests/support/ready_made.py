"""Checkpoints of a tiny Llama that were quantized already, written by hand from the formats' descriptions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Parts = dict[str, Tensor]
"""The tensors that take the place of a weight, by their last names."""


def write(
    model: Path, folder: Path, scheme: dict[str, Any], quantize: Callable[[Tensor], tuple[Parts, Tensor]]
) -> Parts:
    """Quantize the linears of the model's blocks into `folder`; their weights by name, dequantized in float64."""
    shutil.copytree(model, folder)
    kept, meant = {}, {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            kept[name] = tensor
            continue
        linear = name.removesuffix(".weight")
        parts, meant[linear] = quantize(tensor.double())
        kept |= {f"{linear}.{part}": value for part, value in parts.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))
    return meant


def compressed_scheme(kind: str, bits: int, **weights: Any) -> dict[str, Any]:
    """What llm-compressor says of weights with a scale a row and inputs with a scale a token."""
    of = {"num_bits": bits, "type": kind, "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**of, "strategy": "channel", "dynamic": False, **weights},
        "input_activations": {**of, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def write_fp8(model: Path, folder: Path) -> Parts:
    """E4M3 weights, whose largest value is 448."""

    def quantize(weight: Tensor) -> tuple[Parts, Tensor]:
        scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
        codes = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scale}, codes.double() * scale.double()

    return write(model, folder, compressed_scheme("float", 8), quantize)


def write_auto_round(model: Path, folder: Path, group_size: int) -> Parts:
    """Symmetric 4-bit weights as GPTQ packs them: eight codes an int32, the zero 8 stored as 7."""
    shifts = 4 * torch.arange(8)

    def pack(codes: Tensor) -> Tensor:
        """int64 [rows, columns] to int32 [rows / 8, columns]."""
        words = (codes.view(-1, 8, codes.shape[1]) << shifts[None, :, None]).sum(1)
        return torch.where(words >= 2**31, words - 2**32, words).int()

    def quantize(weight: Tensor) -> tuple[Parts, Tensor]:
        rows, columns = weight.shape
        grouped = weight.view(rows, -1, group_size)
        scales = (grouped.abs().amax(2, keepdim=True) / 7).half()
        codes = (grouped / scales.double()).round().clamp(-8, 7).long() + 8
        zeros = torch.full((rows, columns // group_size), 7)
        parts = {
            "qweight": pack(codes.view(rows, columns).T.contiguous()),
            "qzeros": pack(zeros).T.contiguous(),
            "scales": scales[:, :, 0].T.contiguous(),
        }
        return parts, ((codes - 8) * scales.double()).view(rows, columns)

    scheme = {
        **{"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "data_type": "int"},
        **{"bits": 4, "group_size": group_size, "sym": True, "block_name_to_quantize": "model.layers"},
    }
    return write(model, folder, scheme, quantize)
