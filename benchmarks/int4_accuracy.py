"""What the search for scales buys: error on Gaussian weights, and perplexity of the demo model, against NF4.

    python benchmarks/int4_accuracy.py [--out FOLDER]

Perplexity is that of the demo model's held-out text, in windows that do not overlap; beside it stand the
Kullback-Leibler divergence from the 16-bit model and the paired difference to NF4 (nats a token), each with a standard
error. The other figures need no model: relative squared errors of a 1024 x 1024 Gaussian weight, for which
rate-distortion theory bounds every 4-bit code by 0.39 %, and the time to quantize a weight of Llama-3-8B.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import record
import torch
import typer
from rich.progress import track
from torch import Tensor

from qbench import demo
from qbench.backends.base import import_backend
from qbench.backends.fp16 import FP16
from qbench.backends.int4 import Int4
from qbench.backends.nf4 import NF4
from qbench.config import Backend
from qbench.engine.torch.loaded import LoadedModel
from qbench.int4 import dequantize, quantize
from qbench.int4.quantizer import Search
from qbench.model.load import LoadOptions

WINDOW = 512
CELLS: dict[str, Backend] = {
    "fp16": FP16(),
    "nf4": NF4(),
    **{
        f"int4 g{size} {search}{' symmetric' if symmetric else ''}": Int4(
            group_size=size, search=search, symmetric=symmetric
        )
        for size in (32, 64, 128, -1)
        for symmetric in (False, True)
        for search in ("none", "mse")
    },
}
LARGE = (4096, 14336)


def load(backend: Backend) -> LoadedModel:
    """The demo model in bfloat16."""
    options = LoadOptions(folder=demo.MODEL_DIR, device=torch.device("cpu"), dtype=torch.bfloat16, work=Path())
    return import_backend(backend).load(options, backend, None)


@torch.inference_mode()
def log_probabilities(loaded: LoadedModel, text: str) -> tuple[Tensor, Tensor]:
    """Of every token after the first of its window, float32 [tokens, vocabulary], and the tokens [tokens]."""
    assert loaded.tokenizer is not None
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    logits = [loaded.model(input_ids=batch, use_cache=False).logits[:, :-1] for batch in windows.split(8)]
    return torch.cat(logits).flatten(0, 1).float().log_softmax(-1), windows[:, 1:].flatten()


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean, and its standard error."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def perplexities(text: str) -> list[dict[str, object]]:
    """Every cell; differences are paired, token by token."""
    rows: list[dict[str, object]] = []
    losses: dict[str, Tensor] = {}
    reference: Tensor | None = None
    for label, backend in track(CELLS.items(), "demo model", transient=True):
        loaded = load(backend)
        found, tokens = log_probabilities(loaded, text)
        reference = found if reference is None else reference
        losses[label] = -found.gather(1, tokens[:, None])[:, 0]
        kl, kl_error = mean_and_error((reference.exp() * (reference - found)).sum(-1))
        nf4, nf4_error = mean_and_error(losses[label] - losses.get("nf4", losses[label]))
        rows.append(
            {
                "cell": label,
                "bits_per_weight": loaded.effective_bits_per_weight,
                "tokens": len(tokens),
                "perplexity": losses[label].mean().exp().item(),
                "kl": kl,
                "kl_error": kl_error,
                "loss_minus_nf4": nf4,
                "loss_minus_nf4_error": nf4_error,
            }
        )
    return rows


def gaussian_errors() -> list[dict[str, object]]:
    """Relative squared error by options."""
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    rows = []
    for bits in (2, 3, 4, 8):
        for group_size in (32, 64, 128, -1, 0):
            for symmetric in (False, True):
                for search in ("none", "mse"):
                    q = quantize(weight, bits=bits, group_size=group_size, symmetric=symmetric, search=search)
                    lost = ((dequantize(q) - weight).square().sum() / weight.square().sum()).item()
                    bits_per_weight = q.nbytes * 8 / weight.numel()
                    rows.append(
                        {
                            "bits": bits,
                            "group_size": group_size,
                            "symmetric": symmetric,
                            "search": search,
                            "bits_per_weight": bits_per_weight,
                            "relative_squared_error": lost,
                        }
                    )
    return rows


def quantize_seconds(search: Search) -> float:
    """Of the best of three."""
    weight = torch.randn(LARGE).bfloat16()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        quantize(weight, search=search)
        best = min(best, time.perf_counter() - start)
    return best


def main(out: Annotated[Path | None, typer.Option(help="folder for the tables as CSV, with run.json")] = None) -> None:
    """Take all figures."""
    text = (demo.MODEL_DIR.parent / "heldout.txt").read_text(encoding="utf-8")
    cells = perplexities(text)
    times = [
        {"rows": LARGE[0], "columns": LARGE[1], "search": s, "seconds": quantize_seconds(s)} for s in ("none", "mse")
    ]
    tables = {"int4_perplexity": cells, "int4_gaussian_error": gaussian_errors(), "int4_quantize_seconds": times}
    record.keep(out, tables, script="int4_accuracy")


if __name__ == "__main__":
    typer.run(main)
