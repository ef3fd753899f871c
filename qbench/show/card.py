"""The body of a model card: what was measured, how to measure it again, what it does not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from qbench.analysis import validity
from qbench.analysis.effects import PLAIN_CACHE, cache_words, kept_in
from qbench.analysis.stats import batch_sizes
from qbench.decide.candidates import size
from qbench.records.rows import GenerationRow
from qbench.records.run import Run, display_label
from qbench.show.markdown import code, fenced, inline, preformatted
from qbench.show.phrases import accuracy_words, speedup_words
from qbench.show.terminal import MISSING

Record = Mapping[Any, Any]
"""A row of the summary, or of a table."""

SAMPLES = 5


def body(run: Run, row: Record, base: Record | None, generations: Sequence[GenerationRow]) -> str:
    """Everything below the front matter, of the cell in `row`, compared with the 16-bit cell in `base`."""
    sections = [
        _introduction(run, row),
        _figures(run, row, base),
        _conditions(run, row),
        _reproduction(run, row, base),
        _samples(generations),
        _limits(run, row),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _introduction(run: Run, row: Record) -> str:
    cell = _cell(run, row)
    name = display_label(str(row["backend"]), str(row["label"]))
    effective = cell["effective_bits_per_weight"]
    bits = float(cell["bits"] if pd.isna(effective) else effective)
    how = (
        "in 16 bit, as published" if cell["bits"] == 16 else f"quantized to {bits:.2f} bits a weight by {inline(name)}"
    )
    where = inline(run.record.hardware)
    model = inline(run.record.model)
    return f"# {model}, {inline(name)}\n\n{model} {how}, measured by qbench on {where}."


def _figures(run: Run, row: Record, base: Record | None) -> str:
    """A table of the cell's figures beside those of the 16-bit cell."""
    rows = [*_sizes(run, row, base), *_speeds(run, row, base), *_quality(run, row, base)]
    header = ["figure", "this checkpoint", *(["16 bit"] if base else [])]
    lines = [header, ["---"] * len(header), *([name, own, *([other] if base else [])] for name, own, other in rows)]
    marks = [
        f"\n{inline(remark)}" for remark in validity.remarks([one for one in (row, base) if one], batch_sizes(run))
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = (
        "Brackets are 95 % intervals: Wilson's for an accuracy, a paired bootstrap for its difference to 16 bit with "
        "McNemar's p-value corrected by Holm, Welch's on logarithms over the trials for a speed-up."
    )
    return "\n".join(["## Figures\n", table, *marks, "", note])


def _sizes(run: Run, row: Record, base: Record | None) -> Iterator[tuple[str, str, str]]:
    own, other = _cell(run, row), _cell(run, base) if base else {}
    for name, key in (("weights", "weight_bytes"), ("peak memory, first forward", "peak_memory_bytes")):
        yield name, _bytes(own.get(key)), _bytes(other.get(key))


def _speeds(run: Run, row: Record, base: Record | None) -> Iterator[tuple[str, str, str]]:
    for batch in batch_sizes(run):
        own, other = (_speed(one, batch) if one else MISSING for one in (row, base))
        if (own, other) != (MISSING, MISSING):
            words = speedup_words(row, batch)
            yield f"decode speed at batch {batch}", own + (f", {words} of 16 bit" if words else ""), other


def _speed(row: Record, batch: int) -> str:
    speed, status = row[f"decode_tokens_per_s_b{batch}"], row[f"status_b{batch}"]
    if pd.isna(speed):
        return MISSING if pd.isna(status) else inline(str(status))
    return f"{speed:,.1f} tokens/s{validity.mark(row, batch)}"


def _quality(run: Run, row: Record, base: Record | None) -> Iterator[tuple[str, str, str]]:
    own, other = (_accuracy(one) if one else MISSING for one in (row, base))
    if own != MISSING:
        yield "accuracy", own, other
        if words := accuracy_words(row):
            yield "accuracy against 16 bit", inline(words), ""
    if not pd.isna(row["perplexity"]):
        dataset = run.perplexity.loc[run.perplexity["label"] == row["label"], "dataset"].iloc[-1]
        known = base and not pd.isna(base["perplexity"])
        yield (
            f"perplexity of {inline(str(dataset))}",
            f"{row['perplexity']:.4f}",
            f"{base['perplexity']:.4f}" if known else MISSING,
        )
    if not pd.isna(row["kl_mean"]):
        yield "divergence from 16 bit, nats a token", f"{row['kl_mean']:.2e}", ""


def _accuracy(row: Record) -> str:
    if pd.isna(row["mmlu"]):
        return MISSING
    low, high = 100 * row["mmlu_ci_low"], 100 * row["mmlu_ci_high"]
    partial = ", partial" if row["mmlu_partial"] else ""
    return f"{100 * row['mmlu']:.2f} % [{low:.2f}, {high:.2f}] of {row['mmlu_n']:,} questions{partial}"


def _conditions(run: Run, row: Record) -> str:
    cell, machine = _cell(run, row), run.record.environment
    trials = run.throughput[run.throughput["label"] == row["label"]].to_dict("records")
    lengths = f"{trials[-1]['prompt_tokens']} prompt and {trials[-1]['new_tokens']} new tokens" if trials else ""
    lengths += cache_words(run.throughput[run.throughput["label"] == row["label"]])
    versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
    facts = {
        "machine": run.record.hardware,
        "system": ", ".join(filter(None, [machine.os, f"Python {machine.python}", machine.driver])),
        "kernel": cell["kernel"],
        "dtype": cell["dtype"],
        "decoding": lengths,
        "versions": versions,
        "measured": f"{run.record.started:%Y-%m-%d}",
    }
    lines = [f"- {name}: {inline(str(value))}" for name, value in facts.items() if not pd.isna(value) and value]
    return "\n".join(["## Measured with\n", *lines])


def _reproduction(run: Run, row: Record, base: Record | None) -> str:
    labels = {str(one["label"]) for one in (row, base) if one}
    config = {**run.record.config}
    config["backends"] = [
        one for one in config.get("backends") or () if str(one.get("label") or one.get("kind")) in labels
    ]
    text = yaml.safe_dump(_given(config), sort_keys=False, allow_unicode=True)
    return "\n\n".join(
        [
            "## Reproduce",
            f"The run was made by {code(run.record.command)}. This measures the same cells:",
            fenced(text, "yaml"),
            fenced("qbench run card.yaml", "sh"),
        ]
    )


def _given(value: Any) -> Any:
    """Without what is null, which is how a key reads that is not there."""
    if isinstance(value, Mapping):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list | tuple) else value


def _samples(generations: Sequence[GenerationRow]) -> str:
    """Greedy continuations, as the model wrote them."""
    if not generations:
        return ""
    texts = [preformatted(f"{one.prompt} ▸{one.text}") for one in generations[:SAMPLES]]
    return "\n\n".join(["## Samples", "Greedy, after the mark.", *texts])


def _limits(run: Run, row: Record) -> str:
    model = run.record.config.get("model") or {}
    said = {
        "The weights are random: memory and speed are measured, and nothing is said of quality.": (
            model.get("weights") == "random"
        ),
        "The demo model knows a made-up world: its accuracy says nothing about other models.": bool(model.get("demo")),
        "Accuracy was not measured over all questions.": pd.isna(row["mmlu"]) or bool(row["mmlu_partial"]),
        "The run does not say what all of its trials ran under.": any(
            pd.isna(row[f"validity_b{batch}"]) and not pd.isna(row[f"decode_tokens_per_s_b{batch}"])
            for batch in batch_sizes(run)
        ),
        "Accuracy and perplexity were measured with keys and values in 16 bit, unlike speed.": (
            kept_in(run, str(row["label"])) != PLAIN_CACHE
        ),
        "Figures of one machine at one time: another one, other versions or lengths give other speeds.": True,
        "Multiple-choice accuracy and perplexity say little of long answers, safety or other languages.": True,
        "The license is the base model's, which the figures do not know.": True,
    }
    return "\n".join(["## Limits\n", *(f"- {text}" for text, applies in said.items() if applies)])


def _cell(run: Run, row: Record) -> Record:
    return {**run.cells[run.cells["label"] == row["label"]].iloc[-1]}


def _bytes(value: Any) -> str:
    return MISSING if value is None or pd.isna(value) else size(value)
