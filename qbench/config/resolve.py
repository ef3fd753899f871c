"""What `auto` stands for, in strings: planning resolves it without torch, and a worker does so in the same way."""

from __future__ import annotations

from typing import Literal

from qbench.config.backends import KVCache
from qbench.config.target import DeviceType
from qbench.errors import QbenchError

DecodeMode = Literal["eager", "graph", "compiled"]


def device(asked: str, *, cuda: bool) -> str:
    """`cpu`, or a GPU with its number; `cuda`: whether there is one."""
    if asked == "auto":
        asked = "cuda" if cuda else "cpu"
    return "cuda:0" if asked == "cuda" else asked


def device_type(device: str) -> DeviceType:
    """The kind of a device with a number."""
    return "cuda" if device.startswith("cuda") else "cpu"


def dtype(asked: str, device: DeviceType) -> str:
    """The compute dtype: float16 on CUDA, else bfloat16, since CPUs are slow at float16."""
    if asked != "auto":
        return asked
    return "float16" if device == "cuda" else "bfloat16"


def decode_mode(
    asked: Literal["auto", "eager", "graph", "compiled"],
    device: str,
    *,
    device_map_auto: bool = False,
    kv_cache: KVCache = "16bit",
) -> DecodeMode:
    """How tokens are decoded on a device: as a CUDA graph where one can be captured.

    Eager for a model that is laid over several GPUs, and for a quantized cache, which grows: a graph has one length.

    Raises:
        QbenchError: a CUDA graph asked for without CUDA.
    """
    if asked == "graph" and device != "cuda":
        raise QbenchError("decode: graph needs a CUDA device; use auto, eager or compiled")
    if asked == "auto":
        return "graph" if device == "cuda" and not device_map_auto and kv_cache == "16bit" else "eager"
    return asked
