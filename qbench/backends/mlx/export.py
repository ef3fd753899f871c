"""A folder in MLX's format with a model card, for mlx-lm and whatever is built on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import CardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from qbench import __version__
from qbench.backends.mlx import Mlx
from qbench.errors import QbenchError
from qbench.model.load import LoadOptions


def export(options: LoadOptions, config: Mlx, name: str, out: Path) -> Path:
    """Copy the cell's folder to `out` and write README.md; return `out`.

    Args:
        config: with its folder, see `Mlx.with_checkpoint`.
        name: of the model, as people call it.

    Raises:
        QbenchError: the model has no tokenizer.
    """
    assert config.checkpoint is not None, "with_checkpoint"
    folder = config.checkpoint.expanduser()
    if not (folder / "tokenizer_config.json").is_file():
        raise QbenchError(f"backends.{config.label}: {name} has no tokenizer, so that mlx-lm reads no text with it")
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "manifest.json"))
    hub = name.count("/") == 1
    front = CardData(library_name=Mlx.hub_library, base_model=name if hub else None, tags=["mlx", f"{config.bits}-bit"])
    templates = Environment(
        loader=PackageLoader("qbench.backends.mlx", "."), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    card = templates.get_template("README.md.j2").render(
        front=front.to_yaml(),
        title=f"{name.rpartition('/')[2]}-mlx-{config.bits}bit",
        model=name,
        source=f"https://huggingface.co/{name}" if hub else ".",
        bits=config.bits,
        group_size=config.group_size,
        dtype=str(options.dtype).removeprefix("torch."),
        version=__version__,
        prompt="The capital of",
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    return out
