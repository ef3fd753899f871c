"""Small random causal models of several kinds, saved in several ways, and whether two loaded ones are the same."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from qbench.int4 import QuantLinear
from qbench.model import random_weights
from qbench.model.load import LoadOptions

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
}
LARGE = SHAPE | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "vocab_size": 12288}
LARGEST_TENSOR = 2 * 12288 * 1024
"""Bytes of an embedding of `LARGE` in 16 bit."""
TOKENS = torch.arange(24).view(2, 12)


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    """Without biases."""
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))


def qwen2(*, tied: bool = False) -> Qwen2ForCausalLM:
    """With biases in q, k and v, which are zero unless drawn."""
    torch.manual_seed(2)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=tied))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def neox(*, tied: bool = False) -> GPTNeoXForCausalLM:
    """With biases everywhere, LayerNorm, and an output embedding that its files call embed_out."""
    torch.manual_seed(3)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, tie_word_embeddings=tied))


def mixtral() -> MixtralForCausalLM:
    """Experts that are apart in its files and together in the model."""
    return MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2))


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.bfloat16, shard: str = "1GB") -> Path:
    """Write a model as transformers does, in shards of at most so many bytes."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_large_and_small(folder: Path) -> tuple[Path, Path]:
    """Write random weights of `LARGE` and of `SHAPE` in bfloat16, the embeddings untied."""
    for name, shape in (("large", LARGE), ("small", SHAPE)):
        (folder / name).mkdir()
        content = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **shape}
        (folder / name / "config.json").write_text(json.dumps(content))
        random_weights.write(folder / name, torch.bfloat16, seed=0)
    return folder / "large", folder / "small"


def assert_same(found: PreTrainedModel, expected: PreTrainedModel, *, runs: bool = True) -> None:
    """Every parameter, buffer and quantized weight bit for bit, tied where tied, and the logits if the model runs."""
    assert type(found) is type(expected)
    tensors, wanted = contents(found), contents(expected)
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name
    tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (found, expected)]
    assert tied[0] == tied[1]
    assert not found.training
    if runs:
        with torch.inference_mode():
            assert torch.equal(found(TOKENS).logits, expected(TOKENS).logits)


def contents(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters, and buffers that no kernel has laid out, with quantized weights in the plain layout."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}
    plain = {f"{n}.{part}": t for n, layer in layers.items() for part, t in layer.quantized().tensors().items()}
    biases = {f"{n}.bias": layer.bias for n, layer in layers.items() if layer.bias is not None}
    rest = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return plain | biases | {name: t for name, t in rest if name.rpartition(".")[0] not in layers}


def options(folder: Path, dtype: torch.dtype = torch.bfloat16) -> LoadOptions:
    """Load `folder` on the CPU, and work in it."""
    return LoadOptions(folder=folder, device=torch.device("cpu"), dtype=dtype, work=folder)
