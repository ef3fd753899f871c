"""The model card of a quantized checkpoint, in the hub's format, from a run's figures.

The front matter follows the hub's model card specification (github.com/huggingface/hub-docs, modelcard.md); its
`model-index` is made by huggingface_hub. What is not known, such as a license, is not said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from qbench.analysis.compare import reference_label
from qbench.analysis.stats import summarize
from qbench.config import Backend, backend_class
from qbench.errors import QbenchError
from qbench.records.rows import GenerationRow
from qbench.records.run import Run
from qbench.show.card import body
from qbench.text import one_line, suggestion

NOT_A_SETTING = ("kind", "label", "python", "checkpoint")
"""Keys of a backend's configuration that say nothing of the weights, or name a place of this machine."""


@dataclass(frozen=True, slots=True)
class Card:
    """A model card."""

    metadata: dict[str, Any]
    """The front matter."""
    body: str
    """Markdown."""

    @property
    def text(self) -> str:
        """The whole file."""
        from huggingface_hub import CardData

        front = CardData(**self.metadata).to_yaml()
        return f"---\n{front}\n---\n\n{self.body}"


def make_card(run: Run, label: str, generations: list[GenerationRow], *, allow_partial: bool = False) -> Card:
    """The card of a cell.

    Raises:
        QbenchError: the run has no such cell, or it did not end ok.
    """
    rows = {str(row["label"]): row for row in summarize(run, allow_partial=allow_partial).to_dict("records")}
    if label not in rows:
        there = one_line(", ".join(rows))
        raise QbenchError(f"--backend {label}: no such cell{suggestion(label, rows)} (there are: {there})")
    row = rows[label]
    if row["status"] != "ok":
        raise QbenchError(
            f"--backend {label}: the cell ended {one_line(str(row['status']))}; a card needs one that is ok"
        )
    reference = reference_label(run)
    base = rows.get(reference) if reference and reference != label else None
    return Card(metadata(run, row), body(run, row, base, [one for one in generations if one.label == label]))


def metadata(run: Run, row: Mapping[Any, Any]) -> dict[str, Any]:
    """The front matter: base model, library, tags, how it is quantized, and the results in `model-index`."""
    from huggingface_hub import ModelCardData

    settings = cell_settings(run, str(row["label"]))
    backend, model = str(row["backend"]), run.record.config.get("model") or {}
    cell = run.cells[run.cells["label"] == row["label"]].iloc[-1]
    quantization = {"method": backend, "bits": int(cell["bits"])}
    quantization |= {key: value for key, value in settings.items() if key not in NOT_A_SETTING and value is not None}
    if not pd.isna(cell["effective_bits_per_weight"]):
        quantization["effective_bits_per_weight"] = round(float(cell["effective_bits_per_weight"]), 4)
    quantized = int(cell["bits"]) < 16
    results = _results(run, row)
    name = one_line(f"{run.record.model} {row['label']}")
    found = ModelCardData(
        base_model=model.get("id"),
        base_model_relation="quantized" if model.get("id") and quantized else None,
        library_name=(backend_class(backend) or Backend).hub_library,
        pipeline_tag="text-generation",
        tags=[*(["quantized", f"{int(cell['bits'])}-bit"] if quantized else []), backend, "qbench"],
        quantization=quantization if quantized else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    front: dict[str, Any] = found.to_dict()
    return front


def read_generations(folder: Path) -> list[GenerationRow]:
    """The rows of a run's `generations.jsonl`; none if there is no such file.

    Raises:
        QbenchError: a line is damaged.
    """
    path = folder / "generations.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    try:
        return [GenerationRow.model_validate_json(line) for line in lines if line]
    except ValidationError as error:
        raise QbenchError(f"{path}: a line is damaged; remove it, or the file") from error


def cell_settings(run: Run, label: str) -> dict[str, Any]:
    """A cell's section of the configuration; empty if it is not there."""
    for settings in run.record.config.get("backends") or ():
        if (settings.get("label") or settings.get("kind")) == label:
            return dict(settings)
    return {}


def _results(run: Run, row: Mapping[Any, Any]) -> list[Any]:
    """The cell's accuracy and perplexity as `EvalResult`s."""
    from huggingface_hub import EvalResult

    measures = run.record.config.get("measure") or {}
    mmlu = measures.get("mmlu") or {}
    demo = mmlu.get("data") == "demo"
    found = []
    if not pd.isna(row["mmlu"]):
        found.append(
            EvalResult(
                task_type="text-generation",
                task_name="Multiple-choice questions",
                dataset_type="qbench-demo" if demo else "cais/mmlu",
                dataset_name="The demo model's questions" if demo else "MMLU",
                dataset_config=None if demo else "all",
                dataset_split="test",
                dataset_args={"num_few_shot": mmlu.get("num_fewshot", 5), "questions": int(row["mmlu_n"])},
                metric_type="accuracy",
                metric_name="accuracy over a part of the questions" if row["mmlu_partial"] else "accuracy",
                metric_value=round(float(row["mmlu"]), 5),
                metric_args={
                    "confidence_interval_95": [round(float(row[f"mmlu_ci_{end}"]), 5) for end in ("low", "high")]
                },
            )
        )
    texts = run.perplexity[run.perplexity["label"] == row["label"]].to_dict("records")
    if texts and not pd.isna(row["perplexity"]):
        found.append(
            EvalResult(
                task_type="text-generation",
                **_text_source(one_line(str(texts[-1]["dataset"]))),
                dataset_args={"window": int(texts[-1]["window"]), "tokens": int(texts[-1]["n_tokens"])},
                metric_type="perplexity",
                metric_name="perplexity over a part of the text" if texts[-1]["partial"] else "perplexity",
                metric_value=round(float(row["perplexity"]), 5),
            )
        )
    return found


def _text_source(dataset: str) -> dict[str, str]:
    """The hub's names for WikiText-2; any other text by its own."""
    if dataset != "wikitext2":
        return {"dataset_type": dataset, "dataset_name": dataset}
    hub = {"dataset_type": "Salesforce/wikitext", "dataset_name": "WikiText-2"}
    return hub | {"dataset_config": "wikitext-2-raw-v1", "dataset_split": "test"}
