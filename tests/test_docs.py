"""The documentation: its commands parse, its links lead somewhere, and its figures are those of the published files."""

import json
import re
import shlex
import statistics
from itertools import pairwise, product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from qbench.analysis.between_starts import variance_share
from qbench.cli.app import app
from qbench.config import load
from qbench.records.run import read_run
from qbench.show.card import read_generations
from qbench.show.view import data

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "results" / "published"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^(?: {4}|\t)(.*)$", re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELLS = ("sh", "bash", "console", "shell")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> list[list[str]]:
    """The words of every command of qbench and make in a page: in blocks of shell, and in the text."""
    blocks = [body for language, body in FENCED.findall(text) if language in SHELLS]
    plain = FENCED.sub("", text)
    blocks += ["\n".join(INDENTED.findall(plain)), *SPAN.findall(plain)]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(part, comments=True) for line in lines for part in line.split("&&") if starts(part)]
    # A name alone, as in «make» or «qbench», is no command.
    return [words for words in found if len(words) > 1]


def starts(line: str) -> bool:
    return line.strip().startswith(("qbench ", "make "))


def of(program: str, naming: str = "") -> list[object]:
    """The arguments of every command of a program, or of those that name something."""
    return [
        pytest.param(words[1:], id=f"{page_name(page)}: {' '.join(words)}")
        for page in PAGES
        for words in commands(page.read_text(encoding="utf-8"))
        if words[0] == program and any(word.startswith(naming) for word in words[1:])
    ]


def test_commands_are_found_in_every_kind_of_block() -> None:
    text = "a `qbench run A` b\n\n    make x   # why\n\n"
    text += "```sh\n$ qbench plot \\\n  B && qbench y z\n```\n\n```python\nmake no\n```\n"
    assert commands(text) == [["qbench", "plot", "B"], ["qbench", "y", "z"], ["make", "x"], ["qbench", "run", "A"]]


@pytest.mark.parametrize("words", of("qbench"))
def test_a_command_has_the_options_that_are_shown(words: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("words", of("qbench", "configs/"))
def test_a_shipped_configuration_is_valid_with_what_a_command_sets(words: list[str]) -> None:
    path = next(word for word in words if word.startswith("configs/"))
    load.load(ROOT / path, [value for option, value in pairwise(words) if option == "--set"])


@pytest.mark.parametrize("words", of("make"))
def test_a_target_of_make_exists(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    links = LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    files = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert [file for file in files if not (page.parent / file).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=page_name)
def test_files_of_the_package_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:qbench|tests|benchmarks|examples|configs)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/-]+\.md", str(settings["nav"]))
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:])
    assert settings["strict"] is True


def rows_of(page: str) -> list[list[str]]:
    """The cells of every line of a table in a page of docs/."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def short(value: float) -> str:
    """Three digits."""
    return f"{value:#.3g}".rstrip(".")


def square(products: pd.DataFrame, sizes: tuple[int, ...]) -> pd.DataFrame:
    """The rows of some batch sizes of the weight of 4096 x 4096."""
    layer = (products["out_features"] == 4096) & (products["in_features"] == 4096)
    return products[layer & products["batch"].isin(sizes)]


def test_the_post_s_speeds_are_those_of_the_run() -> None:
    trials = pd.read_csv(RESULTS / "tinyllama-shape-xeon-2core" / "throughput.csv")
    columns = ["decode_tokens_per_s", "ttft_s"]
    medians = trials.groupby(["label", "batch_size"])[columns].median()
    speeds, waits = medians["decode_tokens_per_s"], medians["ttft_s"]
    rows = rows_of("post.md")
    for label in ("fp16", "int4", "nf4", "awq", "gptq"):
        ratios = [speeds[label, size] / speeds["fp16", size] for size in (1, 8, 32)]
        shown = ["1" if label == "fp16" else f"{ratio:.2f}" for ratio in ratios]
        pairs = [(short(speeds[label, size]), ratio) for size, ratio in zip((1, 8, 32), shown, strict=True)]
        assert [label.upper(), *(cell for pair in pairs for cell in pair)] in rows
        assert [label.upper(), *(short(waits[label, size]) for size in (1, 8, 32))] in rows


def test_the_post_s_layers_are_those_of_the_benchmark() -> None:
    layers = pd.read_csv(RESULTS / "bench-xeon-2core" / "linears.csv")
    blocks = 22e3 * layers.groupby(["backend", "batch"])["seconds"].sum()
    rows = rows_of("post.md")
    for backend in ("fp16", "int4", "nf4", "awq", "gptq"):
        assert [backend.upper(), *(f"{blocks[backend, size]:.1f}" for size in (1, 8, 32))] in rows


def test_the_post_s_rates_follow_from_the_benchmark() -> None:
    products = pd.read_csv(RESULTS / "bench-xeon-2core" / "int4_linear.csv")
    rows = rows_of("post.md")
    for _, row in square(products, (1, 2, 4, 8, 16, 32, 128, 2048)).iterrows():
        work = 2 * 4096 * 4096 * row["batch"] / 1e9
        wide, narrow = row["bfloat16_s"], row["aten_s"]
        read = 2 * 4096 * 4096 / wide / 1e9
        cells = [f"{row['batch']:,.0f}", f"{1e3 * wide:.2f}", f"{read:.1f}", f"{work / wide:,.0f}"]
        shown = [*cells, f"{1e3 * narrow:.2f}", f"{work / narrow:.0f}"]
        assert shown in rows
    for (out_features, in_features), shape in products.groupby(["out_features", "in_features"]):
        shape = shape.set_index("batch")
        speeds = [f"{shape['vs_bfloat16'][size]:.2f}" for size in (1, 8, 32, 128, 512, 2048)]
        assert [f"{out_features} × {in_features}", *speeds] in rows
        weights = out_features * in_features / 1e9
        rate = statistics.median(2 * weights * size / shape["aten_s"][size] for size in shape.index if size >= 8)
        bandwidth = 2 * weights / shape["bfloat16_s"][4]
        shown = [f"{out_features} × {in_features}", f"{rate:.0f}", f"{bandwidth:.1f}", f"{rate / bandwidth:.1f}"]
        assert shown in [row[:4] for row in rows]


def test_the_figures_of_int4_are_those_of_the_benchmark() -> None:
    products = pd.read_csv(RESULTS / "bench-xeon-2core" / "int4_linear.csv")
    errors = pd.read_csv(RESULTS / "bench-xeon-2core" / "int4_gaussian_error.csv")
    texts = pd.read_csv(RESULTS / "bench-xeon-2core" / "int4_perplexity.csv").set_index("cell")
    rows = rows_of("int4.md")
    for _, row in square(products, (1, 8, 32, 512, 2048)).iterrows():
        quartiles = [
            f"{row[name]:.2f} [{row[f'{name}_q1']:.2f}, {row[f'{name}_q3']:.2f}]" for name in ("vs_aten", "vs_bfloat16")
        ]
        shown = [f"{row['batch']:,.0f}", *quartiles, f"{row['of_read_bandwidth']:.0%}".replace("%", " %")]
        assert shown in rows
    gaussian = errors[(errors["bits"] == 4) & ~errors["symmetric"]].set_index(["group_size", "search"])
    error = gaussian["relative_squared_error"]
    for size, name in ((32, "32"), (64, "64"), (128, "128"), (-1, "row of 1,024")):
        shares = [f"{100 * error[size, search]:.2f} %" for search in ("none", "mse")]
        assert [name, f"{gaussian['bits_per_weight'][size, 'none']:.2f}", *shares] in rows
        cells = [texts.loc[f"int4 g{size} {search}"] for search in ("none", "mse")]
        divergences = [f"{1e3 * cell['kl']:.2f} ± {1e3 * cell['kl_error']:.2f}" for cell in cells]
        assert [name.split()[0], *divergences, *(f"{cell['perplexity']:.4f}" for cell in cells)] in rows


def test_the_figures_of_int4_on_a_gpu_are_those_of_the_benchmark() -> None:
    folder = RESULTS / "int4-linears-h100"
    rows = rows_of("int4.md")
    for _, row in pd.read_csv(folder / "blocks.csv").iterrows():
        times = [row[f"{name}_us"] for name in ("int4", "cublas", "dequantize", "tinygemm")]
        shown = ["–" if pd.isna(time) else f"{time:.0f}" for time in times]
        assert [f"{row['rows']:.0f}", *shown, f"{row['vs_cublas']:.1f}×"] in rows
    products = pd.read_csv(folder / "products.csv")
    ours = products[(products["linear"] == "gate_up") & (products["rows"] == 1) & products["relative_error"].notna()]
    microseconds = ours["us"].min()
    copied = pd.read_csv(folder / "bandwidth.csv")["copy_bytes_per_s"].item()
    size = 28672 * 4096 * 4.25 / 8  # codes of 4 bits, scale and offset of 16 for 128 of them
    text = " ".join((ROOT / "docs" / "int4.md").read_text(encoding="utf-8").split())
    rates = f"{size / microseconds / 1e6:.1f} TB/s, where a copy moves {copied / 1e12:.1f}"
    assert f"takes {microseconds:.0f} µs for {size / 1e6:.0f} MB, {rates}" in text


def test_the_table_of_calibrated_int4_is_that_of_its_run() -> None:
    folder = RESULTS / "int4-calibrated-epyc-2core"
    cells, texts = (pd.read_csv(folder / f"{name}.csv").set_index("label") for name in ("cells", "perplexity"))
    rows = rows_of("int4.md")
    for label in ("int4-g128", "int4-calibrated", "nf4", "gptq"):
        text = texts.loc[label]
        assert [
            label, f"{cells.loc[label, 'effective_bits_per_weight']:.2f}",
            f"{1e3 * text['kl_mean']:.2f} ± {1e3 * text['kl_stderr']:.2f}", f"{100 * text['top1_agreement']:.2f} %",
            f"{text['perplexity']:.4f}",
        ] in rows  # fmt: skip
    page = (ROOT / "docs" / "int4.md").read_text(encoding="utf-8")
    seconds = (f"{cells.loc[label, 'quantize_s']:.0f} s" for label in ("int4-calibrated", "gptq"))
    assert "Quantizing took {}, and GPTQ's {}".format(*seconds) in page
    assert f"16 bit has a perplexity of {texts.loc['fp16', 'perplexity']:.4f}" in page


def test_the_tables_of_int4_on_avx2_are_those_of_their_runs() -> None:
    products = pd.read_csv(RESULTS / "int4-linears-epyc-2core" / "int4_linear.csv")
    rows = rows_of("int4.md")
    for _, row in square(products, (1, 2, 8, 32, 128)).iterrows():
        ratios = [
            f"{row[name]:.2f} [{row[f'{name}_q1']:.2f}, {row[f'{name}_q3']:.2f}]"
            for name in ("vs_aten", "vs_bfloat16", "vs_float32")
        ]
        assert [str(row["batch"]), *ratios, f"{row['of_read_bandwidth']:.0%}".replace("%", " %")] in rows


def test_the_table_of_int4_on_avx512_is_that_of_its_run() -> None:
    products = pd.read_csv(RESULTS / "int4-linears-zen4-2core" / "int4_linear.csv")
    rows, places = rows_of("int4.md"), ["batch", "activations"]
    measured = square(products, (1, 2, 8, 32, 128, 512)).set_index(places, drop=False)
    for batch in measured["batch"].unique():
        found = [
            "{:.2f} [{:.2f}, {:.2f}]".format(*(measured.loc[(batch, dtype), name + end] for end in ("", "_q1", "_q3")))
            for dtype, name in (("bfloat16", "vs_aten"), ("bfloat16", "vs_bfloat16"), ("float32", "vs_float32"))
        ]
        of_memory = f"{measured.loc[(batch, 'bfloat16'), 'of_read_bandwidth']:.0%}".replace("%", " %")
        assert [str(batch), *found, of_memory] in rows


@pytest.mark.parametrize("machine", ["epyc-2core", "zen4-2core"])
def test_int4_and_llama_cpp_are_compared_as_they_were_measured(machine: str) -> None:
    rows = rows_of("int4.md")
    trials = pd.read_csv(RESULTS / f"llamacpp-shape-{machine}" / "throughput.csv")
    speeds = trials.groupby(["label", "batch_size"]).median(numeric_only=True)
    places = [(key, size) for key in ("decode_tokens_per_s", "prefill_tokens_per_s") for size in (1, 8, 32)]
    for label, name in (("int4", "INT4"), ("gguf", "Q4_0")):
        assert [name, *(f"{speeds[key][label, size]:.1f}" for key, size in places)] in rows
    ratios = [f"{speeds[key]['int4', size] / speeds[key]['gguf', size]:.2f}" for key, size in places]
    assert ["INT4 ÷ Q4_0", *ratios] in rows


def test_how_far_processes_of_int4_were_apart_is_said() -> None:
    trials = pd.read_csv(RESULTS / "llamacpp-shape-zen4-2core" / "throughput.csv")
    ones = trials[(trials["label"] == "int4") & (trials["batch_size"] == 1)]
    of_starts = ones.groupby("start")["decode_tokens_per_s"].median()
    page = " ".join((ROOT / "docs" / "int4.md").read_text(encoding="utf-8").split())
    assert f"the three processes of INT4 gave {of_starts.min():.0f} to {of_starts.max():.0f} tokens/s" in page


def test_the_table_of_decode_modes_is_that_of_its_run() -> None:
    steps = pd.read_csv(RESULTS / "decode-step-epyc-2core" / "decode_step.csv").set_index(["label", "batch", "mode"])
    rows = rows_of("method.md")
    for label, batch in product(("fp16", "int4"), (1, 8, 32)):
        ratios = [
            "{vs_stock:.2f} [{vs_stock_q1:.2f}, {vs_stock_q3:.2f}]".format(**steps.loc[label, batch, mode])
            for mode in ("eager", "compiled")
        ]
        step, compiled = steps["step_ms"][label, batch, "stock"], steps["compile_s"][label, batch, "compiled"]
        assert [label, str(batch), f"{step:,.1f}", *ratios, f"{compiled:.0f}"] in rows


def test_the_comparison_with_guidellm_is_that_of_its_file() -> None:
    measured = pd.read_csv(RESULTS / "load-peers-epyc-2core" / "load_peers.csv").set_index(["concurrency", "figure"])
    rows, figures = rows_of("load.md"), ("requests_per_s", "ttft_s", "latency_s")
    for level in (1, 8):
        assert [str(level), *(f"{measured['ratio'][level, figure]:.2f}" for figure in figures)] in rows
    eight = measured.loc[8]
    page = " ".join((ROOT / "docs" / "load.md").read_text(encoding="utf-8").split())
    by_latency = {tool: 8 / eight.loc["latency_s", tool] for tool in ("guidellm", "qbench")}
    counted = eight.loc["requests_per_s"]
    assert "give {:.2f} requests/s, and it reports {:.2f}".format(by_latency["guidellm"], counted["guidellm"]) in page
    assert "for qbench these are {:.2f} and {:.2f}".format(by_latency["qbench"], counted["qbench"]) in page


FORMATS = {
    "`fp16`": ("fp16", "fp16"),
    "`int4`": ("int4-g128", "int4"),
    "`int4`, `calibrated: true`": ("int4-calibrated", None),
    "`int4`, `bits: 3`, `calibrated: true`": ("int3-calibrated", "int3"),
    "`nf4`": ("nf4", "nf4"),
    "`awq`": ("awq", "awq"),
    "`gptq`": ("gptq", "gptq"),
    "`int8`": ("int8", "int8"),
    "`torchao`": ("torchao-int8", "torchao-int8"),
    "`hqq`": ("hqq", "hqq"),
    "`quanto`": ("quanto-int8", "quanto-int8"),
    "`gguf`, `quant: Q8_0`": ("gguf-Q8_0", "gguf-Q8_0"),
    "`gguf`, `quant: Q4_K_M`": ("gguf-Q4_K_M", "gguf-Q4_K_M"),
    "`gguf`, `quant: Q4_0`": ("gguf-Q4_0", "gguf-Q4_0"),
}
"""Cells of the demo model and of TinyLlama's shape, by the words of the README."""


def speeds_of(cell: pd.Series) -> list[str]:
    """Tokens/s at batch 1 and 8, in three digits and with a mark where they cannot be relied upon."""
    shown = []
    for size in (1, 8):
        rate = cell[f"decode_tokens_per_s_b{size}"]
        mark = "" if cell[f"validity_b{size}"] == "ok" else " !"
        shown.append((short(rate) if rate < 100 else f"{rate:,.0f}") + mark)
    return shown


def test_the_tables_of_formats_are_those_of_their_runs() -> None:
    names = ("summary", "cells", "perplexity")
    demo, big = (RESULTS / f"{name}-epyc-2core" for name in ("formats", "formats-1b"))
    summary, cells, texts = (pd.read_csv(demo / f"{name}.csv").set_index("label") for name in names)
    rows = rows_of("formats.md")
    for label, cell in cells.iterrows():
        one, text = summary.loc[label], texts.loc[label]
        low, high = (100 * one[f"mmlu_ci_{end}"] for end in ("low", "high"))
        assert [
            label, " ".join(cell["kernel"].split()[:2]), f"{cell['effective_bits_per_weight']:.2f}",
            "–" if label == "fp16" else f"{1e3 * text['kl_mean']:.2f} ± {1e3 * text['kl_stderr']:.2f}",
            f"{text['perplexity']:.4f}", f"{100 * one['mmlu']:.1f} [{low:.1f}, {high:.1f}]",
            f"{cell['peak_memory_bytes'] / 2**20:.1f} MiB", *speeds_of(one),
        ] in rows  # fmt: skip
    prefill = pd.read_csv(big / "throughput.csv").groupby(["label", "batch_size"])["prefill_tokens_per_s"].median()
    big_summary, big_cells = (pd.read_csv(big / f"{name}.csv").set_index("label") for name in names[:2])
    shapes = {
        label: [f"{cell['peak_memory_bytes'] / 2**30:.2f} GiB", *speeds_of(big_summary.loc[label])]
        for label, cell in big_cells.iterrows()
    }
    for label, shown in shapes.items():
        bits = f"{big_cells.loc[label, 'effective_bits_per_weight']:.2f}"
        assert [label, bits, *shown, *(f"{prefill[label, size]:.0f}" for size in (1, 8))] in rows
    figures = {cell[0]: cell[2:] for cell in rows_of("../README.md")}
    for name, (small, large) in FORMATS.items():
        divergence = "–" if small == "fp16" else f"{1e3 * texts.loc[small, 'kl_mean']:.2f}"
        bits = f"{cells.loc[small, 'effective_bits_per_weight']:.2f}"
        assert figures[name] == [bits, divergence, *(shapes[large] if large else ["–"] * 3)]


def test_what_http_costs_is_what_the_run_of_servers_says() -> None:
    run = read_run(RESULTS / "servers-epyc-2core")
    trials = pd.read_csv(run.folder / "throughput.csv")
    speeds = trials.groupby(["label", "batch_size"])["decode_tokens_per_s"].median()
    texts = {row.label: row.text for row in read_generations(run.folder)}
    rows = rows_of("servers.md")
    pairs = {
        "llama.cpp, Q8_0": ("gguf-Q8_0", "llama-server-Q8_0"),
        "INT4 by `qbench serve`": ("int4", "qbench-serve-int4"),
    }
    for name, pair in pairs.items():
        assert [name, *(f"{1000 * size / speeds[label, size]:.2f}" for size in (1, 8) for label in pair)] in rows
        engine, server = pair
        assert run.answers[server] == run.answers[engine]
        assert texts[server] == texts[engine]


def test_the_table_of_quantized_caches_is_that_of_its_run() -> None:
    folder = RESULTS / "kv-cache-accuracy-epyc-2core"
    texts = pd.read_csv(folder / "perplexity.csv").set_index("label")
    right = pd.read_csv(folder / "accuracy.csv").groupby(["label", "task"])["correct"].sum()
    rows = rows_of("method.md")
    for label, text in texts.iterrows():
        divergence = "–" if label == "fp16" else f"{1e3 * text['kl_mean']:.4f} ± {1e3 * text['kl_stderr']:.4f}"
        counts = [f"{right[label, task]:,}" for task in ("mmlu", "demo_qa")]
        assert [label, *counts, f"{text['perplexity']:.4f}", divergence] in rows
    verdicts = pd.read_csv(folder / "summary.csv")["mmlu_verdict"].dropna()
    assert len(verdicts) == 4
    assert set(verdicts) == {"no_worse"}


def test_the_share_of_variance_between_starts_is_that_of_the_run() -> None:
    trials = pd.read_csv(RESULTS / "context-epyc-2core" / "throughput.csv")
    found = [
        variance_share([list(one["decode_tokens_per_s"]) for _, one in cell.groupby("start")])
        for _, cell in trials.groupby(["label", "batch_size", "depth"])
    ]
    shares, between, within = ([getattr(one, name) for one in found if one] for name in ("share", "between", "within"))
    median = statistics.median
    text = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
    assert f"the median of {len(shares)} estimates of the share is {median(shares):.2f}" in text
    assert f"from {min(shares):.2f} to {max(shares):.2f}. Starts of a cell" in text
    assert f"were then {100 * median(between):.0f} % apart" in text
    assert f"trials of a start {100 * median(within):.0f} %" in text
    summary = pd.read_csv(RESULTS / "context-epyc-2core" / "summary.csv").set_index("label").loc["int4"]
    widest = max(summary["speedup_b1_high"] / summary["speedup_b1"], summary["speedup_b1"] / summary["speedup_b1_low"])
    assert f"intervals of ±{100 * (widest - 1):.0f} % at batch 1" in text


def test_the_readme_s_figures_of_a_gpu_are_those_of_its_run() -> None:
    folder = RESULTS / "llama3-8b-shape-h100"
    speeds = pd.read_csv(folder / "throughput.csv").groupby(["label", "batch_size"])["decode_tokens_per_s"].median()
    peaks = pd.read_csv(folder / "cells.csv").set_index("label")["peak_memory_bytes"] / 2**30
    one, eight, many = (f"{speeds['int4', size] / speeds['fp16', size]:.2f}" for size in (1, 8, 32))
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{one}, {eight} and {many} times as fast as FP16 at batch 1, 8 and 32" in text
    assert f"peaks at {peaks['int4']:.2f} instead of {peaks['fp16']:.2f} GiB" in text


@pytest.mark.parametrize("table", sorted(RESULTS.glob("*/*.csv")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_published_table_has_the_record_of_its_run(table: Path) -> None:
    """A run keeps run.json, a benchmark <script>.run.json."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in table.parent.glob("*run.json")]
    assert records
    for record in records:
        assert record["command"]
        assert record["environment"]["versions"]["torch"]


def test_the_table_of_the_readme_is_that_of_the_smoke_run() -> None:
    folder = RESULTS / "smoke-xeon-2core"
    names = ("summary", "cells", "perplexity")
    summary, cells, texts = (pd.read_csv(folder / f"{name}.csv").set_index("label") for name in names)
    rows = rows_of("../README.md")
    for label in ("fp16", "int4", "nf4", "awq", "gptq"):
        one, cell, text = summary.loc[label], cells.loc[label], texts.loc[label]
        marks = ["" if one[f"validity_b{size}"] == "ok" else " !" for size in (1, 8, 32)]
        speeds = [
            f"{one[f'decode_tokens_per_s_b{size}']:,.0f}{mark}" for size, mark in zip((1, 8, 32), marks, strict=True)
        ]
        low, high = (100 * one[f"mmlu_ci_{end}"] for end in ("low", "high"))
        assert [
            label.upper(), cell["kernel"], f"{cell['effective_bits_per_weight']:.2f}",
            f"{cell['peak_memory_bytes'] / 2**20:.1f} MiB", *speeds, f"{100 * one['mmlu']:.1f} [{low:.1f}, {high:.1f}]",
            f"{text['perplexity']:.3f}", "–" if label == "fp16" else f"{1e3 * text['kl_mean']:.2f}",
        ] in rows  # fmt: skip


def test_what_the_readme_lets_recommend_say_is_what_it_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = (words for words in commands(readme) if words[:2] == ["qbench", "recommend"])
    done = CliRunner().invoke(app, [command[1], str(RESULTS / "smoke-xeon-2core"), *command[3:]])
    shown = "".join(f"    {line}\n" for line in done.output.splitlines())
    assert shown in readme


def test_the_readme_s_speeds_are_those_of_tinyllama_s_shape() -> None:
    trials = pd.read_csv(RESULTS / "tinyllama-shape-xeon-2core" / "throughput.csv")
    speeds = trials.groupby(["label", "batch_size"])["decode_tokens_per_s"].median()
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for label in ("int4", "awq", "gptq", "nf4"):
        assert f"{label.upper()} {', '.join(short(speeds[label, size]) for size in (1, 8, 32))}" in text


def test_the_figures_of_a_quantized_cache_are_those_of_its_runs() -> None:
    rows = rows_of("method.md")
    for kind, name in (("16bit", "16 bit"), ("int8", "8 bit"), ("int4", "4 bit")):
        trials = pd.read_csv(RESULTS / f"kv-cache-{kind}-xeon-2core" / "throughput.csv")
        summary = pd.read_csv(RESULTS / f"kv-cache-{kind}-xeon-2core" / "summary.csv").iloc[0]
        assert set(trials["kv_cache"]) == {kind}
        large = trials[trials["batch_size"] == 8]
        speeds = [
            f"{summary[f'decode_tokens_per_s_b{size}']:.1f}{'' if summary[f'validity_b{size}'] == 'ok' else ' !'}"
            for size in (1, 8)
        ]
        peak = f"{large['peak_memory_bytes'].max() / 2**20:,.0f} MiB"
        assert [name, peak, *speeds, f"{large['ttft_s'].median():.0f} s"] in rows


def test_the_example_of_a_decode_step_is_that_of_its_run() -> None:
    found = data.collect(read_run(RESULTS / "tinyllama-shape-xeon-2core"))
    steps = {(cell.label, speed.batch_size): speed.step for cell in found.cells for speed in cell.speeds if speed.step}
    large = steps["int4", 32]
    assert large.limit_s
    times = {key: f"{step.times_limit:.1f}" for key, step in steps.items()}
    text = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
    assert large.cache_bytes == 32 * 136 * 22 * 2**10
    assert f"32 × 136 × 22 KiB = {large.cache_bytes / 2**20:.1f} MiB" in text
    assert f"INT4's {large.weight_bytes / 2**20:.0f} MiB of weights, that takes {1e3 * large.limit_s:.1f} ms at" in text
    assert f"ms at {large.bytes_per_s / 1e9:.1f} GB/s. The step took {1e3 * large.seconds:.0f} ms, " in text
    assert f"{times['int4', 32]} times as long; at batch 1, {times['int4', 1]} times" in text
    assert f"FP16 took {times['fp16', 1]} times its limit at batch 1, and {times['fp16', 32]} times at" in text
