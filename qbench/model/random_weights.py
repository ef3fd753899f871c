"""Random weights for a folder with a config.json: `python -m qbench.model.random_weights FOLDER DTYPE SEED [DEVICE]`.

Written as an ordinary checkpoint, so that every backend loads it the way it loads a real one. Matrices are Gaussian
with the config's `initializer_range`, one-dimensional parameters (norms) are 1. A GPU draws other numbers than a CPU,
so its name is in the files' metadata, and with it in the model's fingerprint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

SHARD_BYTES = 2 * 1024**3


def write(folder: Path, dtype: torch.dtype, seed: int, device: str = "cpu") -> None:
    """Write safetensors shards and their index into `folder`; drawn on the CPU where there is no such device."""
    place = torch.device(device if torch.cuda.is_available() else "cpu")
    metadata = {"format": "pt"}
    if place.type == "cuda":
        metadata["drawn_on"] = torch.cuda.get_device_name(place)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    generator = torch.Generator(place).manual_seed(seed)
    deviation = getattr(config, "initializer_range", 0.02)
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    number = 0
    # named_parameters() gives a tied parameter once, under its first name, as a checkpoint holds it.
    for name, parameter in model.named_parameters():
        if sum(t.nbytes for t in shard.values()) > SHARD_BYTES:
            number, shard = _save(folder, number, shard, index, metadata), {}
        tensor = torch.ones(parameter.shape, dtype=dtype)
        if parameter.ndim > 1:
            drawn = torch.empty(parameter.shape, device=place).normal_(0, deviation, generator=generator)
            tensor = drawn.to(dtype).cpu()
        shard[name] = tensor
    _save(folder, number, shard, index, metadata)
    content = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _save(
    folder: Path, number: int, shard: dict[str, torch.Tensor], index: dict[str, str], metadata: dict[str, str]
) -> int:
    file = f"model-{number + 1:05d}.safetensors"
    save_file(shard, folder / file, metadata=metadata)
    index.update(dict.fromkeys(shard, file))
    return number + 1


if __name__ == "__main__":
    write(Path(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
