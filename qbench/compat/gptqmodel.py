"""gptqmodel: what it does to a process that imports it, and what it keeps of a model that it has quantized.

Import the library through this module.
"""

from __future__ import annotations

import gc
import os

import torch
from huggingface_hub import constants

# gptqmodel sets variables at import that would reach everything else in this process: the order of the GPUs, torch's
# allocator, the hub's cache. They are given their usual values first. One CPU worker, its choice on two cores, it
# refuses itself.
VARIABLES = {
    "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    "PYTORCH_ALLOC_CONF": "expandable_segments:False",
    "HF_HOME": constants.HF_HOME,
    "HF_HUB_CACHE": constants.HF_HUB_CACHE,
    "GPTQMODEL_CPU_WORKERS": str(min(12, max(2, (os.cpu_count() or 1) // 2))),
}
for _variable, _value in VARIABLES.items():
    os.environ.setdefault(_variable, _value)

import gptqmodel  # noqa: E402
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402
from gptqmodel.nn_modules.hooked_linear import STOP_FORWARD_EXCEPTION  # noqa: E402
from gptqmodel.nn_modules.qlinear import BaseQuantLinear  # noqa: E402

__all__ = ["BACKEND", "BaseQuantLinear", "GPTQModel", "QuantizeConfig", "let_go"]


def let_go() -> None:
    """Free what gptqmodel keeps after quantizing, which would be measured as memory of the model.

    The traceback of an exception that it raises again and again, and the idle threads with their last task, hold the
    whole 16-bit model and the activations.
    """
    STOP_FORWARD_EXCEPTION.__traceback__ = None
    gptqmodel.get_device_thread_pool().shutdown()
    gptqmodel._DEVICE_THREAD_POOL = None  # a later quantization starts its own
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
