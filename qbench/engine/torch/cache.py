"""Keys and values in 8 or 4 bits: transformers' own quantized cache, with HQQ's integers.

`QuantizedCache(backend="hqq")` quantizes the whole prompt at once, while attention sees it in 16 bit, then keeps new
tokens in 16 bit until there are `RESIDUAL` of them and quantizes everything again. Every step dequantizes a whole layer
and copies it in front of the new token, so this cache saves memory and costs time. Of transformers' other backends
quanto has no 8 bits here, and fp8 no integers. Groups run along a head's channels, as transformers' documentation
advises for HQQ (axis 1); see `qbench.model.kv_cache`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from transformers import PreTrainedModel, QuantizedCache

from qbench.compat.transformers import Cache
from qbench.errors import QbenchError
from qbench.model.kv_cache import BITS, INSTALL, RESIDUAL, group_size


def quantized_cache(model: PreTrainedModel, kv_cache: Literal["int8", "int4"]) -> Cache:
    """An empty cache that grows.

    Raises:
        QbenchError: HQQ is not installed, or the model's layers do not all attend to everything.
    """
    if find_spec("hqq") is None:
        raise QbenchError(f"kv_cache: {kv_cache} needs hqq; {INSTALL}")
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    try:
        return QuantizedCache(
            backend="hqq",
            config=config,
            nbits=BITS[kv_cache],
            axis_key=1,
            axis_value=1,
            q_group_size=group_size(heads, width),
            residual_length=RESIDUAL,
        )
    except ValueError as error:
        raise QbenchError(f"kv_cache: {kv_cache}: {error}; use 16bit") from error
