"""Our INT4 in MLX: the weights of `qbench.int4` in mlx-lm's models and MLX's own quantized product.

MLX's affine form of a weight is scales · q + biases with codes q; ours is scales (q - 8) + zeros with the same codes.
So biases = zeros - 8 scales (4 scales with 3 bits, 128 scales with 8), computed in float32 and rounded once to the
dtype of the scales, and codes stand in uint32 as a stream of bits, in the order in which ours stand in bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from qbench import DISTRIBUTION
from qbench.config import Backend
from qbench.config.backends import Engine, groups
from qbench.config.target import Target
from qbench.errors import QbenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qbench.engine.mlx import MlxEngine
    from qbench.int4 import QuantizedTensor
    from qbench.model.calibration import Calibration
    from qbench.model.load import LoadOptions

SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
"""By which two models of different configurations are told apart."""

SAME = ("cohere", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Values of `model_type` whose logits in mlx-lm are those of transformers (tests/test_mlx.py). It has more models;
in some of them it leaves out the windows, or partial rotations, of attention."""


class Mlx(Backend):
    """Our INT4's codes, scales and offsets in MLX's form, run by mlx-lm."""

    title: ClassVar[str] = "the weights of int4 in MLX's form, by mlx-lm"
    devices: ClassVar[str] = "Apple GPUs, CPU"
    install: ClassVar[str] = f"pip install '{DISTRIBUTION}[mlx]'"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "mlx", "mlx-lm")
    modules: ClassVar[tuple[str, ...]] = (*Backend.modules, "mlx.core", "mlx_lm")
    quantization: ClassVar[tuple[str, ...]] = ("bits", "group_size", "symmetric", "search")
    color: ClassVar[str | None] = "#01665e"
    hub_library: ClassVar[str] = "mlx"
    engine: ClassVar[Engine] = "mlx"
    kind: Literal["mlx"] = "mlx"
    bits: Literal[3, 4, 8] = 4
    group_size: Literal[32, 64, 128] = Field(default=128, description="weights that share a scale and an offset")
    symmetric: bool = Field(default=False, description="scales only; the offsets that MLX stores follow from them")
    search: Literal["mse", "none"] = Field(
        default="mse", description="mse: scales of the least squared error; none: plain round-to-nearest"
    )
    checkpoint: Path | None = Field(
        default=None, description="folder in MLX's format, of `qbench export --to mlx` or mlx_lm.convert"
    )

    @property
    def weight_bits(self) -> int:
        return self.bits

    def resolved(self) -> Self:
        if self.checkpoint is None:
            return self
        file = self.checkpoint.expanduser() / "config.json"
        try:
            made = json.loads(file.read_text(encoding="utf-8"))["quantization"]
            found = {"bits": made["bits"], "group_size": made["group_size"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise QbenchError(
                f"backends.{self.label}.checkpoint: {file} is missing, or names no quantization of MLX's; give a "
                "folder that mlx_lm.convert or `qbench export --to mlx` wrote"
            ) from error
        for key, value in found.items():
            if key in self.model_fields_set and getattr(self, key) != value:
                raise QbenchError(
                    f"backends.{self.label}: {key} {getattr(self, key)} is asked for, but {self.checkpoint} was "
                    f"quantized with {key} {value}; remove `{key}:`, or quantize again"
                )
        return self.model_copy(update=found)

    def check_model(self, content: Mapping[str, Any]) -> None:
        kind = content.get("model_type")
        windowed = content.get("sliding_window") is not None and content.get("use_sliding_window", True)
        if kind not in SAME or windowed or "sliding_attention" in (content.get("layer_types") or ()):
            what = f"{kind} with a window of attention" if kind in SAME else f"models of the type {kind}"
            raise QbenchError(
                f"backends.{self.label}: mlx-lm is not known to compute {what} as transformers does (mlx runs "
                f"{', '.join(SAME)}, without windows); use `kind: int4`"
            )

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        values = 2 * out_features * groups(in_features, self.group_size)
        return out_features * in_features * self.bits // 8 + target.value_bytes * values


CONFIG = Mlx


def quantize(options: LoadOptions, config: Mlx, calibration: Calibration | None, out: Path) -> float:
    """Write a folder that mlx-lm loads; return the seconds spent quantizing.

    Raises:
        QbenchError: mlx-lm does not compute such models as transformers does; a linear's in_features are no multiple
            of the group size; or see `qbench.backends.int4.stream.source_tensors`.
    """
    from dataclasses import replace

    import torch

    from qbench.backends.int4.folder import ShardWriter, appearing, copy_small_files
    from qbench.backends.int4.loading import Stopwatch
    from qbench.backends.int4.options import Int4
    from qbench.backends.int4.stream import Assembly, quantizer, source_tensors
    from qbench.model.find import read_config

    config.check_model(read_config(options.folder))
    ours = Int4(bits=config.bits, group_size=config.group_size, symmetric=config.symmetric, search=config.search)
    options, quantize_one = replace(options, device=torch.device("cpu")), Stopwatch(quantizer(ours))
    assembly = Assembly(options)
    tensors = source_tensors(assembly, options)
    with appearing(out) as folder:
        copy_small_files(options.folder, folder)
        shards = ShardWriter(folder)
        for done, (name, stored) in enumerate(tensors.items()):
            options.progress("quantizing", done, len(tensors))
            linear = name.removesuffix(".weight")
            if linear not in assembly.linears:
                shards.add(name, assembly.read(name, stored))
                continue
            if stored.shape[1] % config.group_size:
                raise QbenchError(
                    f"backends.{config.label}: {linear} has {stored.shape[1]} inputs, which groups of "
                    f"{config.group_size} do not divide, as MLX asks; choose a smaller group_size, or `kind: int4`"
                )
            for part, tensor in affine(quantize_one(name, assembly.read(name, stored)), options.dtype).items():
                shards.add(f"{linear}.{part}", tensor)
        shards.close()
        content = _as_mlx_reads(read_config(options.folder))
        content["quantization"] = {"group_size": config.group_size, "bits": config.bits, "mode": "affine"}
        (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    options.progress("quantizing", len(tensors), len(tensors))
    return quantize_one.seconds


def affine(weight: QuantizedTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays of MLX's `QuantizedLinear`.

    That is `weight`, uint32 [out_features, in_features · bits ÷ 32], and `scales` and `biases` in `dtype`, each
    [out_features, in_features ÷ group_size].
    """
    import torch

    middle = 2 ** (weight.bits - 1)
    scales = weight.scales.float()
    zeros = 0.0 if weight.zeros is None else weight.zeros.float()
    return {
        "weight": weight.qweight.contiguous().view(torch.uint32),
        "scales": weight.scales.to(dtype),
        "biases": (zeros - middle * scales).to(dtype),
    }


def _as_mlx_reads(content: dict[str, Any]) -> dict[str, Any]:
    """A config.json with rotary settings where mlx-lm looks: transformers 5 keeps them in `rope_parameters`."""
    rope = content.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return content
    scaling = None if rope.get("rope_type", "default") == "default" else rope
    return {**content, "rope_theta": rope["rope_theta"], "rope_scaling": scaling}


def load(options: LoadOptions, config: Mlx, calibration: Calibration | None) -> MlxEngine:
    """Load `config.checkpoint`, or a folder that is quantized in `options.work`.

    Raises:
        QbenchError: mlx-lm has no such model, computes it otherwise than transformers, or holds its weights by other
            names; the checkpoint is of another model.
    """
    from mlx_lm.utils import load_model

    from qbench.engine.mlx import MlxEngine
    from qbench.model.find import read_config
    from qbench.model.load import load_tokenizer

    config.check_model(read_config(options.folder))
    config, seconds = config.resolved(), None
    if config.checkpoint is None:
        folder = options.work / "checkpoint"
        seconds = quantize(options, config, calibration, folder)
    else:
        folder = config.checkpoint.expanduser()
        _check_model(folder, options.folder)
    try:
        model, content = load_model(folder)
    except ValueError as error:
        raise QbenchError(
            f"backends.{config.label}: mlx-lm cannot load this model ({str(error).splitlines()[0]}); use another "
            "backend"
        ) from error
    engine = MlxEngine(
        model, content, load_tokenizer(options), dtype=str(options.dtype).removeprefix("torch."), quantize_s=seconds
    )
    engine.check()
    return engine


def _check_model(folder: Path, source: Path) -> None:
    """Refuse a checkpoint whose config.json is that of another model.

    Raises:
        QbenchError: it is.
    """
    from qbench.model.find import read_config

    made, given = read_config(folder), read_config(source)
    for name in SIZES:
        if made.get(name) != given.get(name):
            raise QbenchError(
                f"{folder} is a checkpoint of another model: {name} is {made.get(name)}, here {given.get(name)}"
            )
