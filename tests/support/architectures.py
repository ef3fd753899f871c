"""Architectures of models that are not loaded."""

import json
from pathlib import Path

from qbench.model.architecture import Architecture, parse
from qbench.model.find import shapes

LLAMA = parse(json.loads(shapes()["llama-3-8b"].read_text()), "llama-3-8b")


def architecture(folder: Path) -> Architecture:
    return parse(json.loads((folder / "config.json").read_text()), "x")
