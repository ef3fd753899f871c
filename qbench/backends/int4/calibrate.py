"""INT4 with the calibration text: every linear is rounded for what it reads.

The 16-bit model is there as a whole, and its blocks are worked through in order. Beside each other, the text goes
through the blocks as they are and as they are quantized: both decide how the next one is rounded. Within a block,
linears that read the same (query, key and value; gate and up) are rounded together, before those that read what they
make.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qbench.backends.int4.options import Int4
from qbench.backends.int4.stream import explained, scheme
from qbench.engine.torch.loaded import block_linears
from qbench.errors import QbenchError
from qbench.int4.calibrated import Moments, quantize_calibrated
from qbench.int4.quantizer import QuantizedTensor, dequantize
from qbench.model.calibration import Calibration

Progress = Callable[[str, int, int], None]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is given besides the hidden states: masks, positions."""

CHUNK_TOKENS = 4096
"""Tokens that go through a block together."""

IN_A_BLOCK = re.compile(r"^(.+?)\.(\d+)\.")


@dataclass(slots=True)
class Chunk:
    """Some sequences on their way through the blocks."""

    exact: Tensor
    """What the next block reads in the 16-bit model, [sequences, length, hidden_size]."""
    quantized: Tensor
    """What it reads in the quantized one."""
    arguments: list[Arguments] = field(default_factory=list)
    """Of each block."""


class _SeenError(Exception):
    """The linear that was waited for has read its input: the rest of the block need not run."""


@torch.inference_mode()
def quantize_with_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    config: Int4,
    calibration: Calibration,
    progress: Progress = lambda *_: None,
) -> dict[str, QuantizedTensor]:
    """The linears of the blocks by name, quantized one block after another.

    The model's own weights become what the codes stand for.

    Raises:
        QbenchError: the model's linears are not all in one list of blocks that hand over their output alone, its
            experts are stacked or rarely read; a weight holds NaN or infinity.
    """
    blocks = _blocks(model, config)
    ids = calibration.sequences(tokenizer, model.config.get_text_config(decoder=True).vocab_size)
    chunks = _recorded(model, blocks, torch.tensor(ids, device=model.device), config)
    found: dict[str, QuantizedTensor] = {}
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    for number, block in enumerate(blocks):
        original = copy.deepcopy(block)
        progress("quantizing with the calibration text", number, len(blocks))
        for names in _stages(block, number, chunks[0], config):
            moments = _moments(original, block, number, names[0], chunks)
            for name in names:
                linear = block.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                full = f"{prefix}.{number}.{name}"
                with explained():
                    quantized = quantize_calibrated(linear.weight, moments, **scheme(config), name=f"{full}.weight")
                linear.weight.copy_(dequantize(quantized))
                found[full] = quantized
        for chunk in chunks:
            chunk.exact = _forward(original, chunk.exact, chunk.arguments[number])
            chunk.quantized = _forward(block, chunk.quantized, chunk.arguments[number])
    progress("quantizing with the calibration text", len(blocks), len(blocks))
    return found


def _blocks(model: PreTrainedModel, config: Int4) -> nn.ModuleList:
    """The list that holds all linears that are to be quantized.

    Raises:
        QbenchError: there is none.
    """
    matches = {name: IN_A_BLOCK.match(name) for name in block_linears(model)}
    outside = [name for name, match in matches.items() if match is None]
    lists = {match[1] for match in matches.values() if match}
    if outside or len(lists) != 1:
        places = ", ".join(outside or sorted(lists))
        raise _unknown(model, config, f"not all of its linears are in one list of blocks ({places})")
    (name,) = lists
    found = model.get_submodule(name)
    if not isinstance(found, nn.ModuleList) or any(parameter.ndim == 3 for parameter in found.parameters()):
        raise _unknown(model, config, "its experts are not linears of their own")
    return found


def _unknown(model: PreTrainedModel, config: Int4, reason: str) -> QbenchError:
    return QbenchError(
        f"backends.{config.label}.calibrated: {type(model).__name__} is not quantized with a text here: {reason}; "
        "use calibrated: false"
    )


def _recorded(model: PreTrainedModel, blocks: nn.ModuleList, ids: Tensor, config: Int4) -> list[Chunk]:
    """What the first block reads of the sequences [n, length], and what else each block is given.

    Raises:
        QbenchError: a block's output is not what the next one reads.
    """
    chunks: list[Chunk] = []
    for part in torch.split(ids, max(1, CHUNK_TOKENS // ids.shape[1])):
        read, given = _run(model, blocks, part)
        if not chunks:
            _check_hand_over(model, blocks, read, given, config)
        chunks.append(Chunk(read[0], read[0], given))
    return chunks


def _run(model: PreTrainedModel, blocks: nn.ModuleList, ids: Tensor) -> tuple[list[Tensor], list[Arguments]]:
    """What each block reads of the sequences, and what else it is given."""
    read: list[Tensor] = []
    given: list[Arguments] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = dict(kwargs)
        hidden, *rest = args if args else (others.pop("hidden_states"),)
        read.append(hidden)
        given.append((tuple(rest), others))

    with _hooks(blocks, lambda block: block.register_forward_pre_hook(record, with_kwargs=True)):
        model(ids, use_cache=False, logits_to_keep=1)
    return read, given


def _check_hand_over(
    model: PreTrainedModel, blocks: nn.ModuleList, read: list[Tensor], given: list[Arguments], config: Int4
) -> None:
    for number, block in enumerate(blocks[:-1]):
        made = _forward(block, read[number], given[number])
        if not torch.equal(made, read[number + 1]):
            raise _unknown(model, config, f"block {number + 1} reads something else than block {number} makes")


def _forward(block: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
    args, kwargs = arguments
    out = block(hidden, *args, **kwargs)
    made: Tensor = out if isinstance(out, Tensor) else out[0]
    return made


def _stages(block: nn.Module, number: int, chunk: Chunk, config: Int4) -> list[list[str]]:
    """A block's linears in the order in which they are called, those together that read the same tensor.

    Raises:
        QbenchError: one is not called at all.
    """
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    names: dict[nn.Module, str] = {module: name for name, module in linears.items()}
    read: list[tuple[Tensor, list[str]]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for tensor, readers in read:
            if tensor is args[0]:
                readers.append(names[module])
                return
        read.append((args[0], [names[module]]))

    with _hooks(linears.values(), lambda linear: linear.register_forward_pre_hook(note)):
        _forward(block, chunk.exact, chunk.arguments[number])
    unread = linears.keys() - {name for _, readers in read for name in readers}
    if unread:
        raise QbenchError(
            f"backends.{config.label}.calibrated: no token of the text reaches {sorted(unread)[0]} of block {number}; "
            "use calibrated: false"
        )
    return [readers for _, readers in read]


def _moments(original: nn.Module, block: nn.Module, number: int, name: str, chunks: list[Chunk]) -> Moments:
    """Of what one linear of a block reads of all chunks."""
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    moments = Moments(linear.in_features, linear.weight.device)
    for chunk in chunks:
        exact = _read_by(original, name, chunk.exact, chunk.arguments[number])
        moments.add(exact, _read_by(block, name, chunk.quantized, chunk.arguments[number]))
    return moments


def _read_by(block: nn.Module, name: str, hidden: Tensor, arguments: Arguments) -> Tensor:
    """What a linear of a block reads when the block reads `hidden`."""
    read: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        read.append(args[0])
        raise _SeenError

    with (
        _hooks([block.get_submodule(name)], lambda linear: linear.register_forward_pre_hook(stop)),
        suppress(_SeenError),
    ):
        _forward(block, hidden, arguments)
    return read[0]


@contextmanager
def _hooks(modules: Any, register: Callable[[nn.Module], Any]) -> Iterator[None]:
    handles = [register(module) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
