"""An evaluation that is ended half way goes on with the same figures, and reads nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qbench.backends import fp16
from qbench.backends.fp16 import FP16
from qbench.engine.base import Query
from qbench.engine.torch import engine
from qbench.engine.torch.engine import TorchEngine
from qbench.engine.torch.loaded import LoadedModel
from qbench.engine.torch.prefix import PrefixReader
from qbench.measure.lm_eval.adapter import EngineLM
from qbench.measure.lm_eval.journal import Journal
from tests.support.tiny_llama import options

BATCH, OTHER = "a batch", "another"
ANSWERS = [(-0.1234567890123456, True), (-2.5, False), (-1e-9, True)]


def test_answers_come_back_exactly_and_only_for_their_batch(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "mmlu.jsonl"
    journal = Journal(path)
    assert journal.get(BATCH) is None
    journal.put(BATCH, ANSWERS)
    again = Journal(path)
    assert again.get(BATCH) == ANSWERS
    assert again.get(OTHER) is None
    assert again.elapsed_s > journal.elapsed_s - 1


def test_a_line_that_was_cut_off_is_read_again_and_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    Journal(path).put(BATCH, ANSWERS)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        journal = Journal(path)
        # Without the newline alone the line is whole.
        assert (journal.get(BATCH) == ANSWERS) == (end == len(whole) - 1)
        journal.put(OTHER, ANSWERS)
        assert Journal(path).get(OTHER) is not None


def test_time_before_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    Journal(path).put(BATCH, ANSWERS)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"elapsed_s": 1000.0}) + "\n")
    assert Journal(path).elapsed_s > 1000


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return fp16.load(options(tiny_llama, tmp_path_factory.mktemp("work"), torch.bfloat16), FP16(), None)


REQUESTS = [
    (("", ""), [*range(40), *range(question, question + 5)], [answer])
    for question in range(20)
    for answer in (7, 8, 9, 10)
]
"""Questions behind a shared prompt, as tokens."""


class Counter:
    """Counts the batches that are read, and gives up before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches, self.last = 0, 10**6
        read = PrefixReader._read_rows

        def counted(reader: PrefixReader, *arguments: Any) -> dict[Query, tuple[float, bool]]:
            if self.batches == self.last:
                raise KeyboardInterrupt
            self.batches += 1
            return read(reader, *arguments)

        monkeypatch.setattr(PrefixReader, "_read_rows", counted)


def test_an_evaluation_goes_on_with_the_batch_that_it_was_ended_in(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "sharing_agrees", lambda *_: True)  # the check before is not counted
    counter, path = Counter(monkeypatch), tmp_path / "mmlu.jsonl"

    def model(path: Path | None) -> EngineLM:
        counter.batches = 0
        return EngineLM(TorchEngine(loaded), 3, share=True, journal=Journal(path))

    whole = model(None)
    expected = whole._loglikelihood_tokens(list(REQUESTS))
    assert counter.batches == 7
    ended = model(path)
    counter.last = 4
    with pytest.raises(KeyboardInterrupt):
        ended._loglikelihood_tokens(list(REQUESTS))
    counter.last = 10**6
    rest = model(path)
    assert rest._loglikelihood_tokens(list(REQUESTS)) == expected
    assert counter.batches == 3
    nothing = model(path)
    assert nothing._loglikelihood_tokens(list(REQUESTS)) == expected
    assert counter.batches == 0
    # The whole task, not what this process read.
    assert nothing.forward_tokens == whole.forward_tokens
