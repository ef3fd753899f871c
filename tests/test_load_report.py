"""Servers under load in summary, charts, report and recommendation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qbench.analysis.summary import summarize
from qbench.cli import decide
from qbench.config import SLO
from qbench.decide.constraints import UNLIMITED, Limits
from qbench.decide.recommend import Recommendation, recommend
from qbench.decide.serving import difference, requests_needed, served
from qbench.errors import QbenchError
from qbench.records import requests
from qbench.records.redact import Redactor
from qbench.records.rows import CellRow, LoadRow, RequestRow, Row
from qbench.records.run import Run, read_run, write_record, write_table
from qbench.show.plots.charts import charts
from qbench.show.plots.shapes import ScatterChart
from qbench.show.recommend import lines, to_dict
from qbench.show.report import load_tables, markdown
from qbench.show.view import data
from tests.support.frames import edited
from tests.support.load_rows import level, steady, two_servers
from tests.support.made_up_run import cell, made_up_run
from tests.support.summaries import frame

GOAL = SLO(ttft=0.5, itl=0.05)


def served_run(folder: Path, rows: Sequence[Row], sent: Sequence[RequestRow], **load: Any) -> Run:
    """A run of two servers with its requests on disk."""
    labels = list(dict.fromkeys(row.label for row in sent))
    run = made_up_run([*(cell(label, "server", peak_memory_bytes=2**30) for label in labels), *rows], batch_sizes=None)
    requests.write(folder / requests.FILE, sent)
    run.record.config["measure"]["load"] = {"requests_per_level": 60, **load}
    return replace(run, folder=folder)


@pytest.fixture
def two(tmp_path: Path) -> Run:
    return served_run(tmp_path, *two_servers(GOAL), slo=GOAL.model_dump())


def asked(run: Run, slo: SLO | None = None, **limits: float) -> Recommendation:
    return recommend([run], 1, "goodput", Limits(**limits), slo=slo)


def test_the_summary_has_the_best_levels(two: Run) -> None:
    summary = frame(two).set_index("label")
    # Sixteen at a time is late for everybody: nothing of it is goodput.
    assert summary.loc["quick", "goodput_level"] == "c4"
    level_ = next(one for one in summarize(two).cells[0].load.levels if one.level == "c4")  # type: ignore[union-attr]
    assert summary.loc["quick", "goodput_per_s"] == pytest.approx(level_.goodput_per_s)
    assert summary.loc["quick", "load_output_tokens_per_s"] > summary.loc["slow", "load_output_tokens_per_s"]
    assert summary.loc["quick", "load_validity"] == "ok"
    assert summary["slo_rate_per_s"].isna().all()


def test_charts_have_a_line_a_server_and_a_point_a_level(two: Run) -> None:
    found = {kind.key: chart for kind, chart in charts(data.collect(two))}
    assert {"load-first-token", "load-between-tokens", "load-throughput", "goodput"} <= found.keys()
    chart = found["load-first-token"]
    assert isinstance(chart, ScatterChart)
    assert [one.backend for one in chart.series] == ["quick", "slow"]
    first = summarize(two).cells[0].load
    assert first is not None
    assert [point.y for point in chart.series[0].points] == [1000 * (one.ttft_p95_s or 0) for one in first.levels]
    assert "objective: first token within 500 ms, 50.0 ms between tokens" in found["goodput"].details
    assert chart.series[0].points[1].hover.startswith("quick, 4 at a time\n")


def test_the_report_has_a_row_a_level_with_errors_and_flags(tmp_path: Path) -> None:
    rows, sent = two_servers(GOAL)
    assert isinstance(rows[0], LoadRow)
    marked = rows[0].model_copy(update={"validity": "client_delay", "errors": "timeout 2"})
    report = data.collect(served_run(tmp_path, [marked, *rows[1:]], sent))
    table = load_tables.levels([report])
    assert table is not None
    assert len(table.rows) == 6
    assert [field.text for field in table.rows[0].fields[-2:]] == ["timeout 2", "client delay"]
    assert table.rows[1].fields[1].text == "4 at a time"
    assert "## Under load" in markdown.render([report])
    assert any(line.startswith("! client_delay (quick at 1 at a time): the client itself") for line in report.doubts)


def test_a_run_without_load_has_none_of_it() -> None:
    report = data.collect(made_up_run([cell("int4")]))
    assert load_tables.levels([report]) is None
    assert not [kind for kind, _ in charts(report) if "load" in kind.key or kind.key == "goodput"]


def test_the_highest_rate_is_told_with_its_bracket(tmp_path: Path) -> None:
    rows, sent = two_servers(GOAL)
    search = [
        level(steady("quick", "r4", 4, ttft=0.1), GOAL, mode="search", level="search/1", rate=4.0),
        level(steady("quick", "r5", 5, ttft=0.9), GOAL, mode="search", level="search/2", rate=5.0),
    ]
    run = served_run(tmp_path, [*rows, *search], sent)
    assert frame(run).set_index("label").loc["quick", "slo_rate_per_s"] == 4
    assert load_tables.found([data.collect(run)]) == [["quick: 4 requests/s keep the objective, 5 do not"]]


def test_the_server_with_the_highest_goodput_is_named(two: Run) -> None:
    found = asked(two)
    assert found.pick is not None
    assert found.pick.named.label == "quick"
    assert found.runner_up is not None
    assert found.runner_up.label == "slow"
    assert found.slo == GOAL
    said = "\n".join(lines(found))
    assert said.startswith("quick under load, 4 at a time: goodput ")
    assert "requests/s within ttft=0.5s,itl=0.05s against slow" in said
    assert to_dict(found)["recommended"]["goodput_level"] == "c4"


def test_another_objective_is_counted_from_the_requests(two: Run) -> None:
    """With patience, sixteen at a time is the best level; a strict objective leaves one at a time."""
    patient, strict = (served(summarize(two), slo)["quick"] for slo in (SLO(ttft=3), SLO(ttft=0.1)))
    assert (patient.level.level, patient.met) == ("c16", 60)
    assert strict.level.level == "c1"
    assert asked(two, SLO(ttft=3)).slo == SLO(ttft=3)


def test_servers_that_chance_does_not_separate_are_tied(tmp_path: Path) -> None:
    """Of two that are equal, the one with less memory is named."""
    sent = [*steady("a", "c4", 5, ttft=0.1), *steady("b", "c4", 5.01, ttft=0.1)]
    rows = [level(sent[:60], GOAL), level(sent[60:], GOAL)]
    run = served_run(tmp_path, rows, sent)
    found = asked(edited(run, "cells", peak_memory_bytes=[2**29, 2**30]), GOAL)
    assert found.pick is not None
    assert (found.pick.named.label, found.pick.leader.label) == ("a", "b")
    assert len(found.pick.tied) == 2


def test_the_difference_of_goodputs_is_welchs(two: Run) -> None:
    from scipy.stats import ttest_ind

    best = served(summarize(two), GOAL)
    quick, slow = best["quick"], best["slow"]
    expected = ttest_ind(slow.goodput.slices, quick.goodput.slices, equal_var=False).confidence_interval()
    assert difference(quick.goodput, slow.goodput)[1:] == pytest.approx((expected.low, expected.high))
    assert requests_needed(quick, slow, 0.1) is None


def test_what_goodput_lacks_is_said(tmp_path: Path, two: Run) -> None:
    rows, sent = two_servers(None)
    with pytest.raises(QbenchError, match="names no objective; add --slo"):
        asked(served_run(tmp_path, rows, sent))
    unloaded = made_up_run([cell("int4", peak_memory_bytes=1)])
    found = recommend([replace(unloaded, folder=tmp_path / "none")], 1, "goodput", Limits(), slo=GOAL)
    assert found.pick is None
    assert found.excluded[0][1] == "it was not measured under load, or no request was answered"
    assert asked(two, memory_bytes=2**20).pick is None
    assert asked(two, memory_bytes=UNLIMITED).pick is not None


def test_the_command_takes_an_objective(two: Run) -> None:
    write_table(two.folder / "cells.csv", CellRow, two.cells)
    write_table(two.folder / "load.csv", LoadRow, two.load)
    write_record(two.folder / "run.json", two.record, Redactor.here())
    assert len(read_run(two.folder).load) == 6
    command = ["recommend", str(two.folder), "--objective", "goodput", "--slo"]
    done = CliRunner().invoke(decide.app, [*command, "ttft=3s", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["slo"] == {"ttft": 3.0, "itl": None}
    wrong = CliRunner().invoke(decide.app, [*command, "ttft=soon"])
    assert wrong.exit_code == 2
    assert "ttft=0.5s,itl=50ms" in wrong.output
    speed = CliRunner().invoke(decide.app, ["recommend", str(two.folder), "--slo", "ttft=3s"])
    assert "add --objective goodput" in speed.output
