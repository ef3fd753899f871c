"""Loading a model tensor by tensor: each is read, quantized if it is a weight of a block's linear, and let go.

Never more than one 16-bit weight of the linears is in memory. Between `stream`, which collects the quantized weights
in the plain layout, and `place`, which puts them into the model, siblings may be joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qbench.backends.int4.experts import parts, unstack
from qbench.backends.int4.options import Int4
from qbench.backends.int4.shards import StoredTensor, find_shards, read_header
from qbench.compat.transformers import ignored_on_load, kept_dtypes, renamer
from qbench.engine.torch.loaded import block_linears
from qbench.errors import QbenchError
from qbench.int4.linear import QuantLinear
from qbench.int4.native import give_back
from qbench.int4.quantizer import PER_ROW, QuantizedTensor, quantize
from qbench.model.load import LoadOptions, skeleton

QuantizeOne = Callable[[str, Tensor], QuantizedTensor]
"""From the name and the value of a 16-bit weight to the quantized one."""

LEFTOVERS = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Tensors of old checkpoints that models compute today."""


class Assembly:
    """A model that is filled tensor by tensor; its parameters begin on the meta device."""

    def __init__(self, options: LoadOptions) -> None:
        self.model: PreTrainedModel = skeleton(options)
        # Names in files are those of the model as transformers has it.
        self._rename = renamer(self.model, self.shapes())
        self._experts = unstack(self.model)
        self.linears = block_linears(self.model)
        self._device = options.device
        self._loaded: set[str] = set()
        real = (name for name, tensor in self.model.state_dict().items() if not tensor.is_meta)
        self._optional = {name for name in real if self._ignored(name, "missing")}
        self._tied = _tied(self.model)
        self._kept = kept_dtypes(self.model, options.dtype)

    def shapes(self) -> dict[str, torch.Size]:
        """Every tensor that a 16-bit checkpoint holds, a tied one under each of its names."""
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}

    def named(self, stored: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
        """The tensors of a 16-bit checkpoint by their names in the model: transformers renames some as it loads them.

        Raises:
            QbenchError: one is only a part of what the model holds in one tensor.
        """
        shapes = self.shapes()
        found: dict[str, StoredTensor] = {}
        for tensor in stored:
            name, position = self._rename(tensor.name)
            if name.rpartition(".")[0] in self._experts:
                found.update(parts(name, position, tensor))
                continue
            if position is not None:
                raise QbenchError(
                    f"{tensor.file}: {tensor.name} is a part of {name}, which {type(self.model).__name__} holds in one "
                    "tensor; the int4 backend reads tensors one by one, use another"
                )
            found[tensor.name if name not in shapes and tensor.name in shapes else name] = tensor
        return found

    def match(
        self, tensors: Mapping[str, StoredTensor], shapes: Mapping[str, torch.Size], folder: Path
    ) -> dict[str, StoredTensor]:
        """The tensors of a folder that the model needs, by their names in the model, in the order given.

        Raises:
            QbenchError: one is missing, unexpected or of another shape.
        """
        found = {name: tensor for name, tensor in tensors.items() if name in shapes}
        unexpected = [tensors[n] for n in tensors if n not in found and not self._ignored(n, "unexpected", LEFTOVERS)]
        missing = [name for name in shapes if name not in found and self._needed(name, found)]
        self._refuse(missing, unexpected, folder)
        for name, tensor in found.items():
            if tensor.shape != shapes[name]:
                raise QbenchError(
                    f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)}, where config.json asks for "
                    f"{list(shapes[name])}; the files are of two models, copy or download the folder again"
                )
        return found

    def read(self, name: str, stored: StoredTensor) -> Tensor:
        """A tensor on the device, in the dtype that the model holds it in."""
        give_back()
        kept = next((dtype for pattern, dtype in self._kept if pattern.search(name)), None)
        return stored.read(self._device, kept or _get(self.model, name).dtype)

    def put(self, name: str, tensor: Tensor) -> None:
        """Make a tensor the model's; a tied one takes all of its names, unless the file holds another under one."""
        twins = self._tied.get(name, ())
        loaded = [_get(self.model, twin) for twin in twins if twin in self._loaded]
        same = next((twin for twin in loaded if torch.equal(twin, tensor)), None)
        # Trainable, as transformers leaves it: torch copies the output embedding at every prefill if it is not
        # (`should_fold` in aten/src/ATen/native/LinearAlgebra.cpp).
        parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if same is None else same
        self._loaded.add(name)
        for each in (name, *(twin for twin in twins if twin not in self._loaded)):
            _set(self.model, each, parameter)

    def finish(self) -> PreTrainedModel:
        """The model with its computed buffers on the device."""
        for module in self.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
                setattr(module, name, buffer.to(self._device))
        return self.model

    def _needed(self, name: str, found: Mapping[str, StoredTensor]) -> bool:
        """Whether a missing tensor is neither tied to one that is there nor a buffer that may keep its first value."""
        if any(twin in found for twin in self._tied.get(name, ())):
            return False
        return name not in self._optional

    def _ignored(self, name: str, how: Literal["missing", "unexpected"], more: Iterable[str] = ()) -> bool:
        return any(re.search(pattern, name) for pattern in (*ignored_on_load(self.model, how), *more))

    def _refuse(self, missing: list[str], unexpected: list[StoredTensor], folder: Path) -> None:
        kind = type(self.model).__name__
        remedy = "copy or download the folder again, or use a backend that loads through transformers, such as fp16"
        if missing:
            raise QbenchError(
                f"{folder}: no shard holds {_some(missing)}, which config.json ({kind}) asks for; {remedy}"
            )
        if unexpected:
            raise QbenchError(
                f"{unexpected[0].file}: {_some([tensor.name for tensor in unexpected])} is no weight of the model in "
                f"config.json ({kind}); {remedy}"
            )


def stream(options: LoadOptions, quantize_one: QuantizeOne) -> tuple[PreTrainedModel, dict[str, QuantizedTensor]]:
    """Read a 16- or 32-bit model.

    Returns:
        The model with the linears of its blocks still without weights (their biases are there), and those weights,
        quantized, by the name of the linear.

    Raises:
        QbenchError: a shard is missing, truncated or damaged, its tensors are not the model's, or the model is
            quantized already.
    """
    assembly = Assembly(options)
    weights = {}
    for name, stored in source_tensors(assembly, options).items():
        linear = name.removesuffix(".weight")
        if linear in assembly.linears:
            weights[linear] = quantize_one(name, assembly.read(name, stored))
        else:
            assembly.put(name, assembly.read(name, stored))
    return assembly.finish(), {name: weights[name] for name in assembly.linears}


def source_tensors(assembly: Assembly, options: LoadOptions) -> dict[str, StoredTensor]:
    """What `options.folder` holds of the model, by the names in it, in the order of the files.

    Raises:
        QbenchError: see `stream`.
    """
    scheme = getattr(assembly.model.config, "quantization_config", None)
    if scheme is not None:
        raise QbenchError(
            f"{options.folder / 'config.json'}: these weights are quantized already ({scheme.get('quant_method')}); "
            "give the 16-bit model, and what `qbench quantize` made of it as `checkpoint:`"
        )
    stored = [tensor for shard in find_shards(options.folder) for tensor in read_header(shard)]
    return assembly.match(assembly.named(stored), assembly.shapes(), options.folder)


def place(model: PreTrainedModel, weights: dict[str, QuantizedTensor], *, kernel: str = "auto") -> None:
    """Put quantized weights in the place of the model's linears, with the biases these have. Empties `weights`.

    Raises:
        ValueError: the kernel cannot serve one of them.
    """
    for name in list(weights):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        # Popped within the call: the plain layout is gone before the next weight is repacked.
        model.set_submodule(name, QuantLinear(weights.pop(name), _bias(linear), kernel=kernel))
        give_back()


def place_head(model: PreTrainedModel) -> None:
    """Put the output embedding into 8 bits, a scale a row, for the fastest kernel; a tied input embedding stays.

    Raises:
        QbenchError: the model has no such linear, or its weight holds NaN or infinity.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), None)
    if name is None or not isinstance(head, nn.Linear):
        raise QbenchError(f"lm_head: {type(model).__name__} has no linear output embedding; use lm_head: 16bit")
    quantize_one = quantizer(Int4(bits=8, group_size=PER_ROW, symmetric=True))
    weight, bias = quantize_one(f"{name}.weight", head.weight.detach()), _bias(head)
    del head.weight  # the 16-bit one is not needed while the kernel repacks this one
    model.set_submodule(name, QuantLinear(weight, bias))
    del weight
    give_back()


def quantizer(config: Int4) -> QuantizeOne:
    """`quantize` with the options of a cell; what it refuses becomes a QbenchError."""

    def quantize_one(name: str, weight: Tensor) -> QuantizedTensor:
        with explained():
            return quantize(weight, **scheme(config), name=name)

    return quantize_one


def scheme(config: Int4) -> dict[str, Any]:
    """The options of a cell that both quantizers of `qbench.int4` take."""
    return {name: getattr(config, name) for name in ("bits", "group_size", "symmetric", "search")}


@contextmanager
def explained() -> Iterator[None]:
    """Of what a quantizer refuses, the remedy."""
    try:
        yield
    except ValueError as error:
        raise QbenchError(f"{error}; the checkpoint is damaged, or its weights need `dtype: bfloat16`") from error


def _bias(linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach()


def _tied(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each parameter that has several names, its other names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(n for n in group if n != name) for group in names.values() for name in group if len(group) > 1}


def _get(model: nn.Module, name: str) -> Tensor:
    module, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(module), leaf)
    return tensor


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    buffers = dict(module.named_buffers(recurse=False, remove_duplicate=False))
    setattr(module, leaf, tensor.detach() if leaf in buffers else tensor)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
