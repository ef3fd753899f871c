"""A transformers model on its device, quantized, ready for a forward: what a torch backend's `load` returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from qbench.compat.torch import plain_tensors
from qbench.errors import QbenchError, describe_fault
from qbench.model.load import LoadOptions

CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d


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
    capturable: bool = True
    """Whether a decode step can be captured as a CUDA graph: see `qbench.config.Backend.capturable`."""
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
    def left_over(self) -> dict[str, nn.Parameter]:
        """Weights of the blocks that were to be quantized and were not; empty for a 16-bit model."""
        return block_weights(self.model) if self.expected else {}

    @property
    def effective_bits_per_weight(self) -> float:
        """Bytes of the blocks' weights x 8 / their number, those that are left in 16 bits among them."""
        left = self.left_over.values()
        weights = self.linear_weights + sum(tensor.numel() for tensor in left)
        return (self.linear_bytes + storage_bytes(left)) * 8 / weights

    def check(self, remedy: str = "use another backend") -> None:
        """Refuse a model that is not what its row would say; `remedy` ends the sentence.

        Raises:
            QbenchError: linears of attention or MLP are not quantized, or more than `LEFT_OVER` of the blocks' weights;
                or the model's code cannot work with the backend's linears.
        """
        self._check_weights(remedy)
        try:
            with torch.inference_mode():
                self.model(torch.zeros(1, 2, dtype=torch.int64, device=self.device))
        except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError) as error:
            if describe_fault(error)[0] == "oom":
                raise
            raise QbenchError(
                f"{type(self.model).__name__} does not run with {self.kernel}: its code reads the weights of its "
                f"linears itself, or the kernel does not take their shapes ({type(error).__name__}: {error}); use "
                "another backend"
            ) from error

    def _check_weights(self, remedy: str) -> None:
        missing = sorted(set(self.expected) - set(self.quantized))
        if missing:
            raise QbenchError(
                f"{len(missing)} of {len(self.expected)} linears are not quantized ({_some(missing)}): "
                f"a figure of this model would not be the backend's; {remedy}"
            )
        left = {name: tensor.numel() for name, tensor in self.left_over.items()}
        share = sum(left.values()) / (sum(left.values()) + self.linear_weights)
        if share > LEFT_OVER:
            raise QbenchError(
                f"{share:.0%} of the weights in {type(self.model).__name__}'s blocks are not quantized "
                f"({_some(sorted(left, key=left.__getitem__, reverse=True))}): a figure of this model would not be the "
                f"backend's; {remedy}"
            )


LEFT_OVER = 0.01
"""Share of the blocks' weights that may stay in 16 bits in a model that is called quantized."""

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Names of what chooses the experts, which every method leaves as it is."""


def block_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of the blocks that still take 16 bits a weight or more, by name.

    They are the weights of linears and, with three dimensions, of experts; not the embeddings, routers, convolutions,
    norms and biases. Those of quantizing libraries may say that they are in floating point: their bytes decide.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found = {}
    for name, module in model.named_modules():
        if module is head or isinstance(module, nn.Embedding | CONVOLUTIONS) or ROUTERS & set(name.split(".")):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            linear = own == "weight" and isinstance(module, nn.Linear | Conv1D)  # which may hold its scales, too
            matrix = parameter.ndim == 3 or (parameter.ndim == 2 and linear)
            if matrix and parameter.is_floating_point() and _is_16_bit(parameter):
                found[f"{name}.{own}"] = parameter
    return found


def _is_16_bit(weight: torch.Tensor) -> bool:
    return sum(tensor.nbytes for tensor in plain_tensors(weight)) >= 2 * weight.numel()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind `tensors`, each counted once however many tensors share it."""
    plain = (part.untyped_storage() for tensor in tensors for part in plain_tensors(tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in plain}.values())


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears of attention and MLP blocks by name: every `nn.Linear` but the output embedding.

    Raises:
        QbenchError: there is none, as in architectures that multiply by other modules.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if not linears:
        raise QbenchError(
            f"{type(model).__name__} has no nn.Linear in its blocks, which is what this backend quantizes; use fp16, "
            "or another model"
        )
    return linears


def run_once(linears: Iterable[tuple[nn.Module, int]], options: LoadOptions) -> None:
    """One forward of each linear, given with its in_features, on a row of zeros.

    Some kernels repack their weights at the first forward, and only one without gradients gives the fast layout: after
    this, what the linears hold is what every later forward reads.
    """
    with torch.no_grad():
        for linear, width in linears:
            linear(torch.zeros(1, width, dtype=options.dtype, device=options.device))
