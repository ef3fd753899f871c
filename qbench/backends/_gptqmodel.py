"""What AWQ and GPTQ share: gptqmodel quantizes, saves a checkpoint, and loads it with the fastest kernel it has here.

Inference loads through gptqmodel and not through transformers, whose loaders of these formats turn bfloat16 into
float16 for AWQ on CUDA, and hand `sym` and `desc_act` over in the wrong order for GPTQ (optimum 2.3).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate.hooks import remove_hook_from_submodules
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from qbench.backends import _selection
from qbench.backends._calibrated import Calibrated
from qbench.backends._checkpoint import fetch
from qbench.backends._kernels import GroupSize
from qbench.compat.gptqmodel import (
    BACKEND,
    BaseQuantLinear,
    GPTQModel,
    QuantizeConfig,
    let_go,
    packing_by_rows,
)
from qbench.engine.torch.loaded import LoadedModel, block_linears, run_once, storage_bytes
from qbench.errors import QbenchError
from qbench.model.calibration import Calibration
from qbench.model.load import LoadOptions, check_placed, load_tokenizer, skeleton

__all__ = ["BACKEND", "Method", "load_quantized", "write_checkpoint"]

GROUP_SIZES: tuple[int, ...] = get_args(GroupSize)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to quantize, as gptqmodel names it."""

    name: str
    format: str
    packer: BACKEND
    """The kernel class that lays out the codes; the one that multiplies is chosen when the checkpoint is loaded."""
    options: dict[str, Any]


def load_quantized(
    options: LoadOptions, config: Calibrated, calibration: Calibration | None, method: Method
) -> LoadedModel:
    """Load the checkpoint of `config` for inference, or one that is made in `options.work`.

    Raises:
        QbenchError: `config.group_size` does not divide the inputs of a linear; or the ready checkpoint is missing, of
            another method, bit width, group size or model; or the kernel cannot run here.
    """
    expected = block_linears(skeleton(options))
    if config.checkpoint is None:
        folder = (options.work / "checkpoint").resolve()
        quantize_s = write_checkpoint(options, config, calibration, folder, method)
    else:
        folder, quantize_s = find_checkpoint(config, method.name), None
    kernel = _backend(_selection.choose(options, _as_made(config, folder)), method)
    with _explained(config, "load"):
        model = _load_for_inference(options, folder, kernel)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, BaseQuantLinear)}
    _check_kernel(linears, kernel, config)
    weights = sum(linear.in_features * linear.out_features for linear in linears.values())
    _check_same_model({name: linear for name, linear in linears.items() if name in expected}, expected, folder)
    # gptqmodel takes some joined linears apart, such as gate_up_proj of Phi-3, and experts.
    all_there = weights >= sum(linear.weight.numel() for linear in expected.values())
    run_once(((linear, linear.in_features) for linear in linears.values()), replace(options, dtype=model.dtype))
    tensors = [tensor for linear in linears.values() for tensor in _tensors(linear)]
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=model.dtype,
        kernel="+".join(sorted({type(linear).__name__ for linear in linears.values()})),
        quantized=tuple(linears),
        expected=tuple(linears if all_there else expected),
        extra_tensors=tuple(tensors),
        linear_bytes=storage_bytes(tensors),
        linear_weights=weights,
        quantize_s=quantize_s,
    )


def prepare(options: LoadOptions, config: Calibrated) -> None:
    """See `qbench.backends._selection.prepare`; a checkpoint that is here already decides by its own codes."""
    folder = Path(config.checkpoint).expanduser() if config.checkpoint else None
    _selection.prepare(options, _as_made(config, folder) if folder and folder.is_dir() else config)


def _as_made(config: Calibrated, folder: Path) -> Calibrated:
    """With the symmetry of a ready checkpoint of GPTQ, which its files say and a configuration may not."""
    if config.checkpoint is None or "sym" not in type(config).model_fields:
        return config
    return config.model_copy(update={"sym": _read_scheme(config, folder)[1]["sym"]})


def _backend(kernel: str, method: Method) -> BACKEND:
    return BACKEND.AUTO if kernel == "auto" else BACKEND(f"{method.name}_{kernel}")


def _check_kernel(linears: dict[str, BaseQuantLinear], asked: BACKEND, config: Calibrated) -> None:
    others = sorted({type(linear).__name__ for linear in linears.values() if asked not in linear.SUPPORTS_BACKENDS})
    if asked is not BACKEND.AUTO and others:
        raise QbenchError(
            f"backends.{config.label}.kernel: {asked.value} was asked for, and gptqmodel took {', '.join(others)}; "
            "choose another kernel"
        )


@contextlib.contextmanager
def _explained(config: Calibrated, doing: str) -> Iterator[None]:
    """Of what gptqmodel raises for models that it does not know, the reason and a remedy."""
    try:
        yield
    except (AssertionError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise QbenchError(
            f"backends.{config.label}: gptqmodel cannot {doing} this model ({type(error).__name__}: {error}); use "
            "another backend"
        ) from error


def find_checkpoint(config: Calibrated, method: str) -> Path:
    """The folder of `config.checkpoint`, fetched from the hub if need be.

    Raises:
        QbenchError: there is none, or it was not quantized by `method` as `config` says.
    """
    folder = fetch(str(config.checkpoint), config.label)
    file, found = _read_scheme(config, folder)
    for key, value, remedy in (
        ("quant_method", method, "name a checkpoint of this backend's method"),
        ("bits", config.weight_bits, "name a checkpoint of that width"),
        ("group_size", config.group_size, f"set group_size to {found['group_size']}"),
    ):
        if found[key] != value:
            raise QbenchError(f"{config.label}: {file} says {key} {found[key]}, not {value}: {remedy}")
    return folder


def _read_scheme(config: Calibrated, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says how a checkpoint was quantized, and its quant_method, bits, group_size and sym.

    transformers, gptqmodel, AutoAWQ and llm-compressor write a section of config.json; older AutoGPTQ and AutoAWQ a
    file of their own, which need not name the method.
    """
    for name, written_by in (("config.json", None), ("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        file = folder / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found = content.get("quantization_config") if written_by is None else content
        if found:
            return file, {
                "quant_method": found.get("quant_method") or found.get("method") or written_by,
                "bits": found.get("bits", found.get("w_bit")),
                "group_size": found.get("group_size", found.get("q_group_size")),
                "sym": found.get("sym", not found.get("zero_point", False)),
            }
    raise QbenchError(
        f"{config.label}: {folder / 'config.json'} has no quantization_config: this is no quantized checkpoint. "
        "Remove `checkpoint` to quantize here"
    )


AWQ_OUT_FEATURES = 64
"""AWQ's kernels take multiples of it."""

JOINED = ("qkv_proj", "gate_up_proj")
"""Linears that are several in one: gptqmodel takes them apart, and its AWQ then ends the process."""


def check_sizes(config: Calibrated, linears: dict[str, nn.Linear], method: str) -> None:
    """Refuse linears of sizes that the kernels of a method do not multiply.

    Raises:
        QbenchError: there is one.
    """
    for name, linear in linears.items() if method == "awq" else ():
        if name.rpartition(".")[2] in JOINED:
            raise QbenchError(
                f"{config.label}: gptqmodel's AWQ does not know {name}, several linears in one: use gptq or another "
                "backend"
            )
        if linear.out_features % AWQ_OUT_FEATURES:
            raise QbenchError(
                f"{config.label}: {name} has {linear.out_features} outputs, and awq's kernels take multiples of "
                f"{AWQ_OUT_FEATURES}: use another backend"
            )
    size = config.group_size
    for name, linear in linears.items():
        if linear.in_features % size:
            fitting = [str(other) for other in GROUP_SIZES if linear.in_features % other == 0]
            remedy = f"choose {' or '.join(fitting)}" if fitting else "this model needs another backend"
            raise QbenchError(
                f"{config.label}: group_size {size} does not divide the {linear.in_features} inputs of {name}: {remedy}"
            )


def _check_same_model(quantized: dict[str, BaseQuantLinear], expected: dict[str, nn.Linear], folder: Path) -> None:
    for name, linear in quantized.items():
        found, wanted = (f"{m.in_features} inputs and {m.out_features} outputs" for m in (linear, expected[name]))
        if found != wanted:
            raise QbenchError(f"{folder} is a checkpoint of another model: {name} has {found}, here {wanted}")


def write_checkpoint(
    options: LoadOptions, config: Calibrated, calibration: Calibration | None, out: Path, method: Method
) -> float:
    """Quantize the model into the folder `out`; return the seconds that it took, without loading and saving.

    Raises:
        QbenchError: `config.group_size` does not divide the inputs of a linear.
    """
    assert calibration is not None, "config.calibrates"
    check_sizes(config, block_linears(skeleton(options)), method.name)
    options.work.mkdir(parents=True, exist_ok=True)
    source = _with_tokenizer(options, options.folder)
    how = QuantizeConfig(
        bits=config.weight_bits,
        group_size=config.group_size,
        device=str(options.device),
        offload_to_disk=False,
        # On a CPU the faster one is compiled at its first use, which would count as quantizing. AWQ has its own.
        pack_impl="gpu" if options.device.type == "cuda" else "original",
        method=method.name,
        format=method.format,
        **method.options,
    )
    # AWQ takes 16-bit weights only.
    dtype = torch.bfloat16 if options.dtype == torch.float32 else options.dtype
    with _explained(config, "quantize"):
        quantizer = GPTQModel.load(str(source), how, dtype=dtype, trust_remote_code=options.trust_remote_code)
    sequences = calibration.sequences(load_tokenizer(options), quantizer.model.config.vocab_size)
    quantizer.layer_callback = _counted(options, quantizer.model.config.get_text_config(decoder=True).num_hidden_layers)
    torch.manual_seed(calibration.seed)
    out = out.resolve()
    with (
        _explained(config, "quantize"),
        contextlib.chdir(options.work),  # gptqmodel writes its logs into the current folder
        packing_by_rows(),
    ):
        start = time.perf_counter()
        quantizer.quantize(sequences, backend=method.packer)
        quantize_s = time.perf_counter() - start
        quantizer.save(str(out))
    del quantizer
    let_go()
    return quantize_s


def _counted(options: LoadOptions, layers: int) -> Callable[..., None]:
    """What gptqmodel calls when a layer is quantized, and once more when its codes are packed."""
    options.progress("quantizing", 0, layers)

    def report(*, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            options.progress("quantizing", layer_idx + 1, layers)

    return report


def _load_for_inference(options: LoadOptions, folder: Path, kernel: BACKEND) -> PreTrainedModel:
    """The plain transformers model inside gptqmodel's wrapper, where `options` puts it."""
    device = options.device
    if device.type == "cuda" and device.index is None:  # gptqmodel would spread the layers over every GPU
        device = torch.device("cuda", torch.cuda.current_device())
    wrapper = GPTQModel.load(
        str(_with_tokenizer(options, folder)),
        device_map="auto" if options.device_map_auto else {"": str(device)},
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
        backend=kernel,
    )
    model: PreTrainedModel = wrapper.model
    check_placed(model, options)
    if not options.device_map_auto:
        # On CUDA every layer gets a hook that moves its inputs; on one device it only costs time.
        remove_hook_from_submodules(model)
    return model.eval()


def _with_tokenizer(options: LoadOptions, folder: Path) -> Path:
    """`folder`, or, where it has no tokenizer, links to its files beside a placeholder: gptqmodel insists on one."""
    if load_tokenizer(replace(options, folder=folder)) is not None:
        return folder.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    linked = Path(tempfile.mkdtemp(prefix="linked-", dir=options.work.resolve()))
    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(linked)
    for file in folder.iterdir():
        if not (linked / file.name).exists():
            (linked / file.name).symlink_to(file.resolve())
    return linked


def _tensors(linear: nn.Module) -> list[torch.Tensor]:
    """Everything that a linear holds: some kernels keep their repacked scales as plain attributes."""
    plain = [value for value in vars(linear).values() if isinstance(value, torch.Tensor)]
    return [*linear.parameters(), *linear.buffers(), *plain]
