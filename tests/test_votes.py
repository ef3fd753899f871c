"""Votes: the exact sign test by hand, what a store keeps, and what a kill leaves of it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from math import comb
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qbench.analysis.votes import Preference, Tally, judge_votes, share_interval, sign_test
from qbench.cli.app import app
from qbench.errors import QbenchError
from qbench.serve.store import SCHEMA_VERSION, Answer, Choice, State, Store
from qbench.show.votes import vote_words


def test_the_sign_test_is_the_binomial_sum() -> None:
    # Of 12 votes 2 for one: 2 (C(12, 0) + C(12, 1) + C(12, 2)) ÷ 2^12 = 158 ÷ 4096.
    assert sign_test(2, 10) == sign_test(10, 2) == pytest.approx(2 * sum(comb(12, k) for k in range(3)) / 2**12)
    assert sign_test(2, 10) == pytest.approx(158 / 4096)
    assert sign_test(5, 5) == sign_test(0, 0) == 1.0


def test_the_interval_is_clopper_and_pearson_s() -> None:
    # Its ends are where a tail has 2.5 %. For 8 of 8: the lower end is the 8th root of 0.025, the upper one is 1.
    assert share_interval(8, 0) == pytest.approx((0.025 ** (1 / 8), 1.0))
    low, high = share_interval(7, 3)
    assert sum(comb(10, k) * low**k * (1 - low) ** (10 - k) for k in range(7, 11)) == pytest.approx(0.025)
    assert sum(comb(10, k) * high**k * (1 - high) ** (10 - k) for k in range(8)) == pytest.approx(0.025)
    assert share_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("tally", "verdict"),
    [
        (Tally(10, 2, 3), Preference.FIRST),
        (Tally(2, 10, 30), Preference.SECOND),
        (Tally(5, 0, 0), Preference.INCONCLUSIVE),  # 2 ÷ 2^5 is above 5 %
        (Tally(6, 0, 0), Preference.FIRST),
        (Tally(1, 1, 8), Preference.INCONCLUSIVE),
        (Tally(0, 0, 60), Preference.NO_DIFFERENCE),
        (Tally(200, 200, 100), Preference.NO_DIFFERENCE),
        (Tally(27, 20, 10), Preference.INCONCLUSIVE),
    ],
)
def test_a_verdict_follows_from_the_counts(tally: Tally, verdict: Preference) -> None:
    (found,) = judge_votes([tally])
    assert found.verdict is verdict
    assert found.lead[0] <= tally.lead <= found.lead[1]


def test_pairs_that_are_judged_together_need_more() -> None:
    alone, six = judge_votes([Tally(6, 0, 0)])[0], judge_votes([Tally(6, 0, 0), Tally(3, 3, 0)])[0]
    assert (alone.verdict, six.verdict) == (Preference.FIRST, Preference.INCONCLUSIVE)
    assert six.p_holm == 2 * alone.p_value
    assert six.confidence == 0.975


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 25))
def test_as_many_votes_as_are_said_to_settle_it_do(first: int, second: int, ties: int) -> None:
    if not first + second + ties:
        return
    (found,) = judge_votes([Tally(first, second, ties)])
    if found.needed is None:
        assert found.verdict is not Preference.INCONCLUSIVE or first == second or abs(found.tally.lead) == found.margin
        return
    assert found.needed > found.tally.n
    times = -(-found.needed // found.tally.n) + 1
    (more,) = judge_votes([Tally(first * times, second * times, ties * times)])
    assert more.verdict is not Preference.INCONCLUSIVE


def test_verdicts_in_words() -> None:
    def words(*counts: int) -> str:
        return vote_words(judge_votes([Tally(*counts)])[0], "int4", "fp16")

    assert words(2, 10, 3) == "fp16 preferred by 10 of 12 votes that prefer one, p = 0.039"
    assert words(200, 200, 100).startswith("no difference larger than 10 points: int4 leads by 0.0 [−")
    assert "fp16 leads by +0.8 [−" in words(198, 202, 100)
    assert words(5, 0, 0) == (
        "inconclusive: a lead of up to 100 points cannot be excluded; about 6 votes would settle it"
    )


def fill(store: Store, *choices: tuple[str, Choice], model: str = "demo") -> None:
    """A blind turn for each: which backend stands on the left, and the vote."""
    talk = store.start(model, "a talk")
    for left, choice in choices:
        answers = {"a": Answer(left), "b": Answer("fp16" if left == "int4" else "int4")}
        turn = store.add_turn(talk, "Hi", {}, answers, mode="chat", blind=True)
        for answer in answers.values():
            answer.state = State.DONE
        store.write(turn, answers)
        store.vote(turn, choice)


def test_votes_are_counted_by_backend_and_not_by_letter(tmp_path: Path) -> None:
    path = tmp_path / "new" / "votes.sqlite"
    with closing(Store.open(path)) as store:
        fill(store, ("int4", "a"), ("int4", "b"), ("fp16", "b"), ("fp16", "b"), ("fp16", "tie"))
        fill(store, ("fp16", "a"), model="other")
        # The store of a server that runs can be read.
        with closing(Store.read(path)) as reading:
            assert reading.tallies() == {
                ("demo", "fp16", "int4"): Tally(first=1, second=3, ties=1),
                ("other", "fp16", "int4"): Tally(1, 0, 0),
            }
            assert reading.tallies_by_side()["demo", "fp16", "int4"] == Tally(first=1, second=3, ties=1)


def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    with closing(Store.open(path)) as store:
        nothing = CliRunner().invoke(app, ["votes", str(path)])
        assert (nothing.exit_code, "holds no votes yet" in nothing.output) == (0, True)
        fill(store, *[("int4", "a")] * 9, ("fp16", "tie"))
    shown = CliRunner().invoke(app, ["votes", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "int4 preferred by 9 of 9" in " ".join(shown.output.split())
    assert "on the left was preferred by 9 of 9" in " ".join(shown.output.split())
    (pair,) = json.loads(CliRunner().invoke(app, ["votes", str(path), "--json"]).output)
    assert pair["verdict"] == "second"
    assert pair["tally"] == {"first": 0, "second": 9, "ties": 1}
    assert pair["p_value"] == pytest.approx(2 / 2**9)


def test_a_conversation_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    with closing(Store.open(path)) as store:
        talk = store.start("demo", "Ünïcode 🦀")
        answers = {"a": Answer("int4", weight_bytes=7), "b": Answer("fp16")}
        first = store.add_turn(talk, "Hi\n<b>", {"seed": 3}, answers, mode="chat", blind=False)
        answers["a"].text, answers["a"].state, answers["a"].tokens = "to be 🦀", State.DONE, 4
        answers["b"].state, answers["b"].error = State.FAILED, "out of memory"
        store.write(first, answers)
        second = store.add_turn(talk, "Ho", {}, answers, mode="chat", blind=True, replaces=first)
        store.vote(second, "tie")
        store.vote(second, "a")
    with closing(Store.open(path)) as store:
        found = store.conversation(talk)
        assert found is not None
        assert (found.model, found.title) == ("demo", "Ünïcode 🦀")
        assert [(turn.id, turn.replaced, turn.choice) for turn in found.turns] == [
            (first, True, None),
            (second, False, "tie"),
        ]
        assert found.turns[0].answers == answers
        assert (found.turns[0].prompt, found.turns[0].settings) == ("Hi\n<b>", {"seed": 3})
        store.delete(talk)
        assert (store.conversation(talk), store.turn(second), store.tallies()) == (None, None, {})


WRITES = """
import sys, time
from pathlib import Path
from qbench.serve.store import Answer, Store
store = Store.open(Path(sys.argv[1]))
answers = {"a": Answer("int4"), "b": Answer("fp16")}
turn = store.add_turn(store.start("demo", "t"), "Hi", {}, answers, mode="chat", blind=False)
for number in range(3):
    answers["a"].text += f"{number} "
    store.write(turn, answers)
print(turn, flush=True)
time.sleep(60)
"""


def test_a_kill_midway_keeps_what_had_arrived(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    with subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        turn = process.stdout.readline().strip()
        with pytest.raises(QbenchError, match="another `qbench serve` uses it"):
            Store.open(path)
        os.kill(process.pid, signal.SIGKILL)
    with closing(Store.open(path)) as store:
        found = store.turn(turn)
        assert found is not None
        assert (found.answers["a"].text, found.answers["a"].state) == ("0 1 2 ", State.INTERRUPTED)


def test_a_file_that_is_no_store_of_this_version_is_refused(tmp_path: Path) -> None:
    old, text, other = (tmp_path / name for name in ("old.sqlite", "text.sqlite", "other.sqlite"))
    Store.open(old).close()
    with closing(sqlite3.connect(old)) as raw:
        raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with closing(sqlite3.connect(other)) as raw:
        raw.execute("CREATE TABLE mine (x)")
    text.write_text("not a database, but long enough to look like one" * 20)
    for path, words in (
        (old, f"its schema is version {SCHEMA_VERSION + 1}, not"),
        (other, "version 0"),
        (text, "is no"),
    ):
        with pytest.raises(QbenchError, match=words):
            Store.open(path)
        with pytest.raises(QbenchError, match=words):
            Store.read(path)
    with pytest.raises(QbenchError, match="no such file"):
        Store.read(tmp_path / "missing.sqlite")
    assert text.read_text().startswith("not a database")
    with closing(sqlite3.connect(other)) as raw:
        assert raw.execute("SELECT name FROM sqlite_schema").fetchall() == [("mine",)]
