"""What is made of requests: percentiles, goodput and the highest rate, worked out by hand and against scipy."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from qbench.analysis import load as figures
from qbench.config import SLO, LoadConfig
from qbench.config.load import check
from qbench.config.requests import Lognormal, Uniform, read_requests
from qbench.errors import QbenchError
from qbench.measure.load.requests import arrivals, generator, lengths, make
from qbench.measure.load.search import PRECISION, Search
from qbench.records import requests
from qbench.records.rows import LoadRow, RequestRow
from tests.support.load_rows import request

SLO_HALF = SLO(ttft=0.5, itl=0.1)


def six() -> list[RequestRow]:
    """The window is 1 s to 5 s. Three of the four counted are answered, two of them within the objective."""
    return [
        request(0, "warmup", 0.0, 2.0, tokens=5, ttft=0.2, itl=0.1),
        request(1, "counted", 1.0, 2.5, tokens=11, ttft=0.3, itl=0.05),
        request(2, "counted", 2.0, 3.5, tokens=11, ttft=0.4, itl=0.1),
        request(3, "counted", 3.0, 4.0, tokens=2, ttft=0.6, itl=0.05),
        request(4, "counted", 3.5, 5.0, error="timeout"),
        request(5, "tail", 4.0, 5.0, error="cut"),
    ]


def test_figures_of_six_requests_by_hand() -> None:
    found = figures.figures(six(), SLO_HALF, closed=True)
    assert (found["requests"], found["answered"], found["errors"]) == (4, 3, "timeout 1")
    assert found["window_s"] == 4
    # In 1…5 s: half of the warm-up, with 5 tokens; three counted ones with 11 + 11 + 2; and of the one that was cut off
    # 1 s of a mean 4/3, for three in four were answered.
    assert found["requests_per_s"] == pytest.approx((0.5 + 3 + 0.75 * 0.75) / 4)
    assert found["output_tokens_per_s"] == pytest.approx((2.5 + 24 + 0.75 * 0.75) / 4)
    # Seconds under way in the window: 1 + 1.5 + 1.5 + 1 + 1.5 + 1.
    assert found["in_flight_mean"] == pytest.approx(7.5 / 4)
    # TTFT 0.3, 0.4, 0.6: the median is the second; p90 lies at position 1.8.
    assert found["ttft_p50_s"] == pytest.approx(0.4)
    assert found["ttft_p90_s"] == pytest.approx(0.4 + 0.8 * 0.2)
    assert found["e2e_p50_s"] == pytest.approx(1.5)
    # 10 gaps of 0.05, 10 of 0.1 and one of 0.05.
    assert found["itl_p50_s"] == pytest.approx(0.05)
    assert found["itl_p99_s"] == pytest.approx(0.1)
    assert (found["met"], found["attainment"]) == (2, 0.5)
    # Half of the warm-up and two of the counted ones kept the objective, and two in three of those that were answered.
    assert found["goodput_per_s"] == pytest.approx((0.5 + 2 + 0.75 * 0.75 * 2 / 3) / 4)
    assert found["goodput_low_per_s"] is None


@pytest.mark.parametrize("apart", [0.0, 0.125])
def test_a_closed_loop_is_as_fast_as_its_requests_whether_or_not_they_end_together(apart: float) -> None:
    """Eight at a time, a second each: eight a second (J. D. C. Little, Operations Research 9, 1961)."""
    phases = ["warmup"] * 8 + ["counted"] * 64 + ["tail"] * 8
    sent = sorted((turn + place * apart, turn) for turn in range(10) for place in range(8))
    end = max(moment + 1 for (moment, _), phase in zip(sent, phases, strict=True) if phase == "counted")
    rows = [
        request(i, phase, moment, moment + 1, tokens=16)
        if phase != "tail"
        else request(i, phase, moment, end, error="cut", asked_tokens=16)
        for i, ((moment, _), phase) in enumerate(zip(sent, phases, strict=True))
    ]
    found = figures.figures(rows, closed=True)
    assert found["requests_per_s"] == pytest.approx(8)
    assert found["output_tokens_per_s"] == pytest.approx(8 * 16)
    assert found["in_flight_mean"] == pytest.approx(8)


def test_requests_that_wait_in_a_queue_that_grows_are_not_work() -> None:
    """One place, 1 s a request, 10 a second sent: one a second is answered, however many wait at the end."""
    counted = [request(i, "counted", 0.1 * i, i + 1, tokens=4) for i in range(20)]
    waiting = [request(20 + i, "tail", 2 + 0.1 * i, 20, error="cut") for i in range(20)]
    assert figures.figures([*counted, *waiting], closed=False)["requests_per_s"] == pytest.approx(1)


def test_percentiles_and_intervals_agree_with_numpy_and_scipy() -> None:
    random = np.random.default_rng(1)
    waits = random.lognormal(-1, 0.5, size=200)
    rows = [request(i, "counted", 0.1 * i, 0.1 * i + 3, tokens=3, ttft=float(wait)) for i, wait in enumerate(waits)]
    found = figures.figures(rows, SLO(ttft=0.5), closed=False)
    for percent in figures.PERCENTILES:
        assert found[f"ttft_p{percent}_s"] == pytest.approx(np.percentile(waits, percent), abs=1e-6)
    low, high = found["ttft_p95_low_s"], found["ttft_p95_high_s"]
    assert low < found["ttft_p95_s"] < high
    # Between the order statistics whose ranks are the binomial's 2.5 and 97.5 % points.
    ranks = stats.binom.ppf([0.025, 0.975], 200, 0.95)
    assert np.sort(waits)[int(ranks[0]) - 2] <= low + 1e-6
    assert high - 1e-6 <= np.sort(waits)[int(ranks[1]) + 1]
    met = int((waits <= 0.5).sum())
    exact = stats.binomtest(met, 200).proportion_ci(method="exact")
    assert found["met"] == met
    assert (found["attainment_low"], found["attainment_high"]) == pytest.approx((exact.low, exact.high))


def test_the_interval_of_goodput_is_students_over_slices() -> None:
    """40 requests that end evenly in 20 s, of which those of the last half keep nothing."""
    rows = [request(i, "counted", 0.0, 0.5 * (i + 1), tokens=2, ttft=0.1 if i < 20 else 0.9) for i in range(40)]
    found = figures.goodput(rows, SLO(ttft=0.5), closed=True)
    assert found.per_s == pytest.approx(1)
    # Slices of 2 s: an end on a border belongs to the slice that begins there.
    assert found.slices == pytest.approx([1.5, 2, 2, 2, 2, 0.5, 0, 0, 0, 0])
    low, high = found.interval or (0, 0)
    expected = stats.t.interval(0.95, 9, loc=np.mean(found.slices), scale=stats.sem(found.slices))
    assert (low, high) == pytest.approx((max(0, expected[0]), expected[1]))


def test_a_level_of_errors_has_counts_and_no_figures() -> None:
    rows = [request(i, "counted", i, i + 1, error="http_500") for i in range(3)]
    found = figures.figures(rows, SLO_HALF, closed=True)
    assert (found["answered"], found["errors"], found["met"]) == (0, "http_500 3", 0)
    assert "ttft_p50_s" not in found


@pytest.mark.parametrize(
    ("late", "handling", "lag", "flagged"),
    [
        (0.001, 0.002, 0.001, False),
        (0.06, 0.06, 0.0, True),  # more than a tenth of half a second
        (0.0, 0.09, 0.0, False),
        (0.0, 0.2, 0.0, True),  # of 1.5 s
        (0.0, 0.0, 0.02, True),  # of 0.1 s
    ],
)
def test_the_clients_delay_is_flagged_where_it_matters(late: float, handling: float, lag: float, flagged: bool) -> None:
    rows = [
        request(
            i, "counted", i + late, i + late + 1.5, tokens=10, ttft=0.5, itl=0.1, planned_s=i, client_delay_s=handling
        )
        for i in range(10)
    ]
    assert figures.client_flag(rows, lag) is flagged


def test_arrivals_are_a_poisson_process() -> None:
    moments = list(islice(arrivals(4.0, 0, "r4"), 5000))
    gaps = np.diff([0, *moments])
    assert stats.kstest(gaps, stats.expon(scale=1 / 4).cdf).pvalue > 0.01
    # Independent, too: counts in stretches of time are Poisson, whose variance is the mean.
    counts = np.histogram(moments, bins=np.arange(0, moments[-1], 1))[0]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.15)
    assert list(islice(arrivals(4.0, 0, "r4"), 5000)) == moments
    assert list(islice(arrivals(4.0, 1, "r4"), 5)) != moments[:5]


def test_lengths_follow_their_distributions() -> None:
    random = generator(0, "lengths")
    uniform = lengths(Uniform(uniform=(3, 6)), 4000, random)
    assert set(uniform) == {3, 4, 5, 6}
    assert stats.chisquare(np.bincount(uniform)[3:]).pvalue > 0.01
    shape = {"median": 200, "sigma": 0.8, "max": 4000}
    drawn = lengths(Lognormal.model_validate({"lognormal": shape}), 4000, random)
    assert stats.kstest(drawn, stats.lognorm(s=0.8, scale=200).cdf).pvalue > 0.01
    assert max(lengths(Lognormal.model_validate({"lognormal": shape | {"max": 300}}), 500, random)) == 300


def test_requests_are_the_same_for_every_cell_and_no_prompt_comes_twice() -> None:
    config = LoadConfig(prompt_tokens=8, output_tokens=4)
    first = make(config, "c4", 50, 0, 1000, list)
    assert make(config, "c4", 50, 0, 1000, list) == first
    prompts = [tuple(one.prompt) for one in [*first, *make(config, "c8", 50, 0, 1000, list)]]
    assert len(set(prompts)) == 100
    assert all(len(prompt) == 8 for prompt in prompts)


def test_a_file_of_requests_is_taken_in_order_and_from_its_beginning_again(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    lines = [{"prompt": "Hello", "output_tokens": 3}, {"prompt_tokens": 4, "output_tokens": 5}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    made = make(LoadConfig(requests=file), "c1", 3, 0, 100, list)
    assert [one.output_tokens for one in made] == [3, 5, 3]
    assert made[0].prompt == made[2].prompt == "Hello"
    assert len(made[1].prompt) == 4
    file.write_text('{"prompt": "a", "prompt_tokens": 3, "output_tokens": 1}')
    with pytest.raises(QbenchError, match=r"line 1: .*either prompt or prompt_tokens"):
        read_requests(file)
    with pytest.raises(QbenchError, match="cannot be read"):
        read_requests(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"find_rate": True}, "needs an objective"),
        ({"concurrencies": []}, "there is no load"),
        ({"rates": [2, 1]}, "ascending"),
        ({"slo": {"ttft": "5 parsecs"}}, "no time"),
        ({"slo": {}}, "give ttft, itl or both"),
        ({"prompt_tokens": {"uniform": [9, 3]}}, "the smaller number comes first"),
        ({"prompt_tokens": {"lognormal": {"median": 9, "sigma": 1, "max": 3}}}, "must not be above max"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LoadConfig.model_validate(settings)


def test_errors_of_a_length_speak_of_what_was_written() -> None:
    data = {"name": "r", "model": {"demo": True}, "backends": [{"kind": "fp16"}], "measure": {"load": {}}}
    data["measure"]["load"] = {"prompt_tokens": {"uniform": [1, 2, 3]}}
    with pytest.raises(QbenchError) as error:
        check(data, "r.yaml")
    assert "measure.load.prompt_tokens" in str(error.value)
    assert "lognormal" not in str(error.value)


def test_times_are_read_with_their_units_and_units_are_levels() -> None:
    config = LoadConfig.model_validate(
        {"rates": [0.5, 2], "find_rate": True, "slo": {"ttft": "0.5s", "itl": "50ms"}, "duration_s": "2min"}
    )
    assert config.slo == SLO(ttft=0.5, itl=0.05)
    assert config.duration_s == 120
    assert config.units() == ("r0.5", "r2", "search")
    assert LoadConfig().units() == ("c1", "c4", "c16")


class Simulated:
    """A server that keeps the objective up to a capacity, and beyond it ever less; a share `noise` is always late."""

    def __init__(self, capacity: float, requests: int = 100, noise: float = 0.0) -> None:
        self.capacity, self.requests, self.noise = capacity, requests, noise
        self.random = np.random.default_rng(0)
        self.levels: list[LoadRow] = []

    def __call__(self, rate: float) -> tuple[int, int]:
        share = (1 - self.noise) * min(1.0, (self.capacity / rate) ** 4)
        met = int(self.random.binomial(self.requests, share)) if self.noise else int(share * self.requests)
        fields = {"run": "r", "model": "m", "backend": "server", "label": "s", "level": f"search/{len(self.levels)}"}
        figures_ = {"status": "ok", "answered": self.requests, "client_delay_p95_s": 0, "loop_lag_p95_s": 0}
        own = {"mode": "search", "rate": rate, "requests": self.requests, "met": met}
        self.levels.append(LoadRow.model_validate(fields | figures_ | own))
        return met, self.requests


@pytest.mark.parametrize("capacity", [0.03, 0.7, 1.0, 19.0, 300.0])
def test_the_search_finds_a_known_capacity(capacity: float) -> None:
    """The share falls below 0.9 at capacity × 0.9^(-1/4)."""
    server = Simulated(capacity)
    Search(server, 0.9, repetitions=3, most_levels=60).run(1.0)
    found = figures.found_rate(server.levels, 0.9)
    limit = capacity * 0.9 ** (-1 / 4)
    assert found is not None
    assert found.kept is not None
    assert found.missed is not None
    assert found.kept <= limit * 1.02
    assert found.missed >= limit / 1.02
    assert found.missed / found.kept <= PRECISION


def test_the_search_repeats_what_it_cannot_tell_and_is_bounded() -> None:
    server = Simulated(5.0, requests=30, noise=0.05)
    Search(server, 0.9, repetitions=3, most_levels=16).run(1.0)
    rates = [level.rate for level in server.levels]
    assert len(rates) <= 16
    assert max(rates.count(rate) for rate in rates) in (2, 3)
    found = figures.found_rate(server.levels, 0.9)
    assert found is not None
    assert found.kept is not None
    assert found.kept < 5.5
    spent = Simulated(1e9)
    Search(spent, 0.9, repetitions=1, most_levels=3).run(1.0)
    assert [level.rate for level in spent.levels] == [1, 2, 4]
    assert figures.found_rate(spent.levels, 0.9) == figures.FoundRate(4, None, True)


def test_a_server_that_keeps_nothing_has_no_rate() -> None:
    server = Simulated(0.0)
    Search(server, 0.9, repetitions=2, most_levels=50).run(1.0)
    found = figures.found_rate(server.levels, 0.9)
    assert found is not None
    assert found.kept is None
    assert all(after < before for before, after in pairwise(level.rate or 0 for level in server.levels))


def test_requests_are_kept_as_they_were(tmp_path: Path) -> None:
    rows = six()
    requests.write(tmp_path / requests.FILE, rows)
    assert requests.read(tmp_path) == rows
    (tmp_path / requests.FILE).write_bytes(b"PAR1 not")
    with pytest.raises(QbenchError, match="damaged"):
        requests.read(tmp_path)
