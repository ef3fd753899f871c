"""Figures in words: how a cell compares with the reference, and what speaks against it; `verdicts` has accuracies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from qbench.analysis import validity
from qbench.analysis.effects import Accuracy, SpeedRatio
from qbench.analysis.figures import PLAIN_CACHE, CellSummary, Load, Sustained
from qbench.analysis.load import FoundRate
from qbench.analysis.tasks import TaskResult
from qbench.analysis.validity import FOREIGN, REASONS
from qbench.machine.bandwidth import Bandwidth
from qbench.records.rows import LoadRow, SustainedRow, ThroughputRow
from qbench.show.formats import doubts, gigabytes_a_second, milliseconds, tokens
from qbench.text import MISSING

NO_RESULT = "no result"
"""Of a cell that is ok but was not measured, or only in part."""


def accuracy_words(accuracy: Accuracy | None) -> str:
    """`66.3 [65.5, 67.0]`, in percent."""
    if accuracy is None:
        return MISSING
    text = f"{100 * accuracy.value:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
    return f"{text}, partial ({accuracy.n:,} questions)" if accuracy.partial else text


def p_words(value: float) -> str:
    """`p = 0.02`, or `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.{1 if value < 0.01 else 2}g}"


def ratio_words(ratio: SpeedRatio | None, no_interval: str = "") -> str:
    """`2.31× [2.10, 2.54]`, the ratio and `no_interval` if it has none, or empty."""
    if ratio is None:
        return ""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.ratio:.2f}×{no_interval}"
    return f"{ratio.ratio:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]"


def crossovers(cells: Sequence[CellSummary], reference: str | None) -> list[str]:
    """A line for each cell that was compared: `INT4: slower than FP16 from batch 32 on`."""
    words = [(cell.name, crossover_words(cell, reference or "16 bit")) for cell in cells]
    return [f"{name}: {text}" for name, text in words if text]


def crossover_words(cell: CellSummary, reference: str) -> str:
    """From which batch size on a cell is slower than the reference; empty where they were not compared.

    Batch sizes at which the ratio's interval does not exclude 1 are named.
    """
    if not cell.compared:
        return ""
    if cell.slower_from is None:
        return f"not slower than {reference} at batch {cell.compared[-1].batch_size}, the largest that both ran"
    slower = [speed for speed in cell.compared if speed.batch_size >= cell.slower_from]
    unclear = [str(speed.batch_size) for speed in slower if speed.speedup and not speed.speedup.differs]
    doubt = f" (inconclusive at batch {_join(unclear)})" if unclear else ""
    return f"slower than {reference} from batch {cell.slower_from} on{doubt}"


def bandwidth_words(found: Bandwidth | None) -> str:
    """`35.7 GB/s, fastest of 5 readings, one before each cell`, or `not known`."""
    return f"{gigabytes_a_second(found.bytes_per_s)}, {found.source}" if found else "not known"


def sustained_words(found: Sustained) -> str:
    """`101.2 tok/s in the last third, 84 % of the peak of 120.4 in the first`."""
    left = found.steady / found.peak
    return f"{found.steady:,.1f} tok/s in the last third, {left:.0%} of the peak of {found.peak:,.1f} in the first"


def level_words(level: LoadRow) -> str:
    """`4 at a time`, or `0.5 requests/s`."""
    return f"{level.concurrency} at a time" if level.concurrency else f"{level.rate:g} requests/s"


def found_rate_words(found: FoundRate) -> str:
    """`2.1 requests/s keep the objective, 2.3 do not`."""
    doubt = "" if found.certain else " (too few requests to be sure)"
    if found.kept is None:
        return f"no rate was found that keeps the objective; {found.missed:.3g} requests/s do not{doubt}"
    if found.missed is None:
        return f"{found.kept:.3g} requests/s keep the objective, and no rate was found that does not{doubt}"
    return f"{found.kept:.3g} requests/s keep the objective, {found.missed:.3g} do not{doubt}"


def load_words(found: Load) -> Iterator[str]:
    """The level with the most tokens a second, the one with the highest goodput, and the rate that was found."""
    if most := found.most_tokens:
        waits = f"first token {milliseconds(most.ttft_p95_s)}, between tokens {milliseconds(most.itl_p95_s)}"
        yield f"{tokens(most.output_tokens_per_s)} tok/s at {level_words(most)} (p95: {waits})"
    if best := found.best:
        yield f"goodput {tokens(best.goodput_per_s)} requests/s at {level_words(best)}"
    if found.found:
        yield found_rate_words(found.found)


def not_shown(cells: Sequence[CellSummary], shown: Collection[str], parts: Sequence[str] = ()) -> list[str]:
    """A phrase that names the cells without a point, and the parts that others lack; none if nothing is missing."""

    def why(cell: CellSummary) -> str:
        return NO_RESULT if cell.status == "ok" else cell.status

    absent = [f"{cell.name} ({why(cell)})" for cell in cells if cell.name not in shown]
    absent += parts
    return [f"not shown: {', '.join(absent)}"] if absent else []


def cache_words(rows: Iterable[ThroughputRow | SustainedRow]) -> str:
    """`, keys and values in int8` of generations that kept them so; empty for the compute dtype."""
    kinds = sorted({row.kv_cache for row in rows if row.kv_cache} - {PLAIN_CACHE})
    return f", keys and values in {'/'.join(kinds)}" if kinds else ""


def truncations(cells: Sequence[CellSummary]) -> list[str]:
    """A line for each cell whose few-shot prompts were not all read whole."""
    return [
        f"truncated ({cell.name}): {cell.accuracy.truncated:,} of {cell.accuracy.n:,} questions lost examples to the "
        "model's context; set measure.mmlu.num_fewshot to fewer"
        for cell in cells
        if cell.accuracy and cell.accuracy.truncated
    ]


def cut_prompts(tasks: Sequence[tuple[str, TaskResult]]) -> list[str]:
    """A line for each cell and task some of whose prompts were not read whole."""
    return [
        f"truncated ({name}, {found.task}): {found.accuracy.truncated:,} of {found.accuracy.n:,} prompts lost their "
        "beginning to the model's context; set measure.tasks.num_fewshot or context_lengths to less"
        for name, found in tasks
        if found.accuracy.truncated
    ]


def remarks(cells: Sequence[CellSummary]) -> list[str]:
    """A line for each reason not to trust some speed: where, what was wrong, what to do."""
    places = _places(cells)
    for cell in cells:
        if cell.sustained and cell.sustained.doubtful:
            places[FOREIGN].append(f"{cell.name} under sustained load")
        for level in cell.load.answered if cell.load else ():
            for reason in validity.reasons(level.validity):
                places[reason].append(f"{cell.name} at {level_words(level)}")
    return [
        f"! {reason} ({', '.join(places[reason])}): {REASONS.get(reason, 'see throughput.csv')}"
        for reason in sorted(places)
    ]


def caption(cells: Sequence[CellSummary]) -> str:
    """All marks of trials in one line; empty if there is none."""
    places = _places(cells)
    found = "; ".join(f"{doubts([reason])} ({', '.join(places[reason])})" for reason in sorted(places))
    return f"!: not to be trusted: {found}" if found else ""


def _places(cells: Sequence[CellSummary]) -> defaultdict[str, list[str]]:
    """By reason, the figures that have it: `INT4 at batch 1 and 8`, `NF4 at batch 1`."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for cell in cells:
        for reason, sizes in _marked(cell):
            places[reason].append(f"{cell.name} at batch {_join(sizes)}")
    return places


def _marked(cell: CellSummary) -> Iterator[tuple[str, list[str]]]:
    """Each reason that a cell has, and its batch sizes."""
    sizes: defaultdict[str, list[str]] = defaultdict(list)
    for speed in cell.speeds:
        for reason in speed.reasons:
            sizes[reason].append(str(speed.batch_size))
    yield from sizes.items()


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
