"""Shared fixtures. Everything runs on the CPU and offline."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
# Checkpoints and random weights of the tests are theirs alone.
os.environ["QBENCH_CACHE"] = tempfile.mkdtemp(prefix="qbench-cache-")
atexit.register(shutil.rmtree, os.environ["QBENCH_CACHE"], ignore_errors=True)
# The models of the tests are too small to gain from threads, which wait for each other badly on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell without job control starts what it puts into the background with SIGINT ignored, and so would every run here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# After the environment, which transformers reads at import.
from tests.support.tiny_llama import save_tiny_llama, word_ids  # noqa: E402
from tests.support.tiny_variants import save_large_and_small  # noqa: E402


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama of two layers, with a tokenizer."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def large_and_small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two models of random weights: 187 MB in 16 bit, and next to nothing."""
    return save_large_and_small(tmp_path_factory.mktemp("large-and-small"))


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text of the words of `word_ids`."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"w{index}" for index in word_ids()))
    return str(path)


LONGEST = (
    *("test_faults", "test_report", "test_fresh_run", "test_ray_executor", "test_runner", "test_backends_gptqmodel"),
    *("test_plots", "test_families", "test_report_browser", "test_cli", "test_resume", "test_int4_stream"),
    *("test_measure_mmlu", "test_formats", "test_int4_cuda", "test_int4_triton", "test_serve", "test_serve_page"),
)
"""Files that begin, so that no process is left with one of them when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """What has been imported stays: searching it took half the time of cells, which collect garbage."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """The same for what earlier files have left: a cell of a test searched it three times."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail when anything but a GPU or its data was missing")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under `--no-skips`, a skip is a failure unless it wants a GPU, or data that nobody pointed at."""
    gc.unfreeze()  # nanobind takes what is frozen at the end for leaks
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--no-skips") or reporter is None:
        return
    allowed = ("Skipped: gpu:",) if os.environ.get("QBENCH_TEST_DATA") else ("Skipped: gpu:", "Skipped: data:")
    if any(not report.longrepr[2].startswith(allowed) for report in reporter.stats.get("skipped", [])):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
