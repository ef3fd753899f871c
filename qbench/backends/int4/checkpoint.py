"""A quantized model on disk: what `qbench quantize` writes and `checkpoint:` reads.

A folder like a Hugging Face model's: config.json, tokenizer files, safetensors shards and their index. A linear `L`
[out_features, in_features] of the blocks, with b bits in groups of g columns, is stored as

    L.qweight  uint8 [out_features, n], a row being a stream of bits: column c is in the bits b c ... b c + b - 1 of it,
               from the lowest bit of the first byte on. n = ceil(in_features / 2) for 4 bits, in_features for 8, and
               3 ceil(in_features / 8) for 3
    L.scales   float16 or bfloat16 [out_features, ceil(in_features / g)]; g = -1: one a row; g = 0: [1, 1]
    L.zeros    as L.scales; none where weights are symmetric

and stands for the weight scales (codes - 2^(b-1)) + zeros. This layout belongs to no kernel. All other tensors, the
output embedding and biases among them, are as in the 16-bit model. `quantization_config` in config.json is a
`qbench.backends.int4.manifest.Manifest`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qbench import __version__
from qbench.backends.int4.folder import ShardWriter, appearing, copy_small_files
from qbench.backends.int4.manifest import Manifest, read_manifest
from qbench.backends.int4.options import Int4
from qbench.backends.int4.shards import read_header
from qbench.backends.int4.stream import Assembly, QuantizeOne, source_tensors
from qbench.errors import QbenchError
from qbench.int4.pack import row_bytes
from qbench.int4.quantizer import PER_TENSOR, QuantizedTensor, group_columns
from qbench.model.content import file_hash, fingerprint
from qbench.model.load import LoadOptions

PARTS = ("qweight", "scales", "zeros")

AGAIN = "quantize the model again with `qbench quantize`, or copy the folder again"


def write(options: LoadOptions, config: Int4, quantize_one: QuantizeOne, out: Path) -> float:
    """Quantize the model of `options.folder` into the folder `out`, which appears whole or not at all.

    What `out` held is replaced. Memory holds one shard and one 16-bit tensor, never the model.

    Returns:
        Bytes of codes, scales and zeros x 8 / weights of the linears.

    Raises:
        QbenchError: the folder cannot be written, or see `qbench.backends.int4.stream.stream`.
    """
    assembly = Assembly(options)
    tensors = source_tensors(assembly, options)
    linear_bytes = linear_weights = 0
    with appearing(out) as folder:
        copy_small_files(options.folder, folder)
        shards = ShardWriter(folder)
        for done, (name, stored) in enumerate(tensors.items()):
            options.progress("quantizing", done, len(tensors))
            linear = name.removesuffix(".weight")
            if linear in assembly.linears:
                weight = quantize_one(name, assembly.read(name, stored))
                linear_bytes, linear_weights = linear_bytes + weight.nbytes, linear_weights + weight.shape.numel()
                for part, tensor in weight.tensors().items():
                    shards.add(f"{linear}.{part}", tensor)
            else:
                shards.add(name, assembly.read(name, stored))
        manifest = Manifest(
            bits=config.bits,
            group_size=config.group_size,
            symmetric=config.symmetric,
            search=config.search,
            calibrated=config.calibrated,
            source_fingerprint=fingerprint(options.folder),
            qbench_version=__version__,
            shards=shards.close(),
        )
        _write_config(options.folder, folder, manifest)
    options.progress("quantizing", len(tensors), len(tensors))
    return linear_bytes * 8 / linear_weights


def load(options: LoadOptions, folder: Path) -> tuple[PreTrainedModel, dict[str, QuantizedTensor]]:
    """What `qbench.backends.int4.stream.stream` gives for the model in `options.folder`, from its checkpoint.

    Raises:
        QbenchError: the checkpoint is damaged, incomplete or of another model.
    """
    manifest = read_manifest(folder)
    if manifest.source_fingerprint != fingerprint(options.folder):
        raise QbenchError(
            f"{folder} was made from another model than {options.folder}, or its files have changed since; "
            "name the model it was made from, or quantize this one with `qbench quantize`"
        )
    _verify(folder, manifest)
    assembly = Assembly(options)
    shapes = assembly.shapes()
    for name in assembly.linears:
        parts = part_shapes(shapes.pop(f"{name}.weight"), manifest)
        shapes.update({f"{name}.{part}": shape for part, shape in parts.items()})
    parts_of: dict[str, dict[str, Tensor]] = {name: {} for name in assembly.linears}
    held = {tensor.name: tensor for shard in sorted(manifest.shards) for tensor in read_header(folder / shard)}
    for name, stored in assembly.match(held, shapes, folder).items():
        linear, _, part = name.rpartition(".")
        if linear in assembly.linears and part in PARTS:
            parts_of[linear][part] = stored.read(options.device)
        else:
            assembly.put(name, assembly.read(name, stored))
    weights = {
        name: QuantizedTensor(
            parts["qweight"],
            parts["scales"],
            parts.get("zeros"),
            assembly.linears[name].weight.shape,
            manifest.bits,
            manifest.group_size,
        )
        for name, parts in parts_of.items()
    }
    return assembly.finish(), weights


def part_shapes(shape: torch.Size, manifest: Manifest) -> dict[str, torch.Size]:
    """The shapes in which a weight of `shape` is stored."""
    rows, columns = shape
    groups = -(-columns // group_columns(columns, manifest.group_size))
    scales = torch.Size((1, 1) if manifest.group_size == PER_TENSOR else (rows, groups))
    zeros = {} if manifest.symmetric else {"zeros": scales}
    return {"qweight": torch.Size((rows, row_bytes(columns, manifest.bits))), "scales": scales, **zeros}


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.shards.items():
        try:
            found = file_hash(folder / name)
        except OSError as error:
            raise QbenchError(f"{folder / name}: this shard cannot be read ({error.strerror}); {AGAIN}") from error
        if found != expected:
            raise QbenchError(f"{folder / name}: is damaged, its SHA-256 is not that in config.json; {AGAIN}")


def _write_config(source: Path, folder: Path, manifest: Manifest) -> None:
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    content["quantization_config"] = manifest.model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
