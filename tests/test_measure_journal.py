"""An evaluation that is ended half way goes on with the same figures, and reads nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qbench.backends import fp16
from qbench.backends.base import LoadedModel
from qbench.backends.fp16 import FP16
from qbench.measure.lm_eval.journal import Journal
from qbench.measure.lm_eval.prefix_groups import Query, Row
from qbench.measure.lm_eval.prefix_lm import PrefixModel
from tests.support.tiny_llama import options

BATCH = (Row((1, 2, 3), ((4,), (5,))), Row((1, 2), ((6, 7),)))
ANSWERS = {
    Query((1, 2, 3), (4,)): (-0.1234567890123456, True),
    Query((1, 2, 3), (5,)): (-2.5, False),
    Query((1, 2), (6, 7)): (-1e-9, True),
}


def test_answers_come_back_exactly_and_only_for_their_batch(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "mmlu.jsonl"
    journal = Journal(path)
    assert journal.get(BATCH) is None
    journal.put(BATCH, ANSWERS)
    again = Journal(path)
    assert again.get(BATCH) == ANSWERS
    assert again.get(BATCH[:1]) is None
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
        journal.put(BATCH[:1], ANSWERS)
        assert Journal(path).get(BATCH[:1]) is not None


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


class Counting(PrefixModel):
    """Counts batches, and gives up before one of them."""

    batches = 0
    last = 10**6

    def _read_rows(self, *arguments: object) -> dict[Query, tuple[float, bool]]:
        if self.batches == self.last:
            raise KeyboardInterrupt
        self.batches += 1
        found: dict[Query, tuple[float, bool]] = super()._read_rows(*arguments)  # type: ignore[arg-type]
        return found


def model(loaded: LoadedModel, path: Path | None, last: int = 10**6) -> Counting:
    lm = Counting(loaded, loaded.tokenizer, 3)
    lm.journal, lm.last = Journal(path), last
    return lm


def test_an_evaluation_goes_on_with_the_batch_that_it_was_ended_in(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    whole = model(loaded, None)
    expected = whole._loglikelihood_tokens(list(REQUESTS))
    assert whole.batches == 7
    with pytest.raises(KeyboardInterrupt):
        model(loaded, path, last=4)._loglikelihood_tokens(list(REQUESTS))
    rest = model(loaded, path)
    assert rest._loglikelihood_tokens(list(REQUESTS)) == expected
    assert rest.batches == 3
    nothing = model(loaded, path)
    assert nothing._loglikelihood_tokens(list(REQUESTS)) == expected
    assert nothing.batches == 0
    # The whole task, not what this process read.
    assert nothing.forward_tokens == whole.forward_tokens
