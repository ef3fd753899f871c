from __future__ import annotations

import dataclasses
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from qbench.analysis.equivalence import Verdict
from qbench.analysis.formulas import Flips, speedup
from qbench.analysis.summary import summarize
from qbench.decide.compare import MemoryChange, RunComparison
from qbench.decide.compare import compare_runs as compare_summaries
from qbench.decide.provenance import check_same_model, differences
from qbench.errors import QbenchError
from qbench.records.rows import AccuracyRow
from qbench.records.run import Run, read_run
from qbench.show.compare import print_comparison
from tests.support.made_up_run import GIB, cell, flipped, made_up_run, measured, subject, text, trial, trials

PUBLISHED = Path(__file__).parent.parent / "results" / "published"


def compare_runs(first: Run, second: Run) -> RunComparison:
    return compare_summaries(summarize(first), summarize(second))


def printed(first: Run, second: Run) -> str:
    out = StringIO()
    print_comparison(Console(file=out, width=160), compare_runs(first, second))
    return out.getvalue()


def changed(run: Run, **record: object) -> Run:
    return dataclasses.replace(run, record=run.record.model_copy(update=record))


def test_speed_memory_and_accuracy_of_a_cell_are_compared() -> None:
    before, after = [100.0, 101, 99], [80.0, 82, 81]
    first = made_up_run(
        [*measured("int4", "int4", 6, {1: before}, 600, 1000), text("int4", 6.2, kl_mean=0.01)],
        answers={"int4": flipped(600, 1000, 0, 0)},
    )
    second = made_up_run(
        [*measured("int4", "int4", 5, {1: after}, 550, 1000), text("int4", 6.5, kl_mean=0.02)],
        answers={"int4": flipped(600, 1000, 60, 10)},
    )
    [found] = compare_runs(first, second).cells
    assert found.memories == (MemoryChange(None, 6 * GIB, 5 * GIB, comparable=True),)
    [speed] = found.speeds
    assert (speed.first, speed.second) == (100, 81)
    assert speed.ratio
    assert (speed.ratio.ratio, speed.ratio.low, speed.ratio.high) == pytest.approx(speedup(after, before))
    assert found.accuracy
    assert found.accuracy.flips == Flips(1000, 60, 10)
    assert (found.first_perplexity, found.second_perplexity) == (6.2, 6.5)
    assert (found.first_kl, found.second_kl) == (0.01, 0.02)
    said = printed(first, second)
    assert found.verdict is Verdict.WORSE
    assert "slower" in said
    assert "worse by 5.0 points" in said
    assert "−1.00 GiB (−16.67 %)" in said
    assert "−5.00 [−6." in said
    assert "p < 0.001" in said


def test_a_run_against_itself_is_the_same_and_no_worse_where_its_trials_show_it() -> None:
    run = read_run(PUBLISHED / "smoke-xeon-2core")
    compared = compare_runs(run, run)
    assert compared.differences == ()
    assert [speed.ratio.ratio for one in compared.cells for speed in one.speeds if speed.ratio] == [1.0] * 15
    assert all(one.accuracy and one.accuracy.p_value == 1 for one in compared.cells)
    said = printed(run, run)
    assert "same hardware, software and configuration" in said
    verdicts = [speed.ratio.verdict for one in compared.cells for speed in one.speeds if speed.ratio]
    # Three figures whose trials are far apart.
    assert (verdicts.count(Verdict.NO_WORSE), verdicts.count(Verdict.INCONCLUSIVE)) == (12, 3)
    assert {one.verdict for one in compared.cells} == {Verdict.NO_WORSE}
    assert "no slower than 10 %" in said
    assert "no worse than 1 point" in said


def test_p_values_are_corrected_over_the_cells() -> None:
    # 1 against 9 flips: p = 0.0215.
    right = {label: flipped(50, 100, 0, 0) for label in ("a", "b", "c")}
    rows = [row for label in right for row in measured(label, "int4", 5, {}, 50, 100)]
    second = [row for label, n in (("a", 58), ("b", 50), ("c", 50)) for row in measured(label, "int4", 5, {}, n, 100)]
    found = compare_runs(
        made_up_run(rows, answers=right), made_up_run(second, answers=right | {"a": flipped(50, 100, 1, 9)})
    )
    assert found.cells[0].p_holm == pytest.approx(3 * 0.021484375)


def test_failures_marks_and_other_lengths_are_said_and_not_compared() -> None:
    rows = [cell("int4"), *trials("int4", None, 1, [100, 101]), *trials("int4", None, 8, [500])]
    first = made_up_run([*rows, *trials("int4", None, 32, [900])])
    second = made_up_run(
        [
            cell("int4"),
            trial("int4", None, 1, decode_tokens_per_s=100, new_tokens=16),
            trial("int4", None, 8, decode_tokens_per_s=500, validity="throttled"),
            trial("int4", None, 32, status="oom"),
        ]
    )
    lengths, marked, failed = compare_runs(first, second).cells[0].speeds
    assert lengths.ratio is None
    assert lengths.remarks == ("they generated other lengths",)
    assert marked.ratio
    assert marked.ratio.low is None
    assert marked.remarks == ("B: marked throttled",)
    assert (failed.first, failed.second, failed.ratio, failed.remarks) == (900, None, None, ("B: oom",))


def test_peaks_of_generations_are_compared_where_their_lengths_are_the_same() -> None:
    first = made_up_run(
        [
            cell("int4", peak_memory_bytes=2 * GIB),
            trial("int4", None, 1, decode_tokens_per_s=9, peak_memory_bytes=2 * GIB),
            trial("int4", None, 1, trial=1, decode_tokens_per_s=9, peak_memory_bytes=3 * GIB),
            trial("int4", None, 8, decode_tokens_per_s=9, peak_memory_bytes=4 * GIB, new_tokens=16),
        ]
    )
    second = made_up_run(
        [
            cell("int4", peak_memory_bytes=2 * GIB),
            trial("int4", None, 1, decode_tokens_per_s=9, peak_memory_bytes=6 * GIB),
            trial("int4", None, 8, decode_tokens_per_s=9, peak_memory_bytes=4 * GIB),
        ]
    )
    [found] = compare_runs(first, second).cells
    assert found.memories == (
        MemoryChange(None, 2 * GIB, 2 * GIB, comparable=True),
        MemoryChange(1, 3 * GIB, 6 * GIB, comparable=True),
        MemoryChange(8, 4 * GIB, 4 * GIB, comparable=False),
    )
    said = printed(first, second)
    assert "+3.00 GiB (+100.00 %)" in said
    assert "of other lengths" in said


def test_another_cache_is_said_beside_the_speeds() -> None:
    older = made_up_run([cell("int4"), trial("int4", None, 1, decode_tokens_per_s=9)])
    quantized = made_up_run([cell("int4"), trial("int4", None, 1, decode_tokens_per_s=6, kv_cache="int4")])
    [speed] = compare_runs(older, quantized).cells[0].speeds
    assert speed.ratio
    assert speed.remarks == ("keys and values in 16bit and int4",)
    plain = made_up_run([cell("int4"), trial("int4", None, 1, decode_tokens_per_s=9, kv_cache="16bit")])
    assert compare_runs(older, plain).cells[0].speeds[0].remarks == ()


def test_questions_with_other_examples_are_other_questions() -> None:
    rows = measured("int4", "int4", 5, {}, 550, 1000)
    fewer = [row.model_copy(update={"num_fewshot": 0}) if isinstance(row, AccuracyRow) else row for row in rows]
    assert compare_runs(made_up_run(rows), made_up_run(rows)).cells[0].accuracy
    assert compare_runs(made_up_run(rows), made_up_run(fewer)).cells[0].accuracy is None


def test_cells_of_one_run_alone_are_named() -> None:
    found = compare_runs(made_up_run([cell("fp16"), cell("awq")]), made_up_run([cell("fp16"), cell("nf4")]))
    assert (found.only_first, found.only_second) == (("awq",), ("nf4",))
    said = printed(made_up_run([cell("fp16"), cell("awq")]), made_up_run([cell("fp16"), cell("nf4")]))
    assert "only in A: awq" in said
    assert "only in B: nf4" in said


def test_empty_runs_have_nothing_to_compare() -> None:
    assert compare_runs(made_up_run([]), made_up_run([])).cells == ()


def test_hardware_software_and_settings_are_named_first() -> None:
    first, second = made_up_run([], gpus=["A100"]), made_up_run([], gpus=["H100"], batch_sizes=(1, 8))
    machine = second.record.environment.model_copy(update={"versions": {"torch": "2.14"}, "git_commit": "f" * 40})
    second = changed(second, environment=machine)
    found = {one.name: (one.group, one.first, one.second) for one in differences(first.record, second.record)}
    assert found == {
        "device": ("hardware", "A100", "H100"),
        "torch": ("software", None, "2.14"),
        "commit": ("software", None, "f" * 12),
        "measure.throughput.batch_sizes": ("configuration", "[1, 8, 32]", "[1, 8]"),
    }
    said = printed(first, second)
    assert "different hardware: device: A100 → H100" in said
    assert "only B says: torch, commit" in said


def test_backends_are_compared_by_label_and_texts_by_hash() -> None:
    run = made_up_run([])
    int4, nf4 = {"kind": "int4", "label": "a", "group_size": 128}, {"kind": "nf4", "label": "b"}
    first = changed(run, config={"name": "x", "backends": [int4, nf4]}, facts={"measure.perplexity.text": "1"})
    second = changed(
        run, config={"name": "y", "backends": [nf4, {**int4, "group_size": 64}]}, facts={"measure.perplexity.text": "2"}
    )
    found = [(one.name, one.first, one.second) for one in differences(first.record, second.record)]
    assert found == [("backends.a.group_size", "128", "64"), ("measure.perplexity.text", "1", "2")]


def test_another_model_is_an_error() -> None:
    first = made_up_run([])
    check_same_model(first.record, first.record, "")
    other = changed(first, model="other/model", model_fingerprint="1")
    with pytest.raises(QbenchError, match="other/model: another model; --force"):
        check_same_model(first.record, other.record, "--force does it")
    with pytest.raises(QbenchError, match="other weights under the same name"):
        check_same_model(first.record, changed(first, model_fingerprint="1").record, "")


def test_a_hostile_label_is_one_line_without_markup() -> None:
    label = "[red]x\x1b[2J\n"
    run = made_up_run([cell(label, "int4"), subject(label, "int4", "all", 5, 10)])
    said = printed(run, run)
    assert "\x1b" not in said
    assert r"│ [red]x\x1b[2J\n │" in said
