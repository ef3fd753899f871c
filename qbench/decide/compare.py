"""Two runs of a model, cell by cell: what changed, and whether that is more than chance. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qbench.analysis.effects import AccuracyDifference, SpeedRatio, accuracy_difference, section, speed_ratio
from qbench.analysis.equivalence import MARGIN, Verdict
from qbench.analysis.figures import CellSummary, RunSummary, Speed
from qbench.analysis.paired import holm
from qbench.analysis.power import together
from qbench.decide.provenance import Difference, differences
from qbench.text import one_line


@dataclass(frozen=True, slots=True)
class SpeedChange:
    """A cell at a batch size."""

    batch_size: int
    first_status: str | None
    second_status: str | None
    """ok, or what went wrong in some trial; None if there is none."""
    first: float | None
    second: float | None
    """Median decode tokens/s; None unless the status is ok."""
    ratio: SpeedRatio | None
    """The second over the first; None without both, or if they generated other lengths."""
    remarks: tuple[str, ...]
    """Failures, and what its trials ran under, if that was not as it should be."""


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """A cell's peaks: of the first forward, or of the trials at a batch size."""

    batch_size: int | None
    first_bytes: int | None
    second_bytes: int | None
    comparable: bool
    """Whether both were of the same lengths."""


@dataclass(frozen=True, slots=True)
class CellChange:
    """A cell that both runs have."""

    name: str
    label: str
    first_status: str
    second_status: str
    memories: tuple[MemoryChange, ...]
    speeds: tuple[SpeedChange, ...]
    first_accuracy: float | None
    second_accuracy: float | None
    accuracy: AccuracyDifference | None
    p_holm: float | None
    """Corrected over all cells."""
    verdict: Verdict | None
    """On the second's accuracy."""
    first_perplexity: float | None
    second_perplexity: float | None
    first_kl: float | None
    second_kl: float | None
    """Mean divergence from the run's own 16-bit cell, in nats."""


@dataclass(frozen=True, slots=True)
class RunComparison:
    """The second run against the first."""

    first: str
    second: str
    differences: tuple[Difference, ...]
    cells: tuple[CellChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    """Cells by label."""


def compare_runs(
    first: RunSummary,
    second: RunSummary,
    *,
    confidence: float = 0.95,
    accuracy_confidence: float | None = None,
    margin: float = MARGIN,
) -> RunComparison:
    """Compare the cells that have the same label; intervals are those of `qbench.analysis.effects`.

    Args:
        confidence: of each interval of a speed.
        accuracy_confidence: of each interval of an accuracy; unless given such that all of them hold with 95 %.
        margin: the loss of accuracy, a fraction, that counts as none.
    """
    pairs = [(one, other) for one in first.cells if (other := second.cell(one.label))]
    if accuracy_confidence is None:
        accuracy_confidence = together(sum(bool(one.accuracy and other.accuracy) for one, other in pairs))
    found = [_accuracy(one, other, accuracy_confidence) for one, other in pairs]
    p_values = iter(holm([difference.p_value for difference in found if difference]))
    same_lengths = section(first.run, "memory") == section(second.run, "memory")
    cells = [
        CellChange(
            name=one.name,
            label=one.label,
            first_status=one_line(one.status),
            second_status=one_line(other.status),
            memories=tuple(_memories(one, other, same_lengths)),
            speeds=tuple(_speeds(one, other, confidence)),
            first_accuracy=one.accuracy.value if one.accuracy else None,
            second_accuracy=other.accuracy.value if other.accuracy else None,
            accuracy=difference,
            p_holm=(p_holm := next(p_values) if difference else None),
            verdict=difference.verdict(margin, p_holm) if difference and p_holm is not None else None,
            first_perplexity=one.text.perplexity if one.text else None,
            second_perplexity=other.text.perplexity if other.text else None,
            first_kl=one.text.kl_mean if one.text else None,
            second_kl=other.text.kl_mean if other.text else None,
        )
        for (one, other), difference in zip(pairs, found, strict=True)
    ]
    return RunComparison(
        first=str(first.run.folder),
        second=str(second.run.folder),
        differences=tuple(differences(first.run.record, second.run.record)),
        cells=tuple(cells),
        only_first=tuple(cell.label for cell in first.cells if not second.cell(cell.label)),
        only_second=tuple(cell.label for cell in second.cells if not first.cell(cell.label)),
    )


def _accuracy(one: CellSummary, other: CellSummary, confidence: float) -> AccuracyDifference | None:
    """None if one of the runs has no accuracy, or they answered other questions."""
    return accuracy_difference(one.accuracy, other.accuracy, confidence) if one.accuracy and other.accuracy else None


def _sizes(one: CellSummary, other: CellSummary) -> list[int]:
    return sorted({speed.batch_size for speed in (*one.speeds, *other.speeds)})


def _memories(one: CellSummary, other: CellSummary, same_lengths: bool) -> Iterator[MemoryChange]:
    """What at least one of the runs has measured."""
    found: list[tuple[int | None, int | None, int | None, bool]] = [
        (None, one.peak_memory_bytes, other.peak_memory_bytes, same_lengths)
    ]
    for size in _sizes(one, other):
        before, after = one.at(size), other.at(size)
        found.append((size, before.peak_memory_bytes, after.peak_memory_bytes, before.lengths == after.lengths))
    for batch_size, first, second, comparable in found:
        if first is not None or second is not None:
            yield MemoryChange(batch_size, first, second, comparable or None in (first, second))


def _speeds(one: CellSummary, other: CellSummary, confidence: float) -> Iterator[SpeedChange]:
    """Of the batch sizes at which at least one of the runs has trials."""
    for size in _sizes(one, other):
        speeds = (one.at(size), other.at(size))
        first, second = speeds
        if not any(speed.lengths for speed in speeds):
            continue
        remarks = [f"{which}: {word}" for which, speed in zip("AB", speeds, strict=True) if (word := _remark(speed))]
        measured_both = all(speed.lengths for speed in speeds)
        if measured_both and one.kv_cache != other.kv_cache:
            remarks.append(f"keys and values in {one.kv_cache} and {other.kv_cache}")
        comparable = not measured_both or first.lengths == second.lengths
        if not comparable:
            remarks.append("they generated other lengths")
        ok = [speed.status == "ok" and bool(speed.trials) for speed in speeds]
        yield SpeedChange(
            batch_size=size,
            first_status=first.status,
            second_status=second.status,
            first=first.tokens_per_s if ok[0] else None,
            second=second.tokens_per_s if ok[1] else None,
            ratio=speed_ratio(first.samples, second.samples, confidence) if all(ok) and comparable else None,
            remarks=tuple(remarks),
        )


def _remark(speed: Speed) -> str:
    """What went wrong, or why the figure is marked."""
    if speed.status != "ok":
        return one_line(speed.status or "not measured")
    return f"marked {one_line('+'.join(speed.reasons))}" if speed.reasons else ""
