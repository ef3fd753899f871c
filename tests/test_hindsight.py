"""Predictions beside the measurements that are committed."""

from pathlib import Path

import pytest

from qbench.machine.bandwidth import Bandwidth
from qbench.plan import backtest
from qbench.records.run import read_run
from tests.support.frames import edited

PUBLISHED = sorted((Path(__file__).parents[1] / "results" / "published").glob("*/run.json"))

OLDER_FORMAT = 4.1875
"""Bits a weight of INT4 before offsets were 16 bits wide and linears were joined: another layout than is predicted."""

DEQUANTIZED = {"int4-calibrated-epyc-2core", "kv-cache-accuracy-epyc-2core"}
"""Runs of before AVX2 multiplied 16-bit integers: INT4's first forward dequantized blocks of a weight."""


@pytest.mark.parametrize("record", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_peaks_of_published_runs_are_predicted_within_a_tenth(record: Path) -> None:
    run = read_run(record.parent)
    older = {cell.label for cell in run.cells if cell.effective_bits_per_weight == OLDER_FORMAT}
    found = backtest.compare(run)
    # Nothing is predicted of a server.
    ended = {cell.label for cell in run.cells if cell.status == "ok" and cell.backend != "server"}
    assert {one.label for one in found} == ended
    if record.parent.name in DEQUANTIZED:
        older |= {cell.label for cell in run.cells if cell.backend == "int4"}
    found = [one for one in found if one.label not in older]
    assert found
    for one in found:
        assert one.predicted_bytes == pytest.approx(one.measured_bytes, rel=0.1), one


def test_speeds_stand_beside_their_ceiling() -> None:
    run = read_run(next(path.parent for path in PUBLISHED if path.parent.name == "tinyllama-shape-xeon-2core"))
    found = backtest.compare(run, Bandwidth(100e9, "more than that machine has"))
    assert {one.batch_size for one in found} == {None, 1, 8, 32}
    for one in found:
        if one.batch_size:
            assert one.measured_tokens_per_s
            assert one.predicted_tokens_per_s
            assert one.predicted_tokens_per_s > one.measured_tokens_per_s
    assert all(one.predicted_tokens_per_s is None for one in backtest.compare(run))


def test_cells_that_measured_nothing_have_no_rows() -> None:
    run = read_run(PUBLISHED[0].parent)
    assert backtest.compare(edited(run, "cells", kernel=None, peak_memory_bytes=None)) == []
