"""The body of a model card: what was measured, how to measure it again, what it does not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from qbench.analysis.figures import PLAIN_CACHE, CellSummary, RunSummary, Speed
from qbench.records.rows import GenerationRow
from qbench.records.run import Run
from qbench.show.formats import percent
from qbench.show.markdown import code, fenced, inline, preformatted
from qbench.show.phrases import cache_words, ratio_words, remarks
from qbench.show.verdicts import DIVERGENCE, detectable_words, difference_words
from qbench.text import MISSING, human_bytes

SAMPLES = 5


def body(summary: RunSummary, cell: CellSummary, generations: Sequence[GenerationRow]) -> str:
    """Everything below the front matter, of a cell, compared with the reference of its run."""
    run, reference = summary.run, summary.reference
    base = None if reference is cell else reference
    sections = [
        _introduction(run, cell),
        _figures(cell, base),
        _conditions(run, cell),
        _reproduction(run, cell, base),
        _samples(generations),
        _limits(run, cell),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _introduction(run: Run, cell: CellSummary) -> str:
    name, model, where = inline(cell.name), inline(run.record.model), inline(run.record.hardware)
    if cell.bits_per_weight is None or cell.row.bits is None:
        how = f"as {name} serves it"
    elif cell.row.bits < 16:
        how = f"quantized to {cell.bits_per_weight:.2f} bits a weight by {name}"
    else:
        how = f"in {cell.row.bits} bit, as published"
    return f"# {model}, {name}\n\n{model} {how}, measured by qbench on {where}."


def _figures(cell: CellSummary, base: CellSummary | None) -> str:
    """A table of the cell's figures beside those of the reference."""
    rows = [*_sizes(cell, base), *_speeds(cell, base), *_quality(cell, base)]
    header = ["figure", "this checkpoint", *(["16 bit"] if base else [])]
    lines = [header, ["---"] * len(header), *([name, own, *([other] if base else [])] for name, own, other in rows)]
    marks = [f"\n{inline(remark)}" for remark in remarks([one for one in (cell, base) if one])]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = (
        "Brackets are 95 % intervals: Wilson's for an accuracy, Tango's for its difference to 16 bit (those of all "
        "cells of the run hold together) with McNemar's p-value corrected by Holm, Welch's on logarithms over the "
        f"trials for a speed-up. {DIVERGENCE}."
    )
    return "\n".join(["## Figures\n", table, *marks, "", note])


def _sizes(cell: CellSummary, base: CellSummary | None) -> Iterator[tuple[str, str, str]]:
    for name, key in (("weights", "weight_bytes"), ("peak memory, first forward", "peak_memory_bytes")):
        own, other = (human_bytes(getattr(one.row, key) if one else None) for one in (cell, base))
        yield name, own, other


def _speeds(cell: CellSummary, base: CellSummary | None) -> Iterator[tuple[str, str, str]]:
    for speed in cell.speeds:
        own, other = _speed(speed), _speed(base.at(speed.batch_size)) if base else MISSING
        if (own, other) != (MISSING, MISSING):
            words = ratio_words(speed.speedup)
            yield f"decode speed at batch {speed.batch_size}", own + (f", {words} of 16 bit" if words else ""), other


def _speed(speed: Speed) -> str:
    if speed.tokens_per_s is None:
        return inline(speed.status) if speed.status else MISSING
    return f"{speed.tokens_per_s:,.1f} tokens/s{' !' if speed.reasons else ''}"


def _quality(cell: CellSummary, base: CellSummary | None) -> Iterator[tuple[str, str, str]]:
    if cell.accuracy:
        yield "accuracy", _accuracy(cell), _accuracy(base) if base else MISSING
        if words := difference_words(cell.accuracy):
            yield "accuracy against 16 bit", inline(words), ""
            yield "smallest difference that would have shown, points", detectable_words(cell.accuracy), ""
    if text := cell.text:
        other = f"{base.text.perplexity:.4f}" if base and base.text else MISSING
        yield f"perplexity of {inline(text.dataset)}", f"{text.perplexity:.4f}", other
        if text.kl_mean is not None:
            yield "divergence from 16 bit, nats a token, at least", f"{text.kl_mean:.2e}", ""
        if text.tail_mass_mean is not None:
            yield "probability that the divergence does not look into", percent(text.tail_mass_mean), ""


def _accuracy(cell: CellSummary) -> str:
    found = cell.accuracy
    if found is None:
        return MISSING
    partial = ", partial" if found.partial else ""
    interval = f"[{100 * found.low:.2f}, {100 * found.high:.2f}]"
    return f"{100 * found.value:.2f} % {interval} of {found.n:,} questions{partial}"


def _conditions(run: Run, cell: CellSummary) -> str:
    machine, trials = run.record.environment, [trial for trial in run.throughput if trial.label == cell.label]
    lengths = [speed.lengths for speed in cell.speeds if speed.lengths]
    facts = {
        "machine": run.record.hardware,
        "system": ", ".join(filter(None, [machine.os, f"Python {machine.python}", machine.driver])),
        "kernel": cell.row.kernel,
        "dtype": cell.row.dtype,
        "decoding": "{} prompt and {} new tokens".format(*lengths[-1]) + cache_words(trials) if lengths else "",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items())),
        "measured": f"{run.record.started:%Y-%m-%d}",
    }
    return "\n".join(["## Measured with\n", *(f"- {name}: {inline(text)}" for name, text in facts.items() if text)])


def _reproduction(run: Run, cell: CellSummary, base: CellSummary | None) -> str:
    labels = {one.label for one in (cell, base) if one}
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


def _limits(run: Run, cell: CellSummary) -> str:
    model = run.record.config.get("model") or {}
    said = {
        "The weights are random: memory and speed are measured, and nothing is said of quality.": (
            model.get("weights") == "random"
        ),
        "The demo model knows a made-up world: its accuracy says nothing about other models.": bool(model.get("demo")),
        "Accuracy was not measured over all questions.": cell.accuracy is None or cell.accuracy.partial,
        "The run does not say what all of its trials ran under.": any(
            speed.trials and speed.validity is None for speed in cell.speeds
        ),
        "Accuracy and perplexity were measured with keys and values in 16 bit, unlike speed.": (
            cell.kv_cache != cell.scored_over == PLAIN_CACHE
        ),
        "Figures of one machine at one time: another one, other versions or lengths give other speeds.": True,
        "Multiple-choice accuracy and perplexity say little of long answers, safety or other languages.": True,
        "The license is the base model's, which the figures do not know.": True,
    }
    return "\n".join(["## Limits\n", *(f"- {text}" for text, applies in said.items() if applies)])
