"""A GGUF file with a model card, for llama.cpp, Ollama and LM Studio."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import llama_cpp
from huggingface_hub import CardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from qbench import __version__
from qbench.backends.gguf.check import check
from qbench.backends.gguf.file import File
from qbench.backends.gguf.imatrix import CHUNKS, DATASET
from qbench.backends.gguf.options import GGUF
from qbench.compat.llama_cpp import build
from qbench.engine.llama_cpp.context import Model
from qbench.errors import QbenchError
from qbench.model.content import sha256
from qbench.model.load import LoadOptions, load_tokenizer
from qbench.text import human_bytes

SAMPLE = (
    "The old mill stood by the river; its wheel hadn't turned since 1987.\n\n  - 12,500 sacks of flour (3.5 t each)\n"
    "\t“Who'll repair it?” asked Élise — nobody answered.  Prices rose by 7 %, then fell.\n"
)
"""Words, numbers, punctuation and white space, which tokenizers split by different rules."""


def export(options: LoadOptions, config: GGUF, name: str, out: Path) -> Path:
    """Write the cell's file, README.md and Ollama's Modelfile into the folder `out`; return the file's new place.

    Args:
        config: with its file, see `GGUF.with_checkpoint`.
        name: of the model, as people call it.

    Raises:
        QbenchError: the file is not the model's, or holds no tokenizer.
    """
    assert config.file is not None, "with_checkpoint"
    file = File(config.file.expanduser(), f"backends.{config.label}.file")
    tokenizer = load_tokenizer(options)
    check(file, options, config, tokenizer)
    if tokenizer is None or file.value("tokenizer.ggml.model") in (None, "none"):
        raise QbenchError(
            f"backends.{config.label}: {file.path} holds no tokenizer, so that it reads no text; llama.cpp knows BPE "
            "tokenizers only, choose a model that has one"
        )
    title = f"{name.rpartition('/')[2]}-{file.file_type}"
    target = out / f"{title}.gguf"
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file.path, target)
    (out / "Modelfile").write_text(f"FROM ./{target.name}\n", encoding="utf-8")
    (out / "README.md").write_text(_card(file, config, tokenizer, name, target), encoding="utf-8")
    return target


def _card(file: File, config: GGUF, tokenizer: Any, name: str, target: Path) -> str:
    linears = file.linears
    hub = name.count("/") == 1
    front = CardData(
        library_name=GGUF.hub_library, base_model=name if hub else None, tags=["gguf", "llama.cpp", file.file_type]
    )
    templates = Environment(
        loader=PackageLoader("qbench.backends.gguf", "."), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    return templates.get_template("README.md.j2").render(
        front=front.to_yaml(),
        title=target.stem,
        model=name,
        source=f"https://huggingface.co/{name}" if hub else ".",
        quant=file.file_type,
        bits=sum(tensor.bytes for tensor in linears) * 8 / sum(tensor.weights for tensor in linears),
        size=human_bytes(target.stat().st_size),
        made=config.quant is not None,
        chunks=file.value(CHUNKS),
        dataset=file.value(DATASET),
        version=__version__,
        llama_cpp=build(),
        file=target.name,
        sha256=sha256(target),
        prompt="The capital of",
        agreement=_agreement(target, tokenizer),
    )


def _agreement(file: Path, tokenizer: Any) -> str:
    """Whether llama.cpp reads a text as the model's tokenizer does, in a sentence."""
    expected = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    if tokenize(Model(file, vocabulary_only=True), SAMPLE) == expected:
        return "llama.cpp reads a sample of words, numbers and punctuation as the model's own tokenizer does."
    return (
        "llama.cpp has no name for the rules by which this model's tokenizer splits a text before it merges bytes, and "
        "reads some numbers, contractions or line breaks otherwise. Its answers to them can be worse than those that "
        "qbench measures, which reads every text with the model's own tokenizer."
    )


def tokenize(model: Model, text: str) -> list[int]:
    """Token ids of a text by the file's own vocabulary, without special tokens."""
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 2))()
    vocabulary = llama_cpp.llama_model_get_vocab(model.handle)
    count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, False)
    return list(ids[:count])
