from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
from scipy.stats import f

from qbench.analysis.between_starts import samples, variance_share
from qbench.analysis.effects import speed_ratio
from qbench.analysis.summary import summarize
from qbench.decide.compare import compare_runs
from tests.support.made_up_run import cell, made_up_run, trial


def test_the_variance_components_worked_out_by_hand() -> None:
    # Log speeds 1 2 3 | 2 3 4 | 6 7 8: means 2, 3, 7 of 4; MSA = 3 (4 + 1 + 9) / 2 = 21, MSE = 6 / 6 = 1.
    logs = [[1, 2, 3], [2, 3, 4], [6, 7, 8]]
    found = variance_share([[math.exp(value) for value in start] for start in logs])
    assert found is not None
    assert (found.between**2, found.within**2, found.starts) == pytest.approx((20 / 3, 1, 3))
    assert found.share == pytest.approx(20 / 23)
    ends = [21 / f.ppf(q, 2, 6) for q in (0.975, 0.025)]
    assert (found.low, found.high) == pytest.approx([(end - 1) / (end + 2) for end in ends])


def test_starts_of_different_size() -> None:
    # 0 2 | 4: mean 2; MSA = (2 * 1 + 4) / 1 = 6, MSE = 2 / 1 = 2, n0 = 3 - 5 / 3 = 4 / 3: variance 3 between, 2 within.
    found = variance_share([[1.0, math.exp(2)], [math.exp(4)]])
    assert found is not None
    assert (found.between**2, found.within**2) == pytest.approx((3, 2))


@pytest.mark.parametrize("starts", [[], [[90.0, 91.0]], [[90.0], [91.0]], [[90.0, 90.0], [91.0, 91.0]]])
def test_what_tells_no_share(starts: list[list[float]]) -> None:
    assert variance_share(starts) is None


def test_starts_that_differ_less_than_their_trials_do_have_no_share() -> None:
    found = variance_share([[90.0, 100.0], [101.0, 92.0]])
    assert found is not None
    assert (found.share, found.low) == (0, 0)
    assert found.high > 0.9, "two starts leave nearly everything open"


def test_the_interval_covers_the_ratio_of_cells_whose_starts_vary() -> None:
    # Starts move by 4 %, trials by 1 %; the second cell is 1.1 times as fast. Of 2,000 intervals of 95 %, the share
    # that covers is within 1 % of that, nearly always; Welch's is a little wide for so few starts.
    random, covered, by_trials = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        logs = [
            middle + random.normal(0, 0.04, (4, 1)) + random.normal(0, 0.01, (4, 5)) for middle in (0, math.log(1.1))
        ]
        first, second = (np.exp(one).tolist() for one in logs)
        ratio = speed_ratio(samples(first), samples(second))
        covered += ratio.bounds[0] <= 1.1 <= ratio.bounds[1]
        low, high = speed_ratio(list(chain(*first)), list(chain(*second))).bounds
        by_trials += low <= 1.1 <= high
    assert 0.94 <= covered / 2000 <= 0.975
    assert by_trials / 2000 < 0.75, "counting trials, as if they were independent, is what this mends"


def test_the_interval_of_the_share_covers_it() -> None:
    random, share = np.random.default_rng(1), 0.8
    wide, narrow = share**0.5, (1 - share) ** 0.5
    found = [
        variance_share(np.exp(random.normal(0, wide, (4, 1)) + random.normal(0, narrow, (4, 5)))) for _ in range(2000)
    ]
    covered = sum(one is not None and one.low <= share <= one.high for one in found)
    assert 0.94 <= covered / 2000 <= 0.96


STARTS = {"fp16": [[100, 101], [110, 111], [90, 91]], "int4": [[205, 206], [215, 214], [180, 182]]}


def test_every_speed_of_a_run_counts_its_starts() -> None:
    rows = [
        trial(label, None, 1, trial=i, start=start, decode_tokens_per_s=speed)
        for label, starts in STARTS.items()
        for start, speeds in enumerate(starts)
        for i, speed in enumerate(speeds)
    ]
    run = made_up_run([cell("fp16"), cell("int4"), *rows])
    speed = summarize(run).cells[1].at(1)
    means = [[math.sqrt(a * b) for a, b in starts] for starts in STARTS.values()]
    assert speed.speedup == speed_ratio(*means)
    assert speed.speedup != speed_ratio(*(list(chain(*starts)) for starts in STARTS.values()))
    assert speed.tokens_per_s == pytest.approx(205.5)
    assert speed.validity is None, "starts are a fifth apart, the trials of each hardly"
    summary = summarize(run)
    (ratio,) = (one.ratio for one in compare_runs(summary, summary).cells[1].speeds if one.ratio)
    assert ratio == speed_ratio(means[1], means[1])
