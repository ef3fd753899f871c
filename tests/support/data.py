"""Published data that this repository does not hold."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("QBENCH_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
"""A folder with mmlu/ and wikitext2/."""

MMLU = DATA / "mmlu"
WIKITEXT = DATA / "wikitext2" / "wiki.test.raw"

needs_mmlu = pytest.mark.skipif(not MMLU.is_dir(), reason=f"data: no questions at {MMLU}; set QBENCH_TEST_DATA")
needs_wikitext = pytest.mark.skipif(not WIKITEXT.is_file(), reason=f"data: no {WIKITEXT}; set QBENCH_TEST_DATA")
