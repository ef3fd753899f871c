"""Texts by name, and that WikiText-2's file and the hub's rows come to the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from qbench import demo
from qbench.config import ModelConfig
from qbench.errors import QbenchError
from qbench.model import texts
from tests.support.data import WIKITEXT, needs_wikitext

HUB_ROWS = ["", " = Robert Boulter = \n", "", " He acted in 2 @,@ 000 plays . \n"]
PUBLISHED_FILE = " \n = Robert Boulter = \n \n He acted in 2 @,@ 000 plays . \n"
JOINED = "\n\n = Robert Boulter = \n\n\n\n\n He acted in 2 @,@ 000 plays . \n"


def test_rows_of_the_hub_and_lines_of_the_published_file_give_one_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*names: str, split: str) -> dict[str, list[str]]:
        asked.append((*names, split))
        return {"text": HUB_ROWS}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert texts.read("wikitext2", "test", "key") == JOINED
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]
    (tmp_path / "wiki.test.raw").write_text(PUBLISHED_FILE)
    assert texts.read(str(tmp_path / "wiki.test.raw"), "test", "key") == JOINED


def test_any_other_file_is_its_text(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(PUBLISHED_FILE)
    assert texts.read(str(path), "test", "key") == PUBLISHED_FILE
    assert texts.name(str(path)) == "notes.txt"
    assert texts.name("wikitext2") == "wikitext2"


@needs_wikitext
def test_the_published_test_set_has_the_rows_of_the_hub() -> None:
    """4,358 rows; every one but the last, blank or not, is followed by two newlines."""
    text = texts.read(str(WIKITEXT), "test", "key")
    assert text.startswith("\n\n = Robert Boulter = \n\n\n\n\n Robert Boulter is an English film , television")
    lines = WIKITEXT.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line for line in lines if line.strip()]
    assert len(lines) == 4358
    assert len(text) == sum(len(line) + 1 for line in kept) + 2 * (len(lines) - 1)
    assert [line for line in text.split("\n") if line] == kept


def test_the_demo_model_has_a_text_for_each_purpose() -> None:
    assert texts.read("demo", "train", "key") == demo.CALIBRATION_TEXT.read_text(encoding="utf-8")
    assert texts.read("demo", "test", "key") == demo.HELDOUT_TEXT.read_text(encoding="utf-8")
    assert texts.default_text(ModelConfig(demo=True)) == "demo"
    assert texts.default_text(ModelConfig(id="a/b")) == "wikitext2"


def test_what_cannot_be_read_is_named_by_its_key() -> None:
    with pytest.raises(QbenchError, match=r"measure\.x\.text: no file nowhere\.txt; give a text file, `demo`"):
        texts.read("nowhere.txt", "test", "measure.x.text")
    with pytest.raises(
        QbenchError, match=r"measure\.x\.text: WikiText-2 cannot be fetched .* such as .*wiki\.test\.raw"
    ):
        texts.read("wikitext2", "test", "measure.x.text")
