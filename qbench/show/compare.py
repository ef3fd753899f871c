"""A comparison of two runs, and a gate, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qbench.analysis.effects import SPEED_MARGIN
from qbench.analysis.equivalence import MARGIN, Verdict
from qbench.decide.compare import CellChange, MemoryChange, RunComparison, SpeedChange
from qbench.decide.gate import Check, GateResult
from qbench.decide.provenance import Difference
from qbench.show.phrases import p_words, ratio_words
from qbench.show.recommend import SINGLE_TRIAL
from qbench.show.verdicts import DIVERGENCE, settled_by, verdict_words
from qbench.text import MISSING, human_bytes, one_line, signed

SPEED_WORDS = {
    Verdict.BETTER: "faster",
    Verdict.WORSE: "slower",
    Verdict.NO_WORSE: f"no slower than {SPEED_MARGIN:.0%}".replace("%", " %"),
    Verdict.INCONCLUSIVE: "inconclusive",
}
GATE_WORDS = {"ok": "ok", "worse": "FAIL", "inconclusive": "?"}


COUNTED = {
    "trials": "trials of each run",
    "starts": "starts of the baseline",
    "starts_of_each": "measure.throughput.starts of each run",
}
"""What would settle a check, by its unit."""


def print_comparison(console: Console, compared: RunComparison, margin: float = MARGIN) -> None:
    """What else differs, then speed, memory and quality, cell by cell."""
    for line in differing(compared.first, compared.second, compared.differences):
        console.print(escape(line))
    cells = compared.cells
    accuracies, predictions = _accuracy_table(cells, margin), _prediction_table(cells)
    for table in (_speed_table(cells), _memory_table(cells), accuracies, predictions):
        if table.row_count:
            console.print(table)
    if accuracies.row_count:
        console.print("the intervals of the accuracies hold together with 95 %; detectable: in points")
    if any(cell.first_kl is not None or cell.second_kl is not None for cell in cells):
        console.print(DIVERGENCE)
    for which, labels in (("A", compared.only_first), ("B", compared.only_second)):
        if labels:
            console.print(escape(one_line(f"only in {which}: {', '.join(labels)}")))


def print_gate(console: Console, result: GateResult) -> None:
    """What else differs, every figure that was checked, and a last line for the log."""
    for line in differing(", ".join(result.baselines), result.run, result.differences):
        console.print(escape(line))
    table = Table()
    for heading in ("", "backend", "figure", "change", "limit", "remark"):
        table.add_column(heading)
    for check in result.checks:
        if check.what != "cell" or check.remark:
            row = (
                GATE_WORDS[check.status],
                check.cell,
                _figure(check),
                _change(check),
                _limit(check),
                "; ".join(filter(None, [check.remark, _settling(check)])),
            )
            table.add_row(*map(escape, row))
    console.print(table)
    console.print(escape(gate_line(result)), soft_wrap=True)


def gate_line(result: GateResult) -> str:
    """All of it in a line: `gate: FAILED, 1 of 17 checks: INT4 speed at batch 1: 0.81× [0.79, 0.83], limit 0.95×`."""
    baseline = one_line(", ".join(result.baselines))
    count = len(result.checks)
    if result.ok:
        return f"gate: passed, {count} checks against {baseline}"
    parts = []
    for status, heading in (("worse", "FAILED"), ("inconclusive", "inconclusive")):
        found = [check for check in result.checks if check.status == status]
        if found:
            words = "; ".join(map(_words_of, found))
            parts.append(f"{heading}, {len(found)} of {count} checks against {baseline}: {words}")
    return f"gate: {'; '.join(parts)}"


def _words_of(check: Check) -> str:
    words = f"{check.cell} {_figure(check)}: {_change(check) or check.remark}{_limit_words(check)}"
    return ", ".join(filter(None, [words, _settling(check)]))


def _settling(check: Check) -> str:
    """What would settle a check that is inconclusive; empty otherwise."""
    if check.unit is None:
        return ""
    return settled_by(check.needed, COUNTED.get(check.unit, check.unit))


def differing(first: str, second: str, found: Sequence[Difference]) -> Iterator[str]:
    """The two folders, a line for each thing that is another, and what only one of the runs has, in a line together."""
    yield one_line(f"A: {first}")
    yield one_line(f"B: {second}")
    groups = {difference.group for difference in found}
    if not groups & {"hardware", "software", "configuration"}:
        yield "same hardware, software and configuration"
    for one in found:
        if one.first is not None and one.second is not None:
            yield one_line(f"different {one.group}: {one.name}: {one.first} → {one.second}")
    for which, names in (
        ("A", [one.name for one in found if one.second is None]),
        ("B", [one.name for one in found if one.first is None]),
    ):
        if names:
            yield one_line(f"only {which} says: {', '.join(names)}")


def _speed_table(cells: Sequence[CellChange]) -> Table:
    table = Table(title="decode speed, tok/s", title_justify="left")
    table.add_column("backend")
    for heading in ("batch", "A", "B", "B / A"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for cell in cells:
        for speed in cell.speeds:
            ratio = ratio_words(speed.ratio, SINGLE_TRIAL) or MISSING
            row = (
                cell.name,
                str(speed.batch_size),
                _number(speed.first, "{:,.1f}"),
                _number(speed.second, "{:,.1f}"),
                ratio,
                _words(speed),
            )
            table.add_row(*map(escape, row))
    return table


def _words(speed: SpeedChange) -> str:
    found = list(speed.remarks)
    if speed.ratio:
        found.insert(0, SPEED_WORDS[speed.ratio.verdict])
    return "; ".join(found)


def _memory_table(cells: Sequence[CellChange]) -> Table:
    table = Table(title="peak memory", title_justify="left")
    table.add_column("backend")
    for heading in ("of", "A", "B", "B − A"):
        table.add_column(heading, justify="left" if heading == "of" else "right")
    for cell in cells:
        for memory in cell.memories:
            what = f"batch {memory.batch_size}" if memory.batch_size else "first forward"
            table.add_row(*map(escape, (_name(cell), what, *_bytes(memory))))
    return table


def _bytes(memory: MemoryChange) -> tuple[str, str, str]:
    first, second = memory.first_bytes, memory.second_bytes
    change = MISSING if memory.comparable else "of other lengths"
    if first and second is not None and memory.comparable:
        sign = "−" if second < first else "+" if second > first else ""
        change = f"{sign}{human_bytes(abs(second - first))} ({signed(100 * (second / first - 1), 2)} %)"
    return human_bytes(first), human_bytes(second), change


def _accuracy_table(cells: Sequence[CellChange], margin: float) -> Table:
    """Of the cells that have one in either run."""
    table = Table(title="accuracy", title_justify="left")
    table.add_column("backend")
    for heading in ("A", "B", "B − A, points", "verdict", "detectable"):
        table.add_column(heading, justify="left" if heading == "verdict" else "right")
    for cell in cells:
        if cell.first_accuracy is not None or cell.second_accuracy is not None:
            least = _number(100 * cell.accuracy.detectable if cell.accuracy else None, "{:.2g}")
            values = (_number(value, "{:.2%}") for value in (cell.first_accuracy, cell.second_accuracy))
            table.add_row(*map(escape, (_name(cell), *values, _accuracy(cell), _verdict(cell, margin), least)))
    return table


def _prediction_table(cells: Sequence[CellChange]) -> Table:
    """Only figures that some cell has."""
    figures = {
        "perplexity": ("{:.4f}", [(cell.first_perplexity, cell.second_perplexity) for cell in cells]),
        "KL, nats": ("{:.2e}", [(cell.first_kl, cell.second_kl) for cell in cells]),
    }
    columns = {"backend": [_name(cell) for cell in cells]}
    for name, (pattern, pairs) in figures.items():
        if any(value is not None for pair in pairs for value in pair):
            columns[f"{name} A"] = [_number(first, pattern) for first, _ in pairs]
            columns[f"{name} B"] = [_number(second, pattern) for _, second in pairs]
    table = Table(title="predictions", title_justify="left")
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "backend" else "right")
    for row in zip(*columns.values(), strict=True) if len(columns) > 1 else ():
        table.add_row(*map(escape, row))
    return table


def _accuracy(cell: CellChange) -> str:
    found = cell.accuracy
    if found is None or cell.p_holm is None:
        return MISSING
    how = "" if found.flips else ", not paired"
    return f"{_points(found.delta, found.low, found.high)}, {p_words(cell.p_holm)}{how}"


def _verdict(cell: CellChange, margin: float) -> str:
    """In words, without the figures that stand beside it."""
    found = cell.accuracy
    if found is None or cell.verdict is None:
        return MISSING
    return verdict_words(cell.verdict, found.delta, (found.low, found.high), margin, None)


def _points(*fractions: float | None) -> str:
    """A difference and its interval in percent of the questions."""
    delta, *ends = (signed(100 * value, 2) for value in fractions if value is not None)
    return f"{delta} [{', '.join(ends)}]"


def _name(cell: CellChange) -> str:
    statuses = [
        f"{which} {status}" for which, status in (("A", cell.first_status), ("B", cell.second_status)) if status != "ok"
    ]
    return f"{cell.name} ({', '.join(statuses)})" if statuses else cell.name


def _figure(check: Check) -> str:
    return f"{check.what} at batch {check.batch_size}" if check.batch_size else check.what


def _change(check: Check) -> str:
    if check.change is None:
        return ""
    if check.what == "accuracy":
        return f"{_points(check.change, check.low, check.high)} points"
    return f"{check.change:.3f}×" + (f" [{check.low:.3f}, {check.high:.3f}]" if check.low is not None else "")


def _limit(check: Check) -> str:
    if check.limit is None:
        return ""
    return f"{signed(100 * check.limit, 2)} points" if check.what == "accuracy" else f"{check.limit:.3f}×"


def _limit_words(check: Check) -> str:
    return f", limit {_limit(check)}" if check.limit is not None and check.change is not None else ""


def _number(value: float | None, pattern: str) -> str:
    return MISSING if value is None else pattern.format(value).replace("%", " %")
