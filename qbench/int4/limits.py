"""From how many rows of activations on a kernel dequantizes, in blocks of which size, and which groups it takes.

Imports nothing, so that memory can be predicted where torch is not loaded.
"""

TILE_ROWS = 16
"""Rows of a weight that the C kernel keeps together."""

BLOCK_BYTES, BLOCK_BYTES_AMX = 1 << 21, 1 << 24
"""Of such a block."""
FLOAT_ROWS = 1024
"""Rows of activations that are float32 at once, where their own dtype is not multiplied in: each time, the weight is
dequantized anew, which 1,024 rows do not notice."""


def dequantize_from(level: str, bits: int, bfloat16: bool) -> int | None:
    """Rows of activations from which dequantizing a block and torch's product are faster than the C kernel's product.

    `level` is one of `native.LEVELS`. None where products are of 16-bit integers: for 512 rows, too, those took less
    time than dequantizing and torch's product.
    """
    if level == "generic":
        return 64
    return 1536 if level == "amx" and bfloat16 and bits == 4 else None


def takes_groups(kernel: str, columns: int) -> bool:
    """Whether a kernel multiplies weights of which so many columns, but not the whole row, share a scale."""
    if kernel in ("cuda", "triton"):
        return columns in (32, 64) or columns % 128 == 0
    return kernel != "cpu" or columns % 32 == 0


TRITON_MAX_ROWS = 64
"""Rows of activations up to which Triton multiplies by codes; more of them meet a weight that was dequantized whole."""

CUDA_MAX_ROWS = 256
"""The same of the CUDA kernel."""
