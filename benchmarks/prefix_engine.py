"""What reading shared prompts once saves: MMLU by the prefix engine against lm-evaluation-harness's own code.

    python benchmarks/prefix_engine.py [--data MMLU] [--out FOLDER]               # time, tokens, equality in float32
    python benchmarks/prefix_engine.py --accuracy [--data MMLU] [--out FOLDER]    # accuracy in bfloat16, every question

The first takes a Llama of random weights with the demo model's tokenizer, large enough that forwards, not Python, take
the time, over some whole subjects, and compares every log-probability and every predicted letter. The second takes the
demo model over all subjects: in 16 bit sums are rounded in another order, so that letters that nearly tie may change.
Both engines run in one process, one after the other, on the same questions; wall time includes prompts and tokens.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import record
import torch
import typer
from transformers import AutoTokenizer

from qbench import demo
from qbench.backends.base import import_backend
from qbench.backends.fp16 import FP16
from qbench.config import MMLUConfig, ModelConfig, Reading
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.measure.lm_eval.harness import Evaluation, evaluate, quiet_harness
from qbench.measure.lm_eval.mmlu_data import load_tasks, task_manager
from qbench.model.find import resolve
from qbench.model.load import LoadOptions

SUBJECTS = ("abstract_algebra", "global_facts", "management", "medical_genetics", "us_foreign_policy")
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2816,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
"""53 million weights, 51 of them in the blocks."""


def load(model: ModelConfig, dtype: torch.dtype) -> LoadedModel:
    """The unquantized model on the CPU, with the demo model's tokenizer."""
    folder = resolve(model, dtype="float32", seed=0, say=print)
    options = LoadOptions(folder=folder, device=torch.device("cpu"), dtype=dtype, work=Path())
    loaded = import_backend(FP16()).load(options, FP16(), None)
    return dataclasses.replace(loaded, tokenizer=AutoTokenizer.from_pretrained(demo.MODEL_DIR))


def random_model(work: Path) -> ModelConfig:
    """A larger sister of the demo model, with random weights."""
    shape = json.loads((demo.MODEL_DIR / "config.json").read_text())
    (work / "config.json").write_text(json.dumps(shape | SHAPE))
    return ModelConfig(path=work, weights="random")


def run(loaded: LoadedModel, engine: Reading, config: MMLUConfig) -> tuple[float, Evaluation]:
    """Wall seconds, and what was found."""
    start = time.perf_counter()
    with quiet_harness():
        found = evaluate(
            TorchEngine(loaded),
            load_tasks(config),
            what=engine,
            share=engine == "prefix",
            batch_size=config.batch_size,
            num_fewshot=5,
            limit=None,
            manager=task_manager(),
            progress=lambda *_: None,
        )
    return time.perf_counter() - start, found


def logprobs(found: Evaluation) -> np.ndarray:
    """[questions, letters], in the order of subjects and questions."""
    samples = found.results["samples"]
    return np.array([[p for p, _ in one["filtered_resps"]] for name in sorted(samples) for one in samples[name]])


def accuracy(found: Evaluation) -> float:
    """Of all questions."""
    return float(np.mean([one["acc"] for samples in found.results["samples"].values() for one in samples]))


def main(
    data: Annotated[str | None, typer.Option(help="folder in MMLU's published layout; the hub unless given")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the tables as CSV, with run.json")] = None,
    accuracy_only: Annotated[bool, typer.Option("--accuracy", help="the demo model, bfloat16, all subjects")] = False,
    subjects: Annotated[str, typer.Option(help="of the timed comparison, separated by commas")] = ",".join(SUBJECTS),
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
) -> None:
    """Compare the engines."""
    chosen = None if accuracy_only else tuple(subjects.split(","))
    config = MMLUConfig(data=data, subjects=chosen, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as work:
        model = ModelConfig(demo=True) if accuracy_only else random_model(Path(work))
        loaded = load(model, torch.bfloat16 if accuracy_only else torch.float32)
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    found: dict[Reading, tuple[float, Evaluation]] = {"prefix": run(loaded, "prefix", config)}
    found["stock"] = run(loaded, "stock", config)
    rows: list[dict[str, object]] = [
        {
            "engine": engine,
            "weights": weights,
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "questions": len(logprobs(result)),
            "wall_s": wall_s,
            "tokens": result.forward_tokens.read,
            "padded_tokens": result.forward_tokens.padded,
            "accuracy": accuracy(result),
        }
        for engine, (wall_s, result) in found.items()
    ]
    (fast_s, prefix), (slow_s, stock) = found["prefix"], found["stock"]
    ours, theirs = logprobs(prefix), logprobs(stock)
    comparison: list[dict[str, object]] = [
        {
            "wall_ratio": slow_s / fast_s,
            "token_ratio": stock.forward_tokens.read / prefix.forward_tokens.read,
            "padded_token_ratio": stock.forward_tokens.padded / prefix.forward_tokens.padded,
            "largest_difference": float(np.abs(ours - theirs).max()),
            "other_predictions": int((ours.argmax(1) != theirs.argmax(1)).sum()),
            "accuracy_difference": accuracy(prefix) - accuracy(stock),
        }
    ]
    name = "prefix_engine_accuracy" if accuracy_only else "prefix_engine"
    record.keep(out, {name: rows, f"{name}_comparison": comparison}, script=name)


if __name__ == "__main__":
    typer.run(main)
