"""Random weights for a folder that holds only a config.json: `python -m qbench.model.random_weights FOLDER DTYPE SEED`.

Written as an ordinary checkpoint, so that every backend loads it the way it loads a real one. Matrices are Gaussian
with the config's `initializer_range`, one-dimensional parameters (norms) are 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

SHARD_BYTES = 2 * 1024**3


def write(folder: Path, dtype: torch.dtype, seed: int) -> None:
    """Write safetensors shards and their index into `folder`."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    generator = torch.Generator().manual_seed(seed)
    deviation = getattr(config, "initializer_range", 0.02)
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    number = 0
    # named_parameters() gives a tied parameter once, under its first name, as a checkpoint holds it.
    for name, parameter in model.named_parameters():
        if sum(t.nbytes for t in shard.values()) > SHARD_BYTES:
            number, shard = _save(folder, number, shard, index), {}
        tensor = torch.ones(parameter.shape, dtype=dtype)
        if parameter.ndim > 1:
            tensor = torch.empty(parameter.shape).normal_(0, deviation, generator=generator).to(dtype)
        shard[name] = tensor
    _save(folder, number, shard, index)
    content = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


def _save(folder: Path, number: int, shard: dict[str, torch.Tensor], index: dict[str, str]) -> int:
    file = f"model-{number + 1:05d}.safetensors"
    save_file(shard, folder / file, metadata={"format": "pt"})
    index.update(dict.fromkeys(shard, file))
    return number + 1


if __name__ == "__main__":
    write(Path(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]))
