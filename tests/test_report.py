"""What a report says: figures, failures and text as they are, readable without scripts."""

import csv
import functools
import io
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from qbench.cli.app import app
from qbench.errors import QbenchError
from qbench.machine.environment import GPU
from qbench.records.run import Run, read_run
from qbench.show import formats, progress, report
from qbench.show.plots import files, mpl, plotly
from qbench.show.plots.charts import charts
from qbench.show.plots.shapes import BarChart, ScatterChart
from qbench.show.report import markdown, page, speed_tables, tables
from qbench.show.view import data
from tests.support.frames import edited
from tests.support.made_up_run import (
    FIVE_ANSWERS,
    cell,
    five_cells,
    made_up_run,
    measured,
    subject,
    sustained_cells,
    trial,
    trials,
)
from tests.support.made_up_run import (
    answers as answers_of,
)  # fmt: skip

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
SMOKE, TINYLLAMA = PUBLISHED / "smoke-xeon-2core", PUBLISHED / "tinyllama-shape-xeon-2core"

cli = CliRunner()


class Page(HTMLParser):
    """The elements of a page, and what its tables say by their captions."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._inside: list[str] = []
        self._caption = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "link", "br", "wbr"):
            self._inside.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables[self._caption].append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag
        if tag == "caption":
            self.tables[self._caption] = []

    def handle_data(self, data: str) -> None:
        if "caption" in self._inside:
            self._caption += data
        elif {"td", "th"} & set(self._inside):
            self.tables[self._caption][-1][-1] += data
        if not {"script", "style"} & set(self._inside):
            self.text += data

    def records(self, caption: str) -> list[dict[str, str]]:
        """The rows of the table whose caption begins so, by heading."""
        (found,) = (rows for name, rows in self.tables.items() if name.startswith(caption))
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """Charts that were drawn for another page are not drawn again: most tests read the tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mpl, "svg", STILL)
        yield


STILL = functools.cache(mpl.svg)


@pytest.fixture(scope="module")
def smoke() -> Run:
    return read_run(SMOKE)


@pytest.fixture(scope="module")
def smoke_page(smoke: Run) -> Page:
    return Page(page.render([data.collect(smoke)]))


def on_gpu(name: str) -> Run:
    """The published run of TinyLlama's shape, as if a GPU had made it and nobody had measured how fast that copies."""
    run = read_run(TINYLLAMA)
    gpu = run.record.environment.model_copy(update={"gpus": (GPU(name=name, memory_bytes=80 << 30),)})
    run = edited(run, "cells", device=name, read_bytes_per_s=None)
    return replace(run, record=run.record.model_copy(update={"environment": gpu}))


def test_every_speed_stands_in_a_table(smoke_page: Page) -> None:
    with (SMOKE / "throughput.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    found = {(row["backend"], row["batch"]): row for row in smoke_page.records("Decode speed")}
    assert set(found) == {(row["label"].upper(), row["batch_size"]) for row in rows}
    for (name, size), shown in found.items():
        trials = [row for row in rows if (row["label"].upper(), row["batch_size"]) == (name, size)]
        median = statistics.median(float(row["decode_tokens_per_s"]) for row in trials)
        assert float(shown["tokens/s"].rstrip(" !").replace(",", "")) == pytest.approx(median, rel=0.01)
        p95 = statistics.median(float(row["itl_p95_s"]) for row in trials)
        assert float(shown["p95"].removesuffix(" ms")) == pytest.approx(1000 * p95, rel=0.01)


def test_bandwidth_is_what_a_step_reads_over_its_time(smoke: Run) -> None:
    fp16 = data.collect(smoke).cells[0]
    # Four layers, two heads of 64 numbers, keys and values in two bytes; 192 tokens and half of the 64 new ones.
    cache_bytes = 2 * 4 * 2 * 64 * 2 * (192 + 32)
    assert [speed.batch_size for speed in fp16.speeds] == [1, 8, 32]
    for speed in fp16.speeds:
        read = 8_393_472 + speed.batch_size * cache_bytes
        assert speed.tokens_per_s is not None
        assert speed.step
        assert speed.step.read_bytes_per_s == pytest.approx(read * speed.tokens_per_s / speed.batch_size)


def test_a_ceiling_is_drawn_where_it_is_known_and_never_invented(smoke: Run) -> None:
    def drawn(report: data.RunReport) -> set[tuple[float, str] | None]:
        (chart,) = (chart for kind, chart in charts(report) if kind.key == "bandwidth")
        assert isinstance(chart, BarChart)
        return {panel.line for panel in chart.panels}

    on_cpu = data.collect(edited(smoke, "cells", read_bytes_per_s=None))
    assert on_cpu.bandwidth is None
    assert drawn(on_cpu) == {None}
    assert any(note.startswith("bandwidth ceiling left out") for note in on_cpu.notes)
    assert drawn(data.collect(on_gpu("NVIDIA A100-SXM4-80GB"))) == {(2039.0, "ceiling")}
    assert drawn(data.collect(on_gpu("NVIDIA of tomorrow"))) == {None}
    readings = edited(smoke, "cells", read_bytes_per_s=[20e9, 24e9, None, 22e9, 21e9])
    measured_there = data.collect(readings)
    assert drawn(measured_there) == {(24.0, "ceiling")}
    assert measured_there.bandwidth is not None
    assert measured_there.bandwidth.source == "fastest of 4 readings, one before each cell"
    given = data.collect(readings, speed=data.Bandwidth(50e9, "given"))
    assert drawn(given) == {(50.0, "ceiling")}
    shares = [row["of the ceiling"] for row in Page(page.render([given])).records("Decode speed")]
    assert shares[0] == f"{given.cells[0].speeds[0].step.read_bytes_per_s / 50e9:.0%}".replace("%", " %")  # type: ignore[union-attr]


def test_where_a_step_s_time_goes_stands_in_a_table(smoke: Run) -> None:
    """FP16 at batch 8 as if it had decoded 4,000 tokens a second, on a machine of 10 GB/s."""
    run = edited(smoke, "throughput", decode_tokens_per_s=4000.0, validity="ok")
    found = data.collect(run, speed=data.Bandwidth(10e9, "given"))
    rows = Page(page.render([found])).records("A decode step")
    assert len(rows) == 5 * 3
    # 8,393,472 bytes of weights and 8 x 224 tokens x 2 KiB of cache: 12,063,488 bytes take 1.206 ms; a step took 2 ms.
    assert list(rows[1].values()) == [
        "FP16",
        "8",
        "8.00 MiB",
        "3.50 MiB",
        "1.21 ms",
        "2.00 ms",
        "1.66×",
        "6,632",
        "4,000",
    ]
    text = markdown.render([found])
    assert "| FP16 | 8 | 8.00 MiB | 3.50 MiB | 1.21 ms | 2.00 ms | 1.66× | 6,632 | 4,000 |" in text
    assert "- smoke: bandwidth 10 GB/s, given" in text
    unknown = data.collect(edited(run, "cells", read_bytes_per_s=None))
    assert "- smoke: bandwidth not known" in markdown.render([unknown])
    row = Page(page.render([unknown])).records("A decode step")[1]
    assert list(row.values()) == ["FP16", "8", "8.00 MiB", "3.50 MiB", "–", "2.00 ms", "–", "–", "4,000"]


def test_the_batch_from_which_on_a_cell_is_slower_is_said(smoke: Run) -> None:
    usual = {"fp16": 100.0}
    speeds = [
        50.0 if trial.label == "gptq" and trial.batch_size >= 8 else usual.get(trial.label, 200.0)
        for trial in smoke.throughput
    ]
    run = edited(smoke, "throughput", decode_tokens_per_s=speeds)
    html, text = Page(page.render([data.collect(run)])).text, markdown.render([data.collect(run)])
    for place in (html, text.replace("\\", "")):
        assert "GPTQ: slower than FP16 from batch 8 on" in place
        assert "INT4: not slower than FP16 at batch 32, the largest that both ran" in place
    nothing = data.collect(made_up_run([cell("fp16", peak_memory_bytes=1)]))
    assert (nothing.crossovers, speed_tables.steps([nothing]), speed_tables.step_bandwidths([nothing])) == (
        (),
        None,
        [""],
    )


@pytest.mark.parametrize(
    ("rate", "shown"), [(None, "–"), (1.5e9, "1.5 GB/s"), (35.7e9, "35.7 GB/s"), (3.35e12, "3,350 GB/s")]
)
def test_bandwidths_of_cards_are_written_out(rate: float | None, shown: str) -> None:
    assert formats.gigabytes_a_second(rate) == shown


def test_a_measured_copy_comes_before_the_data_sheet() -> None:
    run = on_gpu("NVIDIA A100-SXM4-80GB")
    found = data.collect(edited(run, "cells", read_bytes_per_s=[1.7e12, 1.75e12, None, 1.6e12, 1.7e12]))
    # The data sheet says 2,039 GB/s, and alone knows how fast the card computes.
    assert found.bandwidth == data.Bandwidth(1.75e12, "fastest of 4 copies, one before each cell", 312e12)
    two = data.collect(edited(run, "cells", device=["NVIDIA L4", *["NVIDIA A10"] * 4]))
    assert two.bandwidth is None
    assert any(note.endswith("measured on several machines or GPUs") for note in two.notes)


def test_sustained_load_is_drawn_and_stands_in_a_table() -> None:
    found = data.collect(made_up_run(sustained_cells()))
    (chart,) = (chart for kind, chart in charts(found) if kind.key == "sustained")
    assert isinstance(chart, ScatterChart)
    fp16, int4, second = chart.series
    assert (fp16.backend, int4.backend, second.backend) == ("FP16", "INT4", "int4-group-32")
    last = int4.points[-1]
    assert (last.x, last.y, last.hover) == (10, 80, "INT4 after 600 s: 80.0 tokens/s")
    # Falling clocks are what the load is measured for.
    assert {point.mark for point in int4.points} == {"", "×"}
    assert int4.points[15].hover.endswith("\nthrottled")
    assert [point.mark for point in fp16.points] == ["!" if i == 30 else "" for i in range(60)]
    assert chart.details[0] == "batch 1, 1,920 prompt and 128 new tokens on end, prefills excluded"
    rows = Page(page.render([found])).records("Under sustained load")
    assert [list(row.values())[:4] for row in rows] == [
        ["FP16", "41.5", "41.5", "100 %"],
        ["INT4", "100", "80.0", "80 %"],
        ["int4-group-32", "76.0", "75.5", "99 %"],
    ]
    assert "foreign load" in rows[0]["trust"]
    assert speed_tables.sustained([data.collect(made_up_run(five_cells()))]) is None


def test_a_quantized_cache_is_named_where_speeds_are(smoke: Run) -> None:
    assert "keys and values" not in data.collect(smoke).settings["throughput"]
    quantized = edited(smoke, "throughput", kv_cache="int8")
    assert "the first excluded, keys and values in int8; medians" in data.collect(quantized).settings["throughput"]


def test_predictions_stand_beside_measurements(smoke_page: Page, smoke: Run) -> None:
    rows = smoke_page.records("Predicted")
    assert len(rows) == 5 * 4
    for row in rows:
        assert abs(float(row["measured, against predicted"].removesuffix(" %").replace("−", "-"))) < 10
    assert all(cell.predicted_bytes for cell in data.collect(smoke).cells)
    unknown = data.collect(made_up_run(five_cells()))
    assert tables.predictions([unknown]) is None
    assert any(note.startswith("predictions and bandwidth left out") for note in unknown.notes)


def test_subjects_that_differ_by_more_than_chance_have_a_star() -> None:
    rows = [cell("fp16"), cell("int4")]
    right = {
        "fp16": {"bent": np.arange(100) < 80, "same": np.arange(100) < 50},
        "int4": {"bent": np.arange(100) < 55, "same": np.arange(100) < 48},
    }
    answers: dict[str, dict[tuple[str, int], bool]] = {"fp16": {}, "int4": {}}
    for label, by_subject in right.items():
        rows += [subject(label, None, name, int(found.sum()), 100) for name, found in by_subject.items()]  # type: ignore[list-item]
        for name, found in by_subject.items():
            answers[label] |= answers_of(found, name)
    table = tables.subjects(data.collect(made_up_run(rows, answers=answers)), 0)
    assert table
    # 25 flips one way have p = 2 ⁄ 2²⁵, two of them p = ½.
    assert [[field.text for field in row.fields] for row in table.rows] == [
        ["bent", "100", "80.0", "−25.0 *"],
        ["same", "100", "50.0", "−2.0"],
    ]
    assert [row.fields[-1].tint for row in table.rows] == pytest.approx([-1.0, -0.08])
    without = tables.subjects(data.collect(made_up_run(rows)), 0)
    assert without
    assert [row.fields[-1].text for row in without.rows] == ["−25.0", "−2.0"]


def test_failures_and_doubts_are_in_plain_sight() -> None:
    found = data.collect(made_up_run(five_cells(), answers=FIVE_ANSWERS))
    html, text = Page(page.render([found])), markdown.render([found])
    for place in (html.text, text.replace("\\", "")):
        assert "AWQ: unavailable (no module named gptqmodel)" in place
        assert "FP16 at batch 32: oom (CUDA out of memory)" in place
    summary = {row["backend"]: row for row in html.records("All backends")}
    assert summary["FP16"]["tokens/s at batch 32"] == "oom"
    assert summary["AWQ (unavailable)"]["accuracy [95 %]"] == "–"
    unstable = data.collect(made_up_run([cell("fp16"), *trials("fp16", None, 1, [10, 20, 30])]))
    assert any("! unstable (FP16 at batch 1)" in doubt for doubt in unstable.doubts)
    (row,) = Page(page.render([unstable])).records("Decode speed")
    assert (row["tokens/s"], row["trust"]) == ("20.0 !", "unstable")
    bars = [bar.text for _, chart in charts(unstable) if isinstance(chart, BarChart) for bar in chart.panels[0].bars]
    assert "20.0 !" in bars


def test_text_of_a_run_is_never_markup() -> None:
    evil = "<script>alert(1)</script>"
    label = "a|b<img src=x onerror=alert(2)>"
    rows = [
        *measured("fp16", "fp16", 4, {1: [10, 11], 8: [30, 31]}, 900),
        cell(label, "int4", status="error", error=evil),
    ]
    found = data.collect(made_up_run(rows, model=evil))
    html = page.render([found])
    scripts = [attributes for tag, attributes in Page(html).elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "charts"}, {}, {}]
    assert all("onerror" not in attributes for _, attributes in Page(html).elements)
    assert evil in Page(html).text
    json_text = re.search(r'id="charts">(.*?)</script>', html, re.DOTALL)
    assert json_text
    plots = json.loads(json_text[1])
    # Traces name their backend in `meta`, which nobody draws and by which the page filters.
    named = {trace.pop("meta", None) for plot in plots for trace in plot["figure"]["data"]}
    assert label in named
    assert "<script" not in json.dumps(plots)
    assert "<img" not in json.dumps(plots)
    written = markdown.render([found])
    assert "<script" not in written
    assert "<img" not in written
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in written.splitlines() if line.startswith("| a")}
    assert len(widths) == 2  # the summary's and the loading table's


def test_a_long_name_of_a_kernel_may_break_and_stays_text() -> None:
    html = page.render([data.collect(made_up_run([cell("gguf", weight_bytes=1, kernel="llama.cpp AVX2+<b>+FMA")]))])
    assert "<td>llama.cpp AVX2+<wbr>&lt;b&gt;+<wbr>FMA</td>" in html


def test_the_page_is_whole_and_asks_for_nothing(smoke_page: Page) -> None:
    for tag, attributes in smoke_page.elements:
        assert tag not in ("link", "iframe", "base", "object")
        source = attributes.get("src") or ""
        assert not source or source.startswith("data:image/svg+xml")
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(a["content"] for tag, a in smoke_page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    stills = [a for tag, a in smoke_page.elements if tag == "img"]
    assert len(stills) == 8
    assert all(image["alt"] for image in stills)


def test_tables_have_captions_and_scopes(smoke_page: Page) -> None:
    assert all(smoke_page.tables)
    assert sum(tag == "table" for tag, _ in smoke_page.elements) == len(smoke_page.tables)
    assert {a.get("scope") for tag, a in smoke_page.elements if tag == "th"} == {"col", "row"}


def test_limited_evaluations_are_left_out_unless_asked_for() -> None:
    run = made_up_run(five_cells(partial=True))
    without = data.collect(run)
    assert all(cell.accuracy is None for cell in without.cells)
    assert any("--allow-partial" in note for note in without.notes)
    assert {kind.key for kind, _ in charts(without)}.isdisjoint({"accuracy", "pareto", "accuracy-speed"})
    shown = Page(page.render([data.collect(run, allow_partial=True)])).records("All backends")
    assert shown[0]["accuracy [95 %]"].endswith("partial (285 questions)")


def test_drawing_says_how_far_it_is(smoke: Run, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    report.write([smoke], tmp_path / "r.html", progress=lambda *step: heard.append(step))
    plots = len(list(charts(data.collect(smoke))))
    assert heard == [(done, plots) for done in range(plots)]
    heard.clear()
    files.write(data.collect(smoke), tmp_path / "plots", lambda *step: heard.append(step))
    assert heard == [(done, plots) for done in range(plots)]
    for attended, shown in ((True, "3/7"), (False, "")):
        out = io.StringIO()
        with progress.counted(Console(file=out, force_terminal=attended), "drawing") as drawn:
            drawn(3, 7)
        assert shown in out.getvalue()
        assert bool(out.getvalue()) == attended


def test_runs_stand_side_by_side(smoke: Run, tmp_path: Path) -> None:
    html, _ = report.write([smoke, on_gpu("NVIDIA L4"), read_run(SMOKE)], tmp_path / "r.html")
    found = Page(html.read_text())
    rows = found.records("All backends")
    assert [row["run"] for row in rows[:5]] == [f"smoke ({SMOKE})"] * 5
    assert {row["run"] for row in rows[5:]} == {"tinyllama-shape", f"smoke ({SMOKE})"}
    assert list(found.records("Machine and versions")[0])[2] == "tinyllama-shape"
    with pytest.raises(QbenchError, match="different machines"):
        report.write([smoke, on_gpu("NVIDIA L4")], tmp_path / "r.html", rate=1e9)


def test_the_way_to_measure_again_is_there(smoke_page: Page, smoke: Run) -> None:
    assert smoke.record.command in smoke_page.text
    assert f"git checkout {smoke.record.environment.git_commit}" in smoke_page.text
    packages = {row["what"]: row["smoke"] for row in smoke_page.records("Machine and versions")}
    assert packages["torch"] == smoke.record.environment.versions["torch"]


def test_a_backend_that_was_asked_for_and_not_run_is_named() -> None:
    run = made_up_run([cell("fp16", peak_memory_bytes=1)])
    run.record.config["backends"] = [{"label": "fp16"}, {"label": "gptq"}]
    found = data.collect(run)
    assert "asked for and not run: gptq" in found.notes
    assert any(note.startswith("the run has not finished") for note in found.notes)
    assert found.tried == "What was measured ended ok; the run is not whole."
    assert data.collect(made_up_run([])).tried == "Nothing has been measured."


def test_other_tasks_are_named() -> None:
    rows = [cell("fp16"), subject("fp16", "fp16", "all", 60, 100).model_copy(update={"task": "arc_easy"})]
    assert "measured and not shown here, see accuracy.csv: arc_easy" in data.collect(made_up_run(rows)).notes


def test_a_speed_with_a_failed_trial_is_marked() -> None:
    rows = [cell("fp16"), *trials("fp16", None, 1, [10, 11]), trial("fp16", None, 1, trial=2, status="oom")]
    found = data.collect(made_up_run(rows))
    assert found.cells[0].speeds[0].doubtful
    assert Page(page.render([found])).records("All backends")[0]["tokens/s at batch 1"] == "10.5 !"


def test_another_report_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    run = made_up_run([cell("fp16")])
    report.write([run], tmp_path / "report.html")
    report.write([run], tmp_path / "report.html")
    (tmp_path / "BENCHMARK.md").write_text("# Mine")
    with pytest.raises(QbenchError, match=r"BENCHMARK.md is there already and no report's; give --out"):
        report.write([run], tmp_path / "report.html")
    assert (tmp_path / "BENCHMARK.md").read_text() == "# Mine"


def test_tables_say_under_which_conditions(smoke: Run) -> None:
    text = markdown.render([data.collect(smoke)])
    assert "- throughput: 192 prompt and 64 new tokens, the first excluded; medians over trials" in text
    assert "- mmlu: the demo questions, 2,400 questions, 5-shot" in text


@pytest.mark.parametrize(("value", "shown"), [("a<b>&c", "a&lt;b&gt;&amp;c"), ("two\nlines", "two<br>lines")])
def test_plotly_takes_no_text_for_tags(value: str, shown: str) -> None:
    assert plotly.text(value) == shown


def test_a_run_without_a_figure_is_a_report_all_the_same() -> None:
    found = data.collect(made_up_run([cell("fp16", status="crashed", error="signal 11")], batch_sizes=None))
    assert list(charts(found)) == []
    assert "FP16: crashed (signal 11)" in Page(page.render([found])).text


def test_the_command_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(PUBLISHED / name) for name in ("smoke-xeon-2core", "context-epyc-2core")]
    done = cli.invoke(app, ["report", *runs, "--out", "pages/all.html"])
    assert done.exit_code == 0, done.output
    assert done.output.split() == ["pages/all.html", "pages/BENCHMARK.md"]
    names = {row["run"] for row in Page((tmp_path / "pages" / "all.html").read_text()).records("All backends")}
    assert names == {"smoke", "context-epyc-2core"}
    assert "| INT4 | smoke |" in (tmp_path / "pages" / "BENCHMARK.md").read_text()


@pytest.mark.long
def test_a_report_of_a_folder_has_every_run_in_it(tmp_path: Path) -> None:
    done = cli.invoke(app, ["report", str(PUBLISHED), "--out", str(tmp_path / "all.html")])
    assert done.exit_code == 0, done.output
    names = {row["run"] for row in Page((tmp_path / "all.html").read_text()).records("All backends")}
    assert names == {
        "context-epyc-2core",
        "demo-mmlu",
        "formats-1b-epyc-2core",
        "formats-epyc-2core",
        "int4-calibrated",
        "kv-cache-accuracy-epyc-2core",
        "llamacpp-shape",
        "llamacpp-shape-epyc-2core",
        "servers-epyc-2core",
        "smoke",
        "llama3-8b-shape",
        "tinyllama-shape",
        *(f"kv-cache-{kind}" for kind in ("16bit", "int8", "int4")),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no such folder"),
        ([str(SMOKE), "--out", "page.txt"], "expected the name of an HTML file"),
        ([str(SMOKE), "--bandwidth", "fast"], "expected a number with a unit"),
        ([str(SMOKE), "--out", "file/report.html"], "cannot be written"),
    ],
)
def test_what_the_user_can_mend_is_said(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    done = cli.invoke(app, ["report", *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from qbench.cli.app import app; "
        f"r = CliRunner().invoke(app, {['report', str(SMOKE), '--out', str(tmp_path / 'r.html')]}); "
        "assert r.exit_code == 0, r.output; "
        "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_has_an_example() -> None:
    result = cli.invoke(app, ["report", "--help"])
    assert result.exit_code == 0
    assert "Example: qbench report" in " ".join(result.output.split())


def test_the_same_run_gives_the_same_page(smoke: Run) -> None:
    first = page.render([data.collect(smoke)])
    STILL.cache_clear()
    assert first == page.render([data.collect(smoke)])
