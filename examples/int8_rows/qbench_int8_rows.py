"""8-bit weights with a scale a row, in plain torch: w ≈ s q, with q in -127 … 127. A backend in one file."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from qbench.config import Backend
from qbench.config.target import Target

if TYPE_CHECKING:
    from qbench.engine.torch.loaded import LoadedModel
    from qbench.model.load import LoadOptions


class CONFIG(Backend):
    """What a configuration may say of a cell of this kind."""

    install: ClassVar[str] = "pip install qbench-int8-rows"
    libraries: ClassVar[tuple[str, ...]] = (*Backend.libraries, "qbench-int8-rows")
    color: ClassVar[str | None] = "#8c564b"
    kind: Literal["int8-rows"] = "int8-rows"
    clip: float = Field(default=1.0, gt=0, le=1, description="share of a row's largest weight that becomes 127")

    @property
    def weight_bits(self) -> int:
        return 8

    def linear_bytes(self, out_features: int, in_features: int, target: Target) -> int:
        return out_features * (in_features + target.value_bytes)

    def product_bytes(self, out_features: int, in_features: int, tokens: int, target: Target) -> int:
        weight, output = (out_features * size * target.value_bytes for size in (in_features, tokens))
        return max(2 * weight - output, output)  # codes as numbers and scaled; or the output without its bias

    def load_bytes(self, weight_bytes: int, parameters: int, largest_linear: int) -> int:
        return 2 * parameters + weight_bytes  # the 16-bit model goes when all linears are made


def load(options: "LoadOptions", config: CONFIG, calibration: object) -> "LoadedModel":
    """Load the model in 16 bit and put 8-bit linears in the places of those of its blocks."""
    import torch  # here, so that reading a configuration does not import it

    from qbench.engine.torch.loaded import LoadedModel, block_linears, storage_bytes
    from qbench.model.load import load_pretrained, load_tokenizer

    class RowsLinear(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            scales = linear.weight.detach().float().abs().amax(1, keepdim=True).clamp(min=1e-12) * config.clip / 127
            self.register_buffer("codes", (linear.weight.detach() / scales).round().clamp(-127, 127).to(torch.int8))
            self.register_buffer("scales", scales.to(options.dtype))
            self.bias = 0.0 if linear.bias is None else linear.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.codes.to(x.dtype) * self.scales).T + self.bias  # unscaled, float16 overflows

    model = load_pretrained(options)
    rows = {name: RowsLinear(linear) for name, linear in block_linears(model).items()}
    for name, linear in rows.items():
        model.set_submodule(name, linear)
    return LoadedModel(
        model=model,
        tokenizer=load_tokenizer(options),
        device=options.device,
        dtype=options.dtype,
        kernel=RowsLinear.__name__,
        quantized=tuple(name for name, module in model.named_modules() if isinstance(module, RowsLinear)),
        expected=tuple(rows),
        linear_bytes=storage_bytes(tensor for linear in rows.values() for tensor in linear.buffers()),
        linear_weights=sum(linear.codes.numel() for linear in rows.values()),
    )
