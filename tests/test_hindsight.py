"""Predictions beside the measurements that are committed."""

from pathlib import Path

import pytest

from qbench.machine.bandwidth import Bandwidth
from qbench.plan import backtest
from qbench.records.run import read_run

PUBLISHED = sorted((Path(__file__).parents[1] / "results" / "published").glob("*/run.json"))

OLDER_FORMAT = 4.1875
"""Bits a weight of INT4 before offsets were 16 bits wide and linears were joined: another layout than is predicted."""

DEQUANTIZED = {"int4-calibrated-epyc-2core", "kv-cache-accuracy-epyc-2core"}
"""Runs of before AVX2 multiplied 16-bit integers: INT4's first forward dequantized blocks of a weight."""


@pytest.mark.parametrize("record", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_peaks_of_published_runs_are_predicted_within_a_tenth(record: Path) -> None:
    run = read_run(record.parent)
    older = set(run.cells.loc[run.cells["effective_bits_per_weight"] == OLDER_FORMAT, "label"])
    found = backtest.compare(run)
    ended = set(run.cells.loc[run.cells["status"] == "ok", "label"])
    assert set(found["label"]) == ended
    if record.parent.name in DEQUANTIZED:
        older |= set(run.cells.loc[run.cells["backend"] == "int4", "label"])
    found = found[~found["label"].isin(older)]
    assert len(found)
    for row in found.to_dict("records"):
        assert row["predicted_bytes"] == pytest.approx(row["measured_bytes"], rel=0.1), row


def test_speeds_stand_beside_their_ceiling() -> None:
    run = read_run(next(path.parent for path in PUBLISHED if path.parent.name == "tinyllama-shape-xeon-2core"))
    found = backtest.compare(run, Bandwidth(100e9, "more than that machine has"))
    speeds = found[found["measure"] == "throughput"]
    assert set(speeds["batch_size"]) == {1, 8, 32}
    assert (speeds["predicted_tokens_per_s"] > speeds["measured_tokens_per_s"]).all()
    assert backtest.compare(run)["predicted_tokens_per_s"].isna().all()


def test_cells_that_measured_nothing_have_no_rows() -> None:
    run = read_run(PUBLISHED[0].parent)
    first = run.cells.iloc[:1].copy()
    first[["kernel", "peak_memory_bytes"]] = None
    failed = type(run)(run.folder, run.record, first, run.throughput, run.accuracy, run.perplexity, ())
    assert not len(backtest.compare(failed))
