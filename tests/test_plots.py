from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from html import unescape
from itertools import combinations, pairwise, permutations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Path2D
from matplotlib.text import Annotation, Text

from qbench.analysis.formulas import wilson_interval
from qbench.config import SLO, backend_kinds
from qbench.records.run import Run, read_run
from qbench.show.plots import files
from qbench.show.plots import mpl as drawn
from qbench.show.plots.charts import CHARTS, charts
from qbench.show.plots.names import Name, place_names
from qbench.show.plots.style import cell_styles, shorten
from qbench.show.report import page
from qbench.show.view.data import collect
from tests.support.load_rows import two_servers
from tests.support.made_up_run import (
    FIVE_ANSWERS,
    GIB,
    cell,
    eight_cells,
    five_cells,
    flipped,
    made_up_run,
    measured,
    sustained_cells,
    trial,
    window,
)
from tests.support.needles import FOUND, answered

PUBLISHED = Path(__file__).parents[1] / "results" / "published"

NAMES = ("memory", "throughput", "mmlu", "pareto", "accuracy_speed", "batches")
"""Files of a run whose configuration and latencies are not known."""


@pytest.fixture(scope="module")
def five() -> dict[str, Figure]:
    return figures(made_up_run(five_cells()))


@pytest.fixture(scope="module")
def eight() -> dict[str, Figure]:
    return figures(made_up_run(eight_cells()))


def figures(run: Run, *names: str, allow_partial: bool = False) -> dict[str, Figure]:
    """By file name, as they are written: those named, or all."""
    report = collect(run, allow_partial=allow_partial)
    made = {}
    with drawn.drawing():
        for kind, chart in charts(report):
            if names and kind.file not in names:
                continue
            figure = files.draw(chart, report)
            figure.draw_without_rendering()
            made[kind.file] = figure
    return made


def figure_of(run: Run, name: str) -> Figure:
    """One of them."""
    return figures(run, name)[name]


def names_of(run: Run) -> set[str]:
    """The figures that a run has, without drawing them."""
    return {kind.file for kind, _ in charts(collect(run))}


def draw(run: Run, out: Path) -> list[Path]:
    return files.write(collect(run), out)


def bars(axes: Axes) -> dict[float, Rectangle]:
    """The bars by the row that they stand in."""
    return {bar.get_y() + bar.get_height() / 2: bar for bar in axes.patches if isinstance(bar, Rectangle)}


def widths(axes: Axes) -> dict[float, float]:
    return {row: bar.get_width() for row, bar in bars(axes).items()}


def cell_names(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def note(axes: Axes, row: int) -> str:
    """What is written in the row of a cell."""
    (text,) = (text.get_text() for text in axes.texts if getattr(text, "xy", (0, -1))[1] == row and text.get_text())
    return text


def visible_texts(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn; axes also keep labels of ticks beyond their limits."""
    hidden = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in axis.get_major_ticks():
                if not (low <= tick.get_loc() <= high and tick.label1.get_visible()):
                    hidden.add(tick.label1)
                hidden.add(tick.label2)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip() and text not in hidden:
            yield text


def box_of(text: Text) -> tuple[float, float, float, float]:
    # An annotation's extent includes its line; only its words must stay clear.
    return Text.get_window_extent(text).extents  # type: ignore[return-value]


def overlap(first: Text, second: Text) -> bool:
    (a0, b0, a1, b1), (c0, d0, c1, d1) = box_of(first), box_of(second)
    return a0 < c1 - 1 and c0 < a1 - 1 and b0 < d1 - 1 and d0 < b1 - 1


def assert_readable(figure: Figure) -> None:
    texts = list(visible_texts(figure))
    # Marks stand above their points, and points may coincide.
    texts = [text for text in texts if text.get_text() not in ("!", "×")]
    clashes = [(a.get_text(), b.get_text()) for a, b in combinations(texts, 2) if overlap(a, b)]
    assert clashes == []
    width, height = figure.get_size_inches() * figure.dpi
    for text in texts:
        left, low, right, high = box_of(text)
        assert left >= -1, text.get_text()
        assert low >= -1, text.get_text()
        assert right <= width + 1, text.get_text()
        assert high <= height + 1, text.get_text()
        assert text.get_fontsize() >= 11, text.get_text()


@pytest.mark.parametrize("name", NAMES)
def test_five_cells_are_readable(five: dict[str, Figure], name: str) -> None:
    assert_readable(five[name])


@pytest.mark.parametrize("name", NAMES)
def test_eight_cells_with_long_labels_are_readable(eight: dict[str, Figure], name: str) -> None:
    assert_readable(eight[name])


def test_the_overlap_check_sees_an_overlap() -> None:
    figure = drawn.new_figure(8, 3)
    figure.text(0.5, 0.5, "one")
    figure.text(0.5, 0.51, "two")
    with pytest.raises(AssertionError):
        assert_readable(figure)


def test_memory_bars_are_the_peak_memory_in_gib(five: dict[str, Figure]) -> None:
    (axes,) = five["memory"].axes
    assert axes.get_xlabel() == "peak memory (GiB)"
    assert widths(axes) == pytest.approx({0: 15.93, 1: 5.74, 2: 6.12, 4: 5.91})
    assert axes.get_xlim()[0] == 0


def test_memory_bars_name_their_value_and_ratio_to_fp16(five: dict[str, Figure]) -> None:
    (axes,) = five["memory"].axes
    assert note(axes, 0) == "15.93 GiB"
    # 5.74 ÷ 15.93 = 0.3603
    assert note(axes, 1) == "5.74 GiB\n0.36 × FP16"


def test_memory_of_a_small_model_is_in_mib_and_without_fp16_has_no_ratio() -> None:
    run = made_up_run([cell("int4", peak_memory_bytes=3 * 2**20), cell("fp16", status="oom")])
    (axes,) = figure_of(run, "memory").axes
    assert axes.get_xlabel() == "peak memory (MiB)"
    assert note(axes, 0) == "3.00 MiB"
    assert widths(axes) == {0: 3}


def test_throughput_has_a_panel_for_each_batch_size_with_median_bars(five: dict[str, Figure]) -> None:
    panels = five["throughput"].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["batch 1", "batch 8", "batch 32"]
    assert widths(panels[0]) == {0: 41.5, 1: 98, 2: 38.5, 4: 120}
    assert widths(panels[2]) == {1: 1502, 2: 905, 4: 1702}
    assert all(axes.get_xlim()[0] == 0 for axes in panels)
    assert note(panels[2], 1) == "1,502"


def test_throughput_marks_the_range_of_the_trials(five: dict[str, Figure]) -> None:
    spans = [line.get_segments()[0][:, 0].tolist() for line in five["throughput"].axes[1].collections]
    assert spans == [[305, 318], [512, 541], [240, 251], [601, 640]]


def test_one_trial_has_no_range() -> None:
    run = made_up_run([cell("int4"), trial("int4", None, 1, decode_tokens_per_s=5.0)], batch_sizes=(1,))
    (axes,) = figure_of(run, "throughput").axes
    assert not axes.collections


@pytest.mark.parametrize(("name", "panel"), [("memory", 0), ("throughput", 0), ("throughput", 2), ("mmlu", 0)])
def test_a_failed_cell_keeps_its_place_with_its_status(five: dict[str, Figure], name: str, panel: int) -> None:
    assert cell_names(five[name].axes[0]) == ["FP16", "INT4", "NF4", "AWQ", "GPTQ"]
    axes = five[name].axes[panel]
    assert note(axes, 3) == "unavailable"
    assert 3 not in bars(axes)


def test_a_batch_without_memory_says_oom_in_place_of_its_bar(five: dict[str, Figure]) -> None:
    axes = five["throughput"].axes[2]
    assert note(axes, 0) == "oom"
    assert 0 not in bars(axes)


def test_a_value_of_a_cell_that_failed_later_is_shown_with_its_status() -> None:
    run = made_up_run([cell("int4", status="crashed", peak_memory_bytes=2 * GIB)])
    (axes,) = figure_of(run, "memory").axes
    assert note(axes, 0) == "2.00 GiB\ncrashed"
    assert widths(axes) == {0: 2}


def test_a_cell_that_was_not_measured_says_so() -> None:
    (axes,) = figure_of(made_up_run([cell("int4", peak_memory_bytes=GIB), cell("nf4")]), "memory").axes
    assert note(axes, 1) == "no result"


def test_mmlu_bars_are_percent_with_wilson_intervals(five: dict[str, Figure]) -> None:
    (axes,) = five["mmlu"].axes
    assert axes.get_xlabel() == "accuracy (%)"
    assert widths(axes)[0] == pytest.approx(100 * 9304 / 14_042)
    low, high = wilson_interval(9304, 14_042)
    assert axes.collections[0].get_segments()[0][:, 0] == pytest.approx([100 * low, 100 * high])  # type: ignore[attr-defined]
    assert note(axes, 0) == "66.3 %"


def test_mmlu_bars_say_in_words_how_they_differ_from_fp16() -> None:
    run = made_up_run(five_cells(), answers=FIVE_ANSWERS | {"nf4": flipped(9304, 14_042, 500, 480)})
    shown = figure_of(run, "mmlu")
    (axes,) = shown.axes
    assert note(axes, 0) == "66.3 %"
    assert note(axes, 4) == "64.4 %\nworse by 1.8 points"
    assert note(axes, 2) == "64.8 %\nno worse than 1 point"
    assert "Against FP16: by intervals that hold together with 95 %, and McNemar's test" in caption(shown)
    assert_readable(shown)


@pytest.fixture(scope="module")
def alike() -> Figure:
    """Three cells on the front: int4 and nf4 differ by chance, fp16 really."""
    rows = [
        *measured("fp16", "fp16", 15.9, {}, 9304),
        *measured("int4", "int4", 5.7, {}, 9110),
        *measured("nf4", "nf4", 6.1, {}, 9120),
        *measured("awq", "awq", 5.9, {}, 8900),
    ]
    cells = {
        "fp16": flipped(9304, 14_042, 0, 0),
        "int4": flipped(9304, 14_042, 394, 200),
        "nf4": flipped(9304, 14_042, 394, 210),
        "awq": flipped(9304, 14_042, 604, 200),
    }
    cells["nf4"] |= {("all", number): number >= 9400 for number in (*range(9000, 9040), *range(9400, 9440))}
    return figure_of(made_up_run(rows, answers=cells), "pareto")


def test_neighbours_on_the_front_that_do_not_differ_are_tied(alike: Figure) -> None:
    (axes,) = alike.axes
    assert "Shaded: INT4, NF4 (no significant difference)" in caption(alike)
    int4, nf4 = (5.7, 100 * 9110 / 14_042), (6.1, 100 * 9120 / 14_042)
    bands = [line for line in axes.lines if line.get_linewidth() > 5]
    assert [band.get_xydata().tolist() for band in bands] == [  # type: ignore[union-attr]
        [pytest.approx(point) for point in (int4, (nf4[0], int4[1]), nf4)]
    ]
    assert_readable(alike)


def test_a_front_of_real_differences_has_no_ties() -> None:
    shown = figure_of(made_up_run(five_cells(), answers=FIVE_ANSWERS), "pareto")
    assert "Shaded" not in caption(shown)
    assert all(line.get_linewidth() < 5 for line in shown.axes[0].lines)


def test_a_chain_of_ties_says_that_it_is_one_between_neighbours() -> None:
    rows = [row for i, label in enumerate(("a", "b", "c")) for row in measured(label, "nf4", 5 + i, {}, 9000 + i)]
    cells = {label: flipped(9000, 14_042, 0, i) for i, label in enumerate(("a", "b", "c"))}
    shown = figure_of(made_up_run(rows, answers=cells), "pareto")
    assert "Shaded: a, b, c (no significant difference between neighbours)" in " ".join(caption(shown).split())


@pytest.mark.parametrize("correct", [1, 1500, 3500, 9000])
def test_the_chance_line_is_named_and_in_view(correct: int) -> None:
    (axes,) = figure_of(made_up_run(measured("int4", "int4", 1, {}, correct)), "mmlu").axes
    assert any(np.all(np.equal(line.get_xdata(), 25)) for line in axes.lines)
    assert "chance" in [text.get_text() for text in axes.texts]
    assert axes.get_xlim()[1] > 25


def test_pareto_points_are_memory_and_accuracy(five: dict[str, Figure]) -> None:
    (axes,) = five["pareto"].axes
    points = [tuple(dot.get_offsets()[0]) for dot in axes.collections]  # type: ignore[attr-defined]
    accuracies = [100 * correct / 14_042 for correct in (9304, 9122, 9101, 9050)]
    assert points == [pytest.approx(point) for point in zip((15.93, 5.74, 6.12, 5.91), accuracies, strict=True)]


def test_the_front_goes_in_steps_through_its_points(five: dict[str, Figure]) -> None:
    (axes,) = five["pareto"].axes
    (corners,) = (line.get_xydata() for line in axes.lines if len(line.get_xydata()) > 2)  # type: ignore[arg-type]
    int4, fp16 = (5.74, 100 * 9122 / 14_042), (15.93, 100 * 9304 / 14_042)
    assert corners[0] == pytest.approx(int4)  # type: ignore[index]
    assert corners[-1] == pytest.approx(fp16)  # type: ignore[index]
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))


def test_names_on_the_front_stand_out(five: dict[str, Figure]) -> None:
    weights = {text.get_text(): text.get_weight() for text in five["pareto"].axes[0].texts}
    assert weights == {"FP16": "bold", "INT4": "bold", "NF4": "normal", "GPTQ": "normal"}


def test_a_cell_without_a_point_is_named_below_the_pareto_plot(five: dict[str, Figure]) -> None:
    assert "Not shown: AWQ (unavailable)" in caption(five["pareto"])


def caption(figure: Figure) -> str:
    return figure.get_supxlabel()


@pytest.mark.parametrize("made", ["five", "eight"])
def test_a_cell_has_one_colour_in_all_figures(made: str, request: pytest.FixtureRequest) -> None:
    shown: dict[str, Figure] = request.getfixturevalue(made)
    for panel in (*shown["throughput"].axes, shown["mmlu"].axes[0]):
        for row, bar in bars(panel).items():
            same = bars(shown["memory"].axes[0])[row]
            assert (bar.get_facecolor(), bar.get_hatch()) == (same.get_facecolor(), same.get_hatch())
    dots = [tuple(dot.get_facecolor()[0]) for dot in shown["pareto"].axes[0].collections]
    assert dots == [bar.get_facecolor() for bar in bars(shown["memory"].axes[0]).values()]


def test_a_kind_has_the_same_colour_whatever_other_cells_there_are() -> None:
    assert cell_styles(["nf4", "int4"]) == cell_styles(["int4", "nf4"])[::-1]


def test_two_cells_of_a_kind_share_the_hue_and_differ_in_hatch_and_lightness() -> None:
    first, second = cell_styles(["gptq", "gptq"])
    assert first.edge == second.edge
    assert first.hatch != second.hatch
    assert second.fill > first.fill == first.edge


def test_a_new_kind_gets_a_colour_that_no_known_kind_has() -> None:
    (style,) = cell_styles(["unheard-of"])
    assert style.edge not in [kind.color for kind in backend_kinds().values()]


@pytest.mark.parametrize("name", NAMES)
def test_caption_tells_model_hardware_dtype_day_and_run(five: dict[str, Figure], name: str) -> None:
    text = caption(five[name])
    for part in ("meta-llama/Meta-Llama-3-8B-Instruct", "NVIDIA A100-SXM4-80GB", "float16", "2026-10-05", "made-up"):
        assert part in text


@pytest.fixture(scope="module")
def two() -> Run:
    """Two cells, which have every one of these figures."""
    rows = [row for row in five_cells() if row.label in ("fp16", "int4")]
    return made_up_run(rows)


@pytest.fixture(scope="module")
def written(two: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of `two`, in a folder that was not there before."""
    return draw(two, tmp_path_factory.mktemp("written") / "new" / "plots")


def test_every_chart_is_written_as_png_and_svg(written: list[Path]) -> None:
    paths, out = written, written[0].parent
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    assert sorted(out.iterdir()) == sorted(paths)
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths if path.suffix == ".png")
    assert all("</svg>" in path.read_text() for path in paths if path.suffix == ".svg")


def test_every_chart_that_is_registered_is_in_the_folder_and_in_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = collect(read_run(PUBLISHED / "smoke-xeon-2core"))
    figures = {"decode_tokens_per_s": 40.0, "energy_j": 256.0, "energy_source": "nvml"}
    timed = [trial("int4", None, 1, depth=depth, **figures) for depth in (0, 512)]
    loaded = collect(made_up_run([*sustained_cells(), *timed]))
    levels, _ = two_servers(SLO(ttft=0.5, itl=0.05))
    served = collect(made_up_run([*(cell(label, "server") for label in ("quick", "slow")), *levels], batch_sizes=None))
    needles = collect(answered(tmp_path / "needles", FOUND))
    every = [report, loaded, served, needles]
    monkeypatch.setattr(files, "save", lambda figure, stem: [stem])  # how a file is written is another test's
    written = {path.name for one in every for path in files.write(one, tmp_path)}
    html = page.render(every)
    for kind in CHARTS:
        assert kind.file.format(model="Meta-Llama-3-8B-Instruct") in written
        assert f'<h2 id="{kind.key}">{kind.title}</h2>' in html
        assert kind.explanation in unescape(html)


def test_the_same_rows_give_the_same_bytes(two: Run, written: list[Path], tmp_path: Path) -> None:
    again = draw(two, tmp_path)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_a_figure_without_any_value_is_left_out(tmp_path: Path) -> None:
    run = made_up_run([cell("int4", peak_memory_bytes=GIB), trial("int4", None, 1, status="oom")])
    assert [path.name for path in draw(run, tmp_path)] == ["memory.png", "memory.svg"]
    assert draw(made_up_run([cell("int4", status="error")], batch_sizes=None), tmp_path) == []
    assert draw(made_up_run([]), tmp_path) == []


def test_partial_accuracy_is_drawn_only_on_demand_and_marked() -> None:
    run = made_up_run(five_cells(partial=True))
    assert names_of(run) == {"memory", "throughput", "batches"}
    names = ("mmlu", "pareto", "accuracy_speed")
    shown = figures(run, *names, allow_partial=True)
    for name in names:
        assert "partial: 285 questions" in shown[name].get_suptitle()
        assert_readable(shown[name])


def test_demo_questions_are_not_called_mmlu() -> None:
    shown = figure_of(made_up_run(five_cells(), mmlu={"data": "demo"}), "mmlu")
    assert shown.get_suptitle() == "Accuracy on the demo questions"


@pytest.mark.parametrize(
    "model",
    ["a$b", r"$x^2$ $$ \frac{x} %s {0} <b>&amp;</b> é-ü-ß _", "tab\tand\nnewline \\frac{$", "x" * 300, "W" * 300],
)
def test_odd_model_names_are_drawn_as_they_are(model: str, tmp_path: Path) -> None:
    """In the caption, which all charts have in common; one of them is enough."""
    run = made_up_run([cell("int4", peak_memory_bytes=GIB)], model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(draw(run, tmp_path)) == 2
    shown = figure_of(run, "memory")
    assert_readable(shown)
    if len(model) < 50:
        assert " ".join(model.split()) in caption(shown)


def test_a_dollar_is_never_the_start_of_a_formula() -> None:
    with drawn.drawing():
        literal, letter = (drawn.new_figure(8, 3).text(0, 0, text) for text in ("$x$", "x"))
    assert literal.get_window_extent().width > 2 * letter.get_window_extent().width


def test_shortened_names_keep_both_ends() -> None:
    assert shorten("gptq-desc-act-64", 16) == "gptq-desc-act-64"
    assert shorten("gptq-desc-act-group-64", 11) == "gptq-…up-64"


@pytest.mark.parametrize("sizes", [(1,), (1, 2), (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)])
def test_any_number_of_batch_sizes_is_readable(sizes: tuple[int, ...]) -> None:
    speeds = {size: [100_000.0 * size, 120_000.0 * size] for size in sizes}
    rows = [row for kind in ("fp16", "int4") for row in measured(kind, kind, 5, speeds, 9000)]
    run = made_up_run([*rows, cell("awq", status="unavailable")], batch_sizes=sizes)
    figure = figure_of(run, "throughput")
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.axison] == [f"batch {size}" for size in sizes]
    assert_readable(figure)


def test_a_speed_that_cannot_be_trusted_is_marked_and_explained() -> None:
    rows = [
        *measured("fp16", "fp16", 15.9, {1: [41, 42], 8: [300, 360]}, 9304),
        *measured("int4", "int4", 5.7, {1: [98, 101]}, 9122),
        trial("int4", None, 8, decode_tokens_per_s=530, validity="foreign_load+throttled"),
    ]
    shown = figure_of(made_up_run(rows, batch_sizes=(1, 8)), "throughput")
    first, second = shown.axes
    assert (note(first, 0), note(first, 1)) == ("41.5", "99.5")
    assert (note(second, 0), note(second, 1)) == ("330 !", "530 !")
    text = " ".join(caption(shown).split())
    assert (
        "!: not to be trusted: foreign load (INT4 at batch 8); throttled (INT4 at batch 8); unstable (FP16 at batch 8)"
    ) in text
    assert_readable(shown)


def test_marks_among_points_stand_beside_their_whiskers_and_are_explained() -> None:
    rows = [
        *measured("fp16", "fp16", 15.9, {1: [41, 60], 8: [300, 360]}, 9304),
        *measured("int4", "int4", 5.7, {1: [98, 101], 8: [530, 540]}, 9122),
    ]
    shown = figures(made_up_run(rows, batch_sizes=(1, 8)), "batches", "accuracy_speed")
    (axes,) = shown["batches"].axes
    marks = [text for text in axes.texts if text.get_text() == "!"]
    assert [mark.xy for mark in marks] == [(1, 60), (8, 360)]  # type: ignore[attr-defined]
    for mark in marks:
        assert box_of(mark)[0] > axes.transData.transform(mark.xy)[0] + 1  # type: ignore[attr-defined]
    assert "!: not to be trusted: unstable (FP16 at batch 1 and 8)" in caption(shown["batches"])
    assert "Whiskers: slowest and fastest trial" in caption(shown["batches"])
    assert "!: speed not to be trusted (FP16)" in caption(shown["accuracy_speed"])


@pytest.mark.parametrize(
    ("fast", "scale", "ticks"),
    [(98.0, "linear", None), (450.0, "log", ["50", "100", "200"]), (52_000.0, "log", ["100", "1000", "10000"])],
)
def test_speeds_far_apart_stand_on_a_logarithmic_axis(fast: float, scale: str, ticks: list[str] | None) -> None:
    rows = [
        *measured("fp16", "fp16", 15.9, {1: [41, 41]}, 9304),
        *measured("nf4", "nf4", 5.8, {1: [60, 60]}, 9104),
        *measured("int4", "int4", 5.7, {1: [fast, fast]}, 9122),
    ]
    shown = figures(made_up_run(rows, batch_sizes=(1,)), "accuracy_speed")["accuracy_speed"]
    assert_readable(shown)
    (axes,) = shown.axes
    assert axes.get_xscale() == scale
    assert axes.get_xlabel() == "tokens/s at batch 1" + (", logarithmic" if ticks else "")
    if ticks:
        assert [label.get_text() for label in axes.get_xticklabels()] == ticks


def test_what_has_no_point_is_named_below_the_batches(five: dict[str, Figure]) -> None:
    assert "Not shown: AWQ (unavailable), FP16 at batch 32 (oom)" in caption(five["batches"])


def test_unmarked_speeds_need_no_explanation(five: dict[str, Figure]) -> None:
    for name in ("throughput", "batches", "accuracy_speed"):
        assert "!" not in caption(five[name])


def test_sustained_speed_over_the_minutes_with_its_steady_state() -> None:
    shown = figure_of(made_up_run(sustained_cells()), "sustained_{model}")
    (axes,) = shown.axes
    speeds = [line for line in axes.lines if line.get_linestyle() == "-"]
    dashed = [line for line in axes.lines if line not in speeds]
    assert [line.get_ydata()[0] for line in speeds] == [41.5, 100, 75]  # type: ignore[index]
    assert list(speeds[0].get_xdata())[-1] == 10
    # The last third of int4 is at 80; of the second int4, 75 and 76 by turns.
    assert [list(line.get_ydata()) for line in dashed] == [[41.5, 41.5], [80, 80], [75.5, 75.5]]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "FP16: 41.5 tokens/s at the end, 100% of 41.5 at first",
        "INT4: 80 tokens/s at the end, 80% of 100 at first",
        "int4-group-32: 75.5 tokens/s at the end, 99% of 76 at first",
    ]
    assert Counter(text.get_text() for text in axes.texts) == {"!": 1, "×": 9}
    assert "!: other processes used the machine in that window" in caption(shown)
    assert "×: clocks fell in that window" in caption(shown)
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("name", ["load_first_token", "load_between_tokens", "load_throughput", "goodput"])
def test_servers_under_load_have_a_readable_line_each(name: str) -> None:
    rows, _ = two_servers(SLO(ttft=0.5, itl=0.05))
    cells = [cell("quick", "server"), cell("slow", "server"), cell("awq", status="oom")]
    shown = figure_of(made_up_run([*cells, *rows]), name)
    assert_readable(shown)
    legend = shown.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["quick", "slow"]
    assert "Not shown: AWQ (oom)" in caption(shown)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "sustained_Meta-Llama-3-8B-Instruct"),
        ("llama-3-8b (random weights)", "sustained_llama-3-8b-random-weights"),
        ("a/..", "sustained_model"),
    ],
)
def test_the_sustained_figure_is_named_by_the_model(tmp_path: Path, model: str, name: str) -> None:
    paths = draw(made_up_run([cell("int4"), window("int4", 10, 5)], model=model), tmp_path)
    assert [path.name for path in paths] == [f"{name}.png", f"{name}.svg"]


def test_equal_points_are_both_named_on_the_front() -> None:
    rows = [row for label in ("int4", "nf4", "awq") for row in measured(label, label, 5, {}, 9000)]
    shown = figure_of(made_up_run(rows), "pareto")
    assert {text.get_text(): text.get_weight() for text in shown.axes[0].texts} == dict.fromkeys(
        ("INT4", "NF4", "AWQ"), "bold"
    )
    assert_readable(shown)


def test_drawing_ignores_and_keeps_the_users_settings(tmp_path: Path) -> None:
    run = made_up_run([cell("int4", peak_memory_bytes=GIB)])
    with mpl.rc_context({"font.size": 30, "text.usetex": True}):
        before = dict(mpl.rcParams)
        draw(run, tmp_path / "a")
        assert dict(mpl.rcParams) == before
    draw(run, tmp_path / "b")
    assert (tmp_path / "a" / "memory.svg").read_bytes() == (tmp_path / "b" / "memory.svg").read_bytes()


def test_import_opens_no_display_and_loads_no_torch() -> None:
    code = (
        "import sys, qbench.show.plots.files; "
        "sys.exit(bool({'torch', 'matplotlib.pyplot', 'scipy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_question_no_figure() -> None:
    assert names_of(made_up_run([cell("int4", peak_memory_bytes=GIB)])) == {"memory"}


def ways_of(axes: Axes, notes: list[Annotation]) -> list[Path2D]:
    """The lines from points to the middles of their names, in pixels."""
    ways = []
    for note in notes:
        x, y = axes.transData.transform(note.xy)
        right, up = note.xyann
        ways.append(Path2D([(x, y), (x + right * drawn.DPI / 72, y + up * drawn.DPI / 72)]))
    return ways


@pytest.mark.parametrize("name", ["pareto", "accuracy_speed"])
def test_with_eighteen_cells_lines_from_points_to_names_hardly_cross_other_names(name: str) -> None:
    """Without regard to names that were written before, three and six of them are crossed."""
    axes = figure_of(read_run(PUBLISHED / "formats-epyc-2core"), name).axes[0]
    notes = [note for note in axes.texts if isinstance(note, Annotation) and note.get_text() != "!"]
    ways, boxes = ways_of(axes, notes), [Text.get_window_extent(note) for note in notes]
    assert len(notes) == 18
    assert sum(ways[a].intersects_bbox(boxes[b]) for a, b in permutations(range(18), 2)) <= 1


def test_the_legend_of_many_lines_stands_beside_them() -> None:
    figure = figure_of(read_run(PUBLISHED / "formats-epyc-2core"), "batches")
    (axes,), (legend,) = figure.axes, [axes.get_legend() for axes in figure.axes]
    assert legend is not None
    assert len(legend.get_texts()) == 18
    box = legend.get_window_extent()
    assert axes.get_window_extent().x1 < box.x0 < box.x1 <= figure.bbox.x1
    assert box.height < figure.bbox.height


def test_lines_from_names_to_crowded_points_do_not_cross() -> None:
    """Five points in a bundle: taken by name, each line ends at its own point and meets no other."""
    figure = drawn.new_figure(8, 5)
    axes = figure.add_subplot()
    points = [(1.0, 1.0), (1.02, 0.96), (1.04, 1.0), (1.0, 0.93), (3.0, 1.1)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.margins(0.4)
    figure.draw_without_rendering()
    place_names(axes, [Name(point, f"name {i}", False) for i, point in enumerate(points)], [])
    ways = ways_of(axes, [note for note in axes.texts if isinstance(note, Annotation)])
    assert len(ways) == len(points)
    crossing = [(a, b) for a, b in combinations(range(len(ways)), 2) if ways[a].intersects_path(ways[b], filled=False)]
    assert crossing == []
