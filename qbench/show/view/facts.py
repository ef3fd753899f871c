"""What a run says of itself: how it was measured and where, what failed, and what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence, Set
from typing import Any, cast

from qbench import DISTRIBUTION
from qbench.analysis.figures import CellSummary
from qbench.machine.environment import Environment
from qbench.records.run import Run, RunRecord
from qbench.show.phrases import cache_words

Record = dict[str, Any]
"""A row of a table, None where it has no value."""


def unreported(run: Run, cells: Sequence[CellSummary], allow_partial: bool, tasks_shown: Set[str]) -> list[str]:
    """Backends that were not run, limited evaluations, trials at which nobody looked, several machines."""
    notes = []
    if missing := _missing(run):
        notes.append(f"asked for and not run: {', '.join(missing)}")
    if run.record.finished is None:
        notes.append("the run has not finished, or was interrupted; the same command goes on with it")
    mmlu = [row for row in run.accuracy if row.task == "mmlu"]
    partial = {"accuracy": [row.partial for row in mmlu], "perplexity": [row.partial for row in run.perplexity]}
    limited = [name for name, found in partial.items() if any(found)]
    if limited and not allow_partial:
        notes.append(f"left out, of part of the questions or text only: {', '.join(limited)}; give --allow-partial")
    if any(trial.validity is None for trial in run.throughput if trial.status == "ok"):
        notes.append("what else the machine did during the trials was not recorded by this run")
    if len(run.hosts) > 1:
        notes.append(f"measured on several machines: {', '.join(run.hosts)}; memory and speed may differ")
    tasks = sorted({row.task for row in run.accuracy} - {"mmlu"} - tasks_shown)
    if tasks:
        notes.append(f"measured and not shown here, see accuracy.csv: {', '.join(tasks)}")
    if not limited and all(cell.accuracy is None for cell in cells):
        notes.append("MMLU was not measured")
    return notes


def tried(run: Run) -> str:
    """How much of the run there is, where nothing failed."""
    if not run.cells:
        return "Nothing has been measured."
    if _missing(run) or run.record.finished is None:
        return "What was measured ended ok; the run is not whole."
    return "Every backend and every trial ended ok."


def _missing(run: Run) -> list[str]:
    """Labels of the backends that were asked for and have no row."""
    there = {cell.label for cell in run.cells}
    return [backend["label"] for backend in run.record.config.get("backends") or () if backend["label"] not in there]


def failures(run: Run, names: Mapping[str, str]) -> list[str]:
    """Cells and trials that did not end ok, with the reason, a line each."""
    lines = []
    for cell in run.cells:
        if cell.status != "ok":
            lines.append(f"{names[cell.label]}: {cell.status}{_reason(cell.error)}")
        elif cell.failed:
            lines.append(f"{names[cell.label]}: failed: {cell.failed}")
    failed = (trial for trial in run.throughput if trial.status != "ok" and trial.label in names)
    trials = (f"{names[one.label]} at batch {one.batch_size}: {one.status}{_reason(one.error)}" for one in failed)
    return [*lines, *dict.fromkeys(trials)]


def _reason(error: str | None) -> str:
    return "" if error is None else f" ({error})"


def settings(run: Run, cells: Sequence[CellSummary]) -> dict[str, str]:
    """By measure (memory, throughput, mmlu), under which conditions it was taken, in words."""
    measures = cast(Record, run.record.config.get("measure") or {})
    found = {}
    if memory := measures.get("memory"):
        found["memory"] = "first forward after loading, batch {batch_size}, {seq_len:,} tokens".format(**memory)
    if run.throughput:
        prompt, new = (max(getattr(row, name) for row in run.throughput) for name in ("prompt_tokens", "new_tokens"))
        excluded = f"the first excluded{cache_words(run.throughput)}"
        found["throughput"] = f"{prompt:,} prompt and {new:,} new tokens, {excluded}; medians over trials"
    if run.sustained:
        columns = ("batch_size", "prompt_tokens", "new_tokens")
        batch, prompt, new = (max(getattr(row, name) for row in run.sustained) for name in columns)
        excluded = f"prefills excluded{cache_words(run.sustained)}"
        found["sustained"] = f"batch {batch}, {prompt:,} prompt and {new:,} new tokens on end, {excluded}"
    if run.load:
        lengths = {
            "prompt": [row.prompt_tokens_mean for row in run.load if row.prompt_tokens_mean is not None],
            "output": [row.output_tokens_mean for row in run.load if row.output_tokens_mean is not None],
        }
        sizes = " and ".join(f"{statistics.fmean(found):,.0f} {what}" for what, found in lengths.items() if found)
        each = (measures.get("load") or {}).get("requests_per_level")
        counted = f"at most {each:,} requests a level that count" if each else ""
        found["load"] = ", ".join(filter(None, (counted, f"{sizes} tokens in the mean" if sizes else "")))
    counts = [cell.accuracy.n for cell in cells if cell.accuracy]
    if counts:
        demo = (measures.get("mmlu") or {}).get("data") == "demo"
        shots = sorted({row.num_fewshot for row in run.accuracy if row.task == "mmlu"})
        partial = ", partial" if any(cell.accuracy and cell.accuracy.partial for cell in cells) else ""
        asked = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        found["mmlu"] = (
            f"{'the demo questions' if demo else 'MMLU'}, {asked} questions{partial}, "
            f"{'/'.join(map(str, shots))}-shot, 95 % Wilson intervals"
        )
    return found


def commands(record: RunRecord) -> list[str]:
    """The code, what it was installed with, and the run itself."""
    commit, dirty = record.environment.git_commit, record.environment.git_dirty
    changed = "  # had changes that were not committed" if dirty else ""
    if not commit:
        return [f"pip install '{DISTRIBUTION}[all]=={record.environment.versions.get('qbench')}'", record.command]
    return [f"git checkout {commit}{changed}", "make setup && . .venv/bin/activate", record.command]


def environment(found: Environment) -> list[tuple[str, str]]:
    """The machine and the software, name and value; what is not known is left out."""
    facts = {
        "CPU": f"{found.cpu}, {found.cores} cores",
        "instructions": ", ".join(found.cpu_features),
        "memory": f"{found.memory_bytes / 2**30:.1f} GiB",
        "GPU": ", ".join(f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB" for gpu in found.gpus),
        "driver": found.driver or "",
        "system": found.os,
        "Python": found.python,
        "git commit": (found.git_commit or "") + (", with changes" if found.git_dirty else ""),
        **found.versions,
    }
    return [(name, value) for name, value in facts.items() if value]
