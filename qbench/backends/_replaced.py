"""What the kinds share whose library puts its own modules or weights in the places of a model's linears.

Which linears are quantized is read off the loaded model, not off the settings: those that, after their first product,
hold no matrix of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from qbench.compat.torch import plain_tensors
from qbench.config import Backend
from qbench.engine.torch.loaded import LoadedModel, block_linears, block_weights, run_once, storage_bytes
from qbench.errors import QbenchError
from qbench.model.load import LoadOptions, load_pretrained, load_tokenizer, skeleton

State = Callable[[Any], Iterable[Tensor]]
"""The tensors of a linear that are neither parameters nor buffers nor attributes of it."""


def load_quantized(
    options: LoadOptions,
    config: Backend,
    how: Any = None,
    *,
    state: State = lambda linear: (),
    checkpoint: Path | None = None,
) -> LoadedModel:
    """Load through transformers.

    Args:
        how: transformers' `quantization_config`; what the checkpoint itself says unless given.
        state: see `State`.
        checkpoint: the folder of one that is quantized already; the model itself is quantized unless given.

    Raises:
        QbenchError: the checkpoint is of another model; or see `describe`.
    """
    expected = block_linears(skeleton(options))
    source = options
    if checkpoint is not None:
        source = replace(options, folder=checkpoint)
        _check_same_model(expected, block_linears(skeleton(source)), checkpoint)
    settings = {} if how is None else {"quantization_config": how}
    return describe(load_pretrained(source, **settings), options, config, expected, state)


def describe(
    model: PreTrainedModel, options: LoadOptions, config: Backend, expected: dict[str, nn.Linear], state: State
) -> LoadedModel:
    """What a model holds whose linears, of which `expected` are those of the 16-bit model, were replaced.

    Raises:
        QbenchError: the library cannot multiply here, or computes in another dtype than the run.
    """
    if model.dtype != options.dtype:
        asked, found = (str(dtype).removeprefix("torch.") for dtype in (options.dtype, model.dtype))
        raise QbenchError(
            f"backends.{config.label}: computes in {found} here, and the run in {asked}; set dtype: {found}, or use "
            "another backend"
        )
    linears = {name: model.get_submodule(name) for name in expected}
    kernel = "+".join(sorted({kernel_name(linear) for linear in linears.values()}))
    try:
        run_once(((linear, expected[name].in_features) for name, linear in linears.items()), options)
    except (AssertionError, RuntimeError) as error:
        raise QbenchError(
            f"backends.{config.label}: {kernel} cannot multiply by the linears of {type(model).__name__} here "
            f"({error}); use another backend"
        ) from error
    left = {name.rpartition(".")[0] for name in block_weights(model)}
    quantized = {name: linear for name, linear in linears.items() if name not in left}
    beside = [tensor for linear in quantized.values() for tensor in attributes(linear, state)]
    tensors = [*beside, *(tensor for linear in quantized.values() for tensor in registered(linear))]
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=model.dtype,
        kernel=kernel,
        quantized=tuple(quantized),
        expected=tuple(expected),
        extra_tensors=tuple(beside),
        linear_bytes=storage_bytes(tensors),
        linear_weights=sum(expected[name].weight.numel() for name in quantized),
        capturable=config.capturable,
    )


def kernel_name(linear: nn.Module) -> str:
    """What multiplies: the class of a weight that brings its own product, else that of the module."""
    weight = getattr(linear, "weight", None)
    brings_its_own = isinstance(weight, Tensor) and next(plain_tensors(weight)) is not weight
    return type(weight if brings_its_own else linear).__name__


def registered(linear: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a linear but its bias."""
    yield from (tensor for name, tensor in linear.named_parameters() if name != "bias")
    yield from linear.buffers()


def attributes(linear: nn.Module, state: State) -> Iterator[Tensor]:
    """What a linear holds besides."""
    yield from (value for value in vars(linear).values() if isinstance(value, Tensor))
    yield from state(linear)


def _check_same_model(expected: dict[str, nn.Linear], found: dict[str, nn.Linear], folder: Path) -> None:
    for name, linear in expected.items():
        other = found.get(name)
        if other is None or other.weight.shape != linear.weight.shape:
            there = "is not there" if other is None else f"is {' x '.join(map(str, other.weight.shape))}"
            wanted = " x ".join(map(str, linear.weight.shape))
            raise QbenchError(f"{folder} is a checkpoint of another model: {name} {there}, here {wanted}")
