"""Energy: the kernel's counters of processors from a tree of files, NVML's faults, and what is made of the figures.

No counter is simulated where a figure would be published; what stands in for one here gives the numbers of a test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from qbench.analysis.summary import summarize
from qbench.analysis.summary_table import to_frame
from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.decide.constraints import Limits
from qbench.decide.recommend import recommend
from qbench.errors import QbenchError
from qbench.machine import energy
from qbench.machine.energy import Meter, Reading, of_gpus, of_packages
from qbench.measure import throughput
from qbench.records.rows import Row
from qbench.show.plots.charts import charts
from qbench.show.plots.shapes import BarChart
from qbench.show.recommend import Prices, lines, to_dict
from qbench.show.report import speed_tables
from qbench.show.view.data import collect
from tests.support.made_up_run import cell, made_up_run, trial
from tests.support.throughput import Script, measured
from tests.support.tiny_llama import options

RANGE_UJ = 262_143_328_850


def domain(root: Path, zone: str, name: str, microjoules: int | None, most: int = RANGE_UJ) -> Path:
    folder = root / zone
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    if microjoules is not None:
        (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Moved by hand."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_packages_are_added_and_their_parts_and_doubles_are_not(tmp_path: Path, clock: SimpleNamespace) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    parts = [
        domain(tmp_path, "intel-rapl:0:0", "core", 1), domain(tmp_path, "intel-rapl:0:1", "dram", 1),
        domain(tmp_path, "intel-rapl:2", "psys", 1), domain(tmp_path, "intel-rapl-mmio:0", "package-0", 1),
    ]  # fmt: skip
    meter = of_packages(tmp_path)
    assert meter is not None
    before = meter.read()
    first.write_text("65000000\n")
    second.write_text("17500000\n")
    for part in parts:
        part.write_text("99000000\n")
    clock.now += 2
    assert meter.joules(before, meter.read()) == pytest.approx(60 + 10.5)
    assert meter.source == "rapl"


def test_a_counter_wraps_around(tmp_path: Path, clock: SimpleNamespace) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 4_000_000)
    meter = of_packages(tmp_path)
    assert meter is not None
    before = meter.read()
    counter.write_text("6000000\n")
    clock.now += 2
    assert meter.joules(before, meter.read()) == pytest.approx(10)
    clock.now += RANGE_UJ / 1e6 / energy.MOST_PACKAGE_W
    assert meter.joules(before, meter.read()) is None, "it may have wrapped around twice"


def test_what_is_not_counted_is_empty_and_never_0(tmp_path: Path, clock: SimpleNamespace) -> None:
    assert of_packages(tmp_path / "nothing") is None
    counter = domain(tmp_path, "intel-rapl:0", "package-0", None)
    assert of_packages(tmp_path) is None, "not ours to read"
    counter.write_text("5000000\n")
    meter = of_packages(tmp_path)
    assert meter is not None
    before = meter.read()
    clock.now += 2
    assert meter.joules(before, meter.read()) is None, "it did not move"
    counter.write_text("6000000\n")
    assert meter.joules(before, Reading(100.005, (6.0,))) is None, "five milliseconds are too short for its steps"
    counter.unlink()
    assert meter.read() is None
    assert meter.joules(before, meter.read()) is None
    counter.write_text("?")
    assert of_packages(tmp_path) is None


class Driver(SimpleNamespace):
    """A driver that fails after some answers."""

    NVMLError = pynvml.NVMLError

    def __init__(self, answers: Iterator[Any]) -> None:
        super().__init__(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid, answers=answers)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        answer = next(self.answers)
        if isinstance(answer, pynvml.NVMLError):
            raise answer
        return int(answer)


def test_a_board_without_a_counter_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    monkeypatch.setitem(sys.modules, "pynvml", Driver(iter([1000, refusal])))
    assert of_gpus(["GPU-1", "GPU-2"]) is None, "half of two boards would be no figure"
    assert of_gpus([]) is None


def test_a_board_that_is_lost_has_no_energy(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> None:
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    monkeypatch.setitem(sys.modules, "pynvml", Driver(iter([0, 1000, 4500, 9000, lost])))
    meter = of_gpus(["GPU-1"])
    assert meter is not None
    before = meter.read()
    clock.now += 0.9
    assert meter.joules(before, meter.read()) is None, "too short for a counter that moves ten times a second"
    clock.now += 0.2
    assert meter.joules(before, meter.read()) == 8.0
    assert meter.joules(before, meter.read()) is None


def test_a_trial_has_its_energy_and_a_filled_cache_none(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = fp16.load(options(tiny_llama, tmp_path, torch.float32), FP16(), None)
    counts = iter([10.0, 13.5, 20.0, 24.0])
    meter = Meter("rapl", lambda: (next(counts),), shortest_s=0)
    monkeypatch.setattr(throughput, "make_meter", lambda engine: meter)
    rows = measured(loaded, Script(["ok"] * 4), tmp_path, trials=2, depths=[0, 8])
    assert [(row.depth, row.energy_j, row.energy_source) for row in rows] == [
        (0, 3.5, "rapl"), (0, 4.0, "rapl"), (8, None, None), (8, None, None),
    ]  # fmt: skip
    monkeypatch.setattr(throughput, "make_meter", lambda engine: None)
    (row,) = measured(loaded, Script(["ok"]), tmp_path, trials=1)
    assert (row.energy_j, row.energy_source) == (None, None)


def counted(label: str, joules: list[float], speed: float, source: str = "rapl") -> list[Row]:
    """A token's joules in each trial; 128 tokens a trial."""
    return [
        cell(label, peak_memory_bytes=2**30),
        *(
            trial(label, None, 1, trial=i, decode_tokens_per_s=speed, energy_j=128 * one, energy_source=source)
            for i, one in enumerate(joules)
        ),
    ]


THREE = [
    *counted("fp16", [4.0, 4.1, 3.9], 50),
    *counted("int4", [1.0, 1.1, 0.9], 100),
    *counted("nf4", [2.0, 2.1, 1.9], 120),
]


def test_the_backend_that_takes_the_least_energy_is_recommended() -> None:
    found = recommend([made_up_run(THREE)], 1, "energy", Limits())
    assert found.pick is not None
    assert (found.pick.named.name, found.pick.tied) == ("INT4", (found.pick.named,))
    text = "\n".join(lines(found))
    assert "the most economical of 3: 0.50×" in text
    assert "the energy a token of NF4" in text
    assert "1 J a token" in text
    assert to_dict(found)["recommended"]["joules_per_token"] == pytest.approx(1)
    json.dumps(to_dict(found), allow_nan=False)


def test_energies_that_chance_does_not_separate_are_tied_and_left_open() -> None:
    rows = [*counted("int4", [1.0, 1.5, 0.7], 100), *counted("nf4", [1.1, 0.8, 1.4], 120)]
    found = recommend([made_up_run(rows)], 1, "energy", Limits())
    assert found.pick is not None
    assert len(found.pick.tied) == 2
    named = found.pick.named
    assert [one.what for one in found.doubts] == (["energy"] if named is not found.pick.leader else [])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([cell("int4"), trial("int4", None, 1, decode_tokens_per_s=1.0)], "no counter of energy was read at batch 1"),
        ([*counted("int4", [1.0], 9, "nvml"), *counted("fp16", [1.0], 9)], "read the counters nvml and rapl"),
    ],
)
def test_energies_that_are_not_there_or_of_other_things_are_not_compared(rows: list[Row], words: str) -> None:
    with pytest.raises(QbenchError, match=words):
        recommend([made_up_run(rows)], 1, "energy", Limits())


def test_energy_is_drawn_and_tabled_where_it_was_counted() -> None:
    uncounted = [cell("awq"), trial("awq", None, 1, decode_tokens_per_s=80.0)]
    run = made_up_run([*THREE, *uncounted], batch_sizes=[1])
    assert summarize(run).cells[1].at(1).joules_per_token == pytest.approx(1)
    column = to_frame(summarize(run))["joules_per_token_b1"]
    assert column.isna().tolist() == [False, False, False, True]
    report = collect(run)
    chart = {kind.key: chart for kind, chart in charts(report)}["energy"]
    assert isinstance(chart, BarChart)
    assert [bar.value for bar in chart.panels[0].bars] == [pytest.approx(4), pytest.approx(1), pytest.approx(2), None]
    assert "energy of the processors' packages, by RAPL's counter" in chart.details
    table = speed_tables.speeds([report])
    assert table is not None
    place = [column.title for column in table.columns].index("energy a token")
    assert [row.fields[place].text for row in table.rows] == ["4 J", "1 J", "2 J", "–"]
    plain = collect(made_up_run(uncounted, batch_sizes=[1]))
    assert "energy" not in [kind.key for kind, _ in charts(plain)]


def test_electricity_is_priced_by_the_joules_of_a_token() -> None:
    """1 J a token is 10⁶ J, 0.2778 kWh, for a million tokens: at 0.36 a kWh that costs 0.1."""
    uncounted = [cell("awq"), trial("awq", None, 1, decode_tokens_per_s=80.0)]
    run = made_up_run([*THREE, *uncounted], batch_sizes=[1])
    found, prices = recommend([run], 1, "energy", Limits()), Prices(per_kwh=0.36)
    named, second = (to_dict(found, prices)[key] for key in ("recommended", "runner_up"))
    assert (named["label"], named["electricity_per_million_tokens"]) == ("int4", pytest.approx(0.1))
    assert (second["label"], second["electricity_per_million_tokens"]) == ("nf4", pytest.approx(0.2))
    assert named["cost_per_million_tokens"] is None
    assert "0.1 for the electricity of a million tokens" in "\n".join(lines(found, prices))
    assert to_dict(found)["recommended"]["electricity_per_million_tokens"] is None
    assert "electricity" not in "\n".join(lines(found))
    fastest = recommend([made_up_run(uncounted, batch_sizes=[1])], 1, "speed", Limits())
    assert to_dict(fastest, prices)["recommended"]["electricity_per_million_tokens"] is None, "not counted is not free"
    assert "electricity" not in "\n".join(lines(fastest, prices))


def test_the_report_prices_electricity_where_energy_was_counted() -> None:
    uncounted = [cell("awq"), trial("awq", None, 1, decode_tokens_per_s=80.0)]
    run = made_up_run([*THREE, *uncounted], batch_sizes=[1])
    priced, plain = (speed_tables.speeds([collect(run, electricity=price)]) for price in (0.36, None))
    assert priced is not None
    assert plain is not None
    place = [column.title for column in priced.columns].index("electricity, a million tokens")
    assert [row.fields[place].text for row in priced.rows] == ["0.4", "0.1", "0.2", "–"]
    assert priced.rows[3].fields[place].value is None
    assert [len(row.fields) for row in priced.rows] == [len(priced.columns)] * 4
    assert "electricity, a million tokens" not in [column.title for column in plain.columns]
