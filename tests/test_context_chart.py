"""Accuracy over context: needle tasks at several lengths, as a chart and in the table of tasks."""

from pathlib import Path

import pytest

from qbench.analysis.formulas import wilson_interval
from qbench.show.plots import mpl, plotly
from qbench.show.plots.charts import charts
from qbench.show.plots.shapes import ScatterChart
from qbench.show.report import tables
from qbench.show.view.data import collect
from tests.support.needles import FOUND, answered


def test_a_line_a_backend_over_the_needle_tasks_together(tmp_path: Path) -> None:
    report = collect(answered(tmp_path, FOUND))
    chart = {kind.key: chart for kind, chart in charts(report)}["accuracy-context"]
    assert isinstance(chart, ScatterChart)
    lines = {line.backend: [(point.x, point.y) for point in line.points] for line in chart.series}
    # 78 and 70 of 80.
    assert lines == {"FP16": [(4096, 97.5), (32768, 87.5)], "INT4": [(4096, 97.5)]}, "no point without one of the tasks"
    low, high = wilson_interval(70, 80)
    assert chart.series[0].points[1].span == pytest.approx((100 * low, 100 * high))
    assert chart.x_ticks == (4096, 32768)
    assert chart.details[0] == "40 prompts of each task: niah_multikey_2, niah_single_1"
    assert "<svg" in mpl.svg(chart)
    assert {trace.get("name") for trace in plotly.figure(chart)["data"]} == {"FP16", "INT4"}


def test_each_length_is_tested_by_itself(tmp_path: Path) -> None:
    """12 of 40 lost and none won at 32,768 tokens, nothing at 4,096."""
    table = tables.tasks([collect(answered(tmp_path, FOUND))])
    assert table is not None
    words = {(row.fields[0].text, row.fields[1].text): row.fields[5].text for row in table.rows}
    assert "worse by 30.0 points" in words["INT4", "niah_single_1@32768"]
    assert "worse" not in words["INT4", "niah_single_1@4096"]


def test_without_two_lengths_there_is_no_chart_and_cut_prompts_are_told(tmp_path: Path) -> None:
    short = {key: correct for key, correct in FOUND.items() if key[1].endswith("@4096")}
    report = collect(answered(tmp_path, short, truncated=3))
    assert "accuracy-context" not in [kind.key for kind, _ in charts(report)]
    assert "truncated (FP16, niah_single_1@4096): 3 of 40 prompts lost their beginning" in "\n".join(report.doubts)
