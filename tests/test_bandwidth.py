from pathlib import Path
from types import SimpleNamespace

import pytest

from qbench.errors import QbenchError
from qbench.machine import bandwidth


@pytest.mark.parametrize(
    ("text", "value"),
    [("12GiB", 12 * 2**30), ("24 GB", 24_000_000_000), ("512MiB", 2**29), (".5TiB", 2**39), ("8192B", 8192)],
)
def test_sizes_are_read_with_their_unit(text: str, value: int) -> None:
    assert bandwidth.parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("1.5TB/s", 1.5e12), ("900 GB/s", 9e11), ("20GiB/s", 20 * 2**30)])
def test_rates_are_read_with_their_unit(text: str, value: float) -> None:
    assert bandwidth.parse_rate(text) == value


@pytest.mark.parametrize("text", ["12", "GiB", "-1GB", "0GB", "12 gigs", "1e3GB", "12Gb/s"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(QbenchError, match=r"--memory .*: expected a number with a unit, e.g. 12GiB"):
        bandwidth.parse_bytes(text)


def test_data_sheets_are_found_by_the_drivers_name() -> None:
    found = bandwidth.of_gpu("NVIDIA A100-SXM4-80GB")
    assert found is not None
    assert (found.bytes_per_s, found.flops) == (2.039e12, 312e12)
    assert "data sheet of NVIDIA A100" in found.source
    assert bandwidth.of_gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb") is None


def test_the_fastest_pass_over_the_hosts_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that lets three passes over 1 MiB take 0.2, 0.0625 and 0.5 s, which ends the 0.6 s given."""
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", (1 << 20, 1 << 20))
    monkeypatch.setattr(bandwidth, "SECONDS", 0.6)
    ticks = iter([0.0, 0.0, 0.2, 0.2, 0.2, 0.2625, 0.2625, 0.2625, 0.7625, 0.7625])
    monkeypatch.setattr(bandwidth, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    found = bandwidth.of_host.__wrapped__()
    assert found.bytes_per_s == pytest.approx(2**20 / 0.0625)
    assert found.source == "measured here by reading 1 MiB with numpy"
    assert next(ticks, None) is None


@pytest.mark.parametrize(
    ("sizes", "mebibytes"),
    [([], 256), (["32768K"], 256), (["262144K"], 512), (["98304K"] * 4, 768), (["1048576K"] * 2, 2048)],
)
def test_more_is_read_than_caches_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[str], mebibytes: int
) -> None:
    """The last level counts, a cache that two cores share once, those of all chips together."""
    for cpu in range(2 * len(sizes)):
        first = cpu // 2 * 2
        for level, size, shared in (("2", "2048K", f"{cpu}"), ("3", sizes[cpu // 2], f"{first}-{first + 1}")):
            cache = tmp_path / f"cpu{cpu}" / "cache" / f"index{level}"
            cache.mkdir(parents=True)
            for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (cache / name).write_text(f"{value}\n")
    monkeypatch.setattr(bandwidth, "CPUS", tmp_path)
    monkeypatch.setattr(bandwidth, "SECONDS", 0)
    assert f"reading {mebibytes} MiB" in bandwidth.of_host.__wrapped__().source
