"""The front matter of a model card.

It follows the hub's specification (github.com/huggingface/hub-docs, modelcard.md); its `model-index` is made by
huggingface_hub. What is not known, such as a license, is not said.
"""

from __future__ import annotations

from typing import Any

from qbench.analysis.figures import CellSummary
from qbench.config import Backend, backend_class
from qbench.records.run import Run
from qbench.text import one_line

NOT_A_SETTING = ("kind", "label", "python", "checkpoint")
"""Keys of a backend's configuration that say nothing of the weights, or name a place of this machine."""


def metadata(run: Run, cell: CellSummary) -> dict[str, Any]:
    """The front matter: base model, library, tags, how it is quantized, and the results in `model-index`."""
    from huggingface_hub import ModelCardData

    settings = cell_settings(run, cell.label)
    model, bits = run.record.config.get("model") or {}, cell.row.bits
    quantization: dict[str, Any] = {"method": cell.kind, "bits": bits}
    quantization |= {key: value for key, value in settings.items() if key not in NOT_A_SETTING and value is not None}
    if cell.row.effective_bits_per_weight is not None:
        quantization["effective_bits_per_weight"] = round(cell.row.effective_bits_per_weight, 4)
    quantized = bits is not None and bits < 16
    results = _results(run, cell)
    name = one_line(f"{run.record.model} {cell.label}")
    found = ModelCardData(
        base_model=model.get("id"),
        base_model_relation="quantized" if model.get("id") and quantized else None,
        library_name=(backend_class(cell.kind) or Backend).hub_library,
        pipeline_tag="text-generation",
        tags=[*(["quantized", f"{bits}-bit"] if quantized else []), cell.kind, "qbench"],
        quantization=quantization if quantized else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    front: dict[str, Any] = found.to_dict()
    return front


def cell_settings(run: Run, label: str) -> dict[str, Any]:
    """A cell's section of the configuration; empty if it is not there."""
    for settings in run.record.config.get("backends") or ():
        if (settings.get("label") or settings.get("kind")) == label:
            return dict(settings)
    return {}


def _results(run: Run, cell: CellSummary) -> list[Any]:
    """The cell's accuracy and perplexity as `EvalResult`s."""
    from huggingface_hub import EvalResult

    mmlu = (run.record.config.get("measure") or {}).get("mmlu") or {}
    demo = mmlu.get("data") == "demo"
    found = []
    if accuracy := cell.accuracy:
        found.append(
            EvalResult(
                task_type="text-generation",
                task_name="Multiple-choice questions",
                dataset_type="qbench-demo" if demo else "cais/mmlu",
                dataset_name="The demo model's questions" if demo else "MMLU",
                dataset_config=None if demo else "all",
                dataset_split="test",
                dataset_args={"num_few_shot": mmlu.get("num_fewshot", 5), "questions": accuracy.n},
                metric_type="accuracy",
                metric_name="accuracy over a part of the questions" if accuracy.partial else "accuracy",
                metric_value=round(accuracy.value, 5),
                metric_args={"confidence_interval_95": [round(end, 5) for end in accuracy.interval]},
            )
        )
    if text := cell.text:
        found.append(
            EvalResult(
                task_type="text-generation",
                **_text_source(one_line(text.dataset)),
                dataset_args={"window": text.window, "tokens": text.n_tokens},
                metric_type="perplexity",
                metric_name="perplexity over a part of the text" if text.partial else "perplexity",
                metric_value=round(text.perplexity, 5),
            )
        )
    return found


def _text_source(dataset: str) -> dict[str, str]:
    """The hub's names for WikiText-2; any other text by its own."""
    if dataset != "wikitext2":
        return {"dataset_type": dataset, "dataset_name": dataset}
    hub = {"dataset_type": "Salesforce/wikitext", "dataset_name": "WikiText-2"}
    return hub | {"dataset_config": "wikitext-2-raw-v1", "dataset_split": "test"}
