"""Load on a real HTTP server of known speed, and on one that fails."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qbench.analysis.load import found_rate
from qbench.config import LoadConfig
from qbench.engine.server.client import Endpoint
from qbench.machine.conditions import Conditions
from qbench.measure import load
from qbench.measure.base import Context
from qbench.records.rows import LoadRow, RequestRow, Row
from tests.support.slow_server import Speed, serve

IDENTITY = {"run": "r", "model": "m", "backend": "server", "label": "s"}
QUICK = {"prompt_tokens": 8, "output_tokens": 4, "requests_per_level": 12, "duration_s": 20, "timeout_s": 10}


class Quiet:
    """A machine on which nothing else runs."""

    def sample(self) -> None:
        return None

    def since(self, before: None) -> Conditions:
        return Conditions(validity="ok", foreign_cpu=0.0, steal=0.0, cpu_mhz=None)


class Measured:
    """What a measure has emitted, by unit."""

    def __init__(self) -> None:
        self.units: dict[str, tuple[Row, ...]] = {}

    def emit(self, *rows: Row, unit: str = "") -> None:
        assert unit not in self.units
        self.units[unit] = rows

    def level(self, unit: str) -> LoadRow:
        (row,) = (row for row in self.units[unit] if isinstance(row, LoadRow))
        return row

    def requests(self, unit: str) -> list[RequestRow]:
        return [row for row in self.units[unit] if isinstance(row, RequestRow)]


def measure(
    url: str, folder: Path, wants: Callable[[str], bool] = lambda unit: True, sampler: Any = None, **settings: Any
) -> Measured:
    found = Measured()
    context = Context(
        identity=IDENTITY,
        emit=found.emit,
        progress=lambda *_: None,
        seed=0,
        answers=folder,
        wants=wants,
        journal=folder / "journal" / "load-key.jsonl",
    )
    about = SimpleNamespace(vocab_size=1000, max_position_embeddings=None, gpu_uuid=None)
    engine = SimpleNamespace(about=about, endpoint=Endpoint(url, "m"), prompt=list)
    load.measure(engine, LoadConfig.model_validate(QUICK | settings), context, sampler or Quiet())
    return found


def test_a_server_of_two_places_answers_no_more_than_two_at_a_time(tmp_path: Path) -> None:
    """It sleeps 10 ms and then 2 ms for each of 3 further tokens: what is measured can only be slower."""
    speed = Speed(places=2, prefill_s=0.01, token_s=0.002)
    with serve(speed) as url:
        found = measure(url, tmp_path, concurrencies=[1, 4], rates=[50], slo={"ttft": 5, "itl": 5})
    assert list(found.units) == ["c1", "c4", "r50"]
    for unit in found.units:
        level, rows = found.level(unit), found.requests(unit)
        own = [row for row in rows if row.phase == "counted"]
        assert (level.status, level.requests, level.answered, len(own)) == ("ok", 12, 12, 12)
        assert level.requests_per_s is not None
        assert level.window_s is not None
        # Two places, 16 ms a request; two of them may have begun before the window.
        assert level.requests_per_s <= 2 / 0.016 + 2 / level.window_s
        assert (level.ttft_p50_s or 0) >= 0.01
        assert (level.e2e_p50_s or 0) >= 0.016
        assert (level.prompt_tokens_mean, level.output_tokens_mean) == (8, 4)
        assert level.met == 12
        assert level.goodput_per_s == level.requests_per_s
        assert all(0 <= row.planned_s <= row.sent_s <= row.ended_s for row in rows)
        assert all(len(row.token_s) == 4 for row in own)
        assert sorted(row.number for row in rows) == list(range(len(rows)))
    phases = Counter(row.phase for row in found.requests("c4"))
    assert phases["warmup"] == 4
    assert phases["tail"] <= 4
    assert 1 <= (found.level("c4").in_flight_mean or 0) <= 4
    assert speed.most == 2
    prompts = [tuple(body["prompt"]) for body in speed.asked]
    assert len(set(prompts)) == len(prompts)


def test_an_open_loop_sends_at_its_moments_however_many_wait(tmp_path: Path) -> None:
    """One place, 30 ms a request, 200 a second: all are sent long before the first few are answered."""
    with serve(Speed(places=1, prefill_s=0.03, token_s=0)) as url:
        found = measure(url, tmp_path, rates=[200], requests_per_level=20)
    rows = {row.number: row for row in found.requests("r200") if row.phase == "counted"}
    assert len(rows) == 20
    level = found.level("r200")
    assert (level.in_flight_mean or 0) > 4
    assert (level.requests_per_s or 99) <= 1 / 0.03 + 1 / (level.window_s or 99)
    last, first = rows[max(rows)], rows[min(rows)]
    assert last.ended_s - last.sent_s > first.ended_s - first.sent_s


def test_errors_are_counted_by_their_kind(tmp_path: Path) -> None:
    faults = {1: "http_500", 3: "closed", 5: "hang"}
    speed = Speed(fault=faults.get)
    with serve(speed) as url:
        found = measure(url, tmp_path, concurrencies=[1], timeout_s=0.5)
    level = found.level("c1")
    assert level.errors == "closed 1; http_500 1; timeout 1"
    assert (level.requests, level.answered) == (12, 9)
    failed = [row for row in found.requests("c1") if row.error]
    assert {row.error for row in failed} == {"closed", "http_500", "timeout"}
    assert all(row.detail for row in failed)


def test_a_hanging_server_ends_in_time_and_higher_levels_are_not_tried(tmp_path: Path) -> None:
    speed = Speed(fault=lambda number: "hang")
    with serve(speed) as url:
        found = measure(
            url, tmp_path, concurrencies=[1, 4, 8], find_rate=True, slo={"ttft": 1}, timeout_s=0.2, duration_s=0.5
        )
    assert found.level("c1").status == "error"
    assert "no request was answered (timeout" in (found.level("c1").error or "")
    assert (found.level("c8").status, found.level("c8").requests) == ("error", 0)
    assert "not tried" in (found.level("c8").error or "")
    # The warm-up and some that count until half a second is over, twice.
    assert len(speed.asked) <= 12
    assert found.level("search").status == "error"


def test_nothing_listens(tmp_path: Path) -> None:
    with serve(Speed()) as url:
        pass
    found = measure(url, tmp_path, concurrencies=[2])
    assert found.level("c2").errors == "connect 12"


class Interrupted(Quiet):
    """Ctrl-C before the n-th level."""

    def __init__(self, after: int) -> None:
        self.left = after

    def sample(self) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


def test_an_interrupted_load_keeps_its_levels_and_the_searchs(tmp_path: Path) -> None:
    settings = {
        "concurrencies": [1], "find_rate": True, "slo": {"ttft": "0.2s"}, "search_levels": 3, "requests_per_level": 6
    }  # fmt: skip
    speed = Speed(places=64, prefill_s=0.005, token_s=0)
    with serve(speed) as url:
        with pytest.raises(KeyboardInterrupt):
            measure(url, tmp_path, sampler=Interrupted(after=3), **settings)
        (kept,) = (tmp_path / "journal").glob("load-key.search-*.jsonl")
        lines = [json.loads(line) for line in kept.read_text().splitlines()]
        # What a process that was killed leaves: half a line.
        kept.write_text(kept.read_text() + '{"request": {"run"')
        before = len(speed.asked)
        found = measure(url, tmp_path, wants=lambda unit: unit != "c1", **settings)
    assert [line["level"]["level"] for line in lines if "level" in line] == ["search/0", "search/1"]
    assert list(found.units) == ["search"]
    levels = [row for row in found.units["search"] if isinstance(row, LoadRow)]
    assert [level.level for level in levels] == ["search/0", "search/1", "search/2", "search/3"]
    assert [level.concurrency for level in levels] == [1, None, None, None]
    again = {row.level for row in found.requests("search") if row.level in ("search/0", "search/1")}
    assert again == {"search/0", "search/1"}
    # Only two levels of it were sent again: a warm-up, six that count, a tail of at most six.
    assert len(speed.asked) - before <= 2 * 13
    rate = found_rate(levels, 0.9)
    assert rate is not None
    assert rate.kept is not None


def test_a_level_that_lasts_too_long_sends_no_more(tmp_path: Path) -> None:
    speed = Speed(prefill_s=0.05, token_s=0)
    with serve(speed) as url:
        found = measure(url, tmp_path, concurrencies=[1], requests_per_level=1000, duration_s=0.3)
    assert 1 <= found.level("c1").requests <= 6
    assert found.level("c1").status == "ok"
