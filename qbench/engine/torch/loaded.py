"""A transformers model on its device, quantized, ready for a forward: what a torch backend's `load` returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qbench.errors import QbenchError
from qbench.model.load import LoadOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model on its device, quantized, ready for a forward.

    `model(input_ids, attention_mask=…, past_key_values=…, use_cache=…, logits_to_keep=…)` follows transformers'
    causal language models.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    """None only for random weights of a bare shape."""
    device: torch.device
    dtype: torch.dtype
    """Compute dtype of activations."""
    kernel: str
    """What really multiplies: the class or kernel that the quantized linears dispatch to."""
    quantized: tuple[str, ...] = ()
    """Names of the linears that hold quantized weights."""
    expected: tuple[str, ...] = ()
    """Names of the linears in attention and MLP blocks that should; empty for a 16-bit model."""
    extra_tensors: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    """Tensors of the weights that are neither parameters nor buffers, such as bitsandbytes' block scales."""
    linear_bytes: int
    """Bytes that hold the linears of attention and MLP blocks: codes, scales, zeros, code books."""
    linear_weights: int
    """Weights of those linears, out_features x in_features each."""
    lm_head_bits: int = 16
    """Bits of the output embedding."""
    quantize_s: float | None = None
    """Seconds spent quantizing; None when the checkpoint came quantized or there was nothing to do."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers, storage counted once."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *self.extra_tensors]
        return storage_bytes(tensors)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Those that hold parameters, by number; one, unless the model was laid over several."""
        return tuple(sorted({parameter.device for parameter in self.model.parameters()}, key=lambda d: d.index or 0))

    @property
    def effective_bits_per_weight(self) -> float:
        """linear_bytes x 8 / linear_weights."""
        return self.linear_bytes * 8 / self.linear_weights

    def check(self) -> None:
        """Refuse a model that is not what its row would say.

        Raises:
            QbenchError: linears of attention or MLP are not quantized.
        """
        missing = sorted(set(self.expected) - set(self.quantized))
        if missing:
            shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            raise QbenchError(
                f"{len(missing)} of {len(self.expected)} linears are not quantized ({shown}): "
                "a figure of this model would not be the backend's. "
                "Choose a group_size that divides every in_features, or another backend."
            )


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once however many tensors share it."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of attention and MLP blocks by name: every `nn.Linear` but the output embedding.

    Raises:
        QbenchError: there is none, as in architectures that multiply by other modules.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not linears:
        raise QbenchError(f"{type(model).__name__} has no nn.Linear in its blocks: there is nothing to quantize")
    return linears


def run_once(linears: Iterable[nn.Module], options: LoadOptions) -> None:
    """One forward of each linear on a row of zeros.

    Some kernels repack their weights at the first forward, and only one without gradients gives the fast layout: after
    this, what the linears hold is what every later forward reads.
    """
    with torch.no_grad():
        for linear in linears:
            width: Any = linear.in_features
            linear(torch.zeros(1, width, dtype=options.dtype, device=options.device))
