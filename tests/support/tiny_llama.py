"""A random Llama small enough to quantize in seconds, with the figures of its linears counted by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qbench.engine.torch.loaded import LoadedModel
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions

HIDDEN, INTERMEDIATE, LAYERS, VOCAB = 256, 512, 2, 512
KV = 128
"""Two key-value heads of 64."""

LINEARS = tuple(
    f"model.layers.{layer}.{name}"
    for layer in range(LAYERS)
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
)
LINEAR_WEIGHTS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * KV * HIDDEN + 3 * INTERMEDIATE * HIDDEN)
OTHER_WEIGHTS = 2 * VOCAB * HIDDEN + (2 * LAYERS + 1) * HIDDEN
"""Embedding, head and norms, which stay 16-bit."""
ROTARY_BYTES = 2 * 32 * 4
"""Two float32 buffers of half a head each: inverse frequencies, and the original ones."""

CALIBRATION = Calibration(text=None, samples=16, length=64, seed=0)
TOKENS = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


def save_tiny_llama(folder: Path, tokenizer: bool = True, layers: int = LAYERS) -> Path:
    """Write the model, and a tokenizer of `VOCAB` words unless told not to, into `folder`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    if tokenizer:
        words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{index}": index for index in range(4, VOCAB)}
        core = Tokenizer(WordLevel(words, unk_token="<unk>"))
        core.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(folder)
    return folder


def word_ids() -> torch.Tensor:
    """100 ids of words that the tokenizer knows: int64 [100]."""
    return torch.randint(4, VOCAB, (100,), generator=torch.Generator().manual_seed(3))


def options(folder: Path, work: Path, dtype: torch.dtype = torch.bfloat16) -> LoadOptions:
    """Load `folder` on the CPU."""
    return LoadOptions(folder=folder, device=torch.device("cpu"), dtype=dtype, work=work)


@torch.inference_mode()
def logits(loaded: LoadedModel) -> torch.Tensor:
    """float32 logits of `TOKENS`."""
    found: torch.Tensor = loaded.model(TOKENS).logits
    return found.float()


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """|found - reference| / |reference|, in the Frobenius norm."""
    return float((found - reference).norm() / reference.norm())
