"""Grouping of token sequences, with answers counted by hand and properties of any input."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbench.engine import prefix_groups
from qbench.engine.base import Query, TokenCount
from qbench.engine.prefix_groups import batches, count, count_unshared, cut, make_rows, plan


def queries(context: str, *answers: str) -> list[Query]:
    """Every character is a token."""
    return [Query(tuple(map(ord, context)), tuple(map(ord, answer))) for answer in answers]


@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 7, 100])
def test_a_prompt_is_cut_where_lm_eval_cuts_it(max_length: int) -> None:
    context, answer = [1, 2, 3, 4], [5, 6, 7]
    query = cut(context, answer, max_length)
    assert (*query.stem, *query.answer[:-1]) == tuple((context + answer)[-(max_length + 1) :][:-1])
    assert query.answer == (5, 6, 7)
    assert len(query.stem) >= 1


def test_answers_of_one_token_cost_nothing_and_longer_ones_stand_behind_one_prompt() -> None:
    (letters,) = make_rows(queries("question", "A", "B", "C", "D"), 8)
    assert (letters.branches, letters.tokens, letters.sequences) == ((), 8, 1)
    (row,) = make_rows(queries("question", "A", "cat", "cab", "doggy"), 8)
    assert row.branches == (tuple(b"ca"), tuple(b"dogg"))
    assert (row.tokens, row.sequences) == (8 + 2 + 4, 2)


def test_rows_have_no_more_branches_and_tokens_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    endings = queries("question", "one", "two", "three", "four", "x")
    assert [len(row.branches) for row in make_rows(endings, 1)] == [1, 1, 1, 1]
    assert [len(row.branches) for row in make_rows(endings, 3)] == [3, 1]
    monkeypatch.setattr(prefix_groups, "BRANCH_TOKENS", 6)
    assert max(row.tokens for row in make_rows(endings, 8)) <= len("question") + 6


def test_two_subjects_are_two_groups_and_a_passage_is_a_group_in_one() -> None:
    first, second, passage = "a" * 200, "b" * 150, "p" * 300
    asked = [
        *(query for i in range(4) for query in queries(f"{first}{i}?", "A", "B")),
        *(query for i in range(3) for query in queries(f"{second}{i}?", "A", "B")),
        *(query for i in range(5, 8) for query in queries(f"{first}{passage}{i}?", "A", "B")),
        *queries("alone", "A", "B"),
    ]
    random.Random(0).shuffle(asked)
    groups = plan(asked, batch_size=4, share=True)
    assert [(len(group.prefix), len(group.fresh), len(group.rows)) for group in groups] == [
        (200, 200, 4), (500, 300, 3), (150, 150, 3), (0, 0, 1),
    ]  # fmt: skip
    assert groups[1].parent is groups[0]
    tokens = 200 + 4 * 2 + 300 + 3 * 2 + 150 + 3 * 2 + 5
    assert count(groups, 4) == TokenCount(tokens, tokens)
    pairs = [(query.stem, query.answer) for query in asked]
    read = 4 * 202 + 3 * 502 + 3 * 152 + 5
    # Longest first, by fours: 502 502 502 202 | 202 202 202 152 | 152 152 5.
    assert count_unshared(pairs, 1000, 4) == TokenCount(read, 4 * 502 + 4 * 202 + 3 * 152)


def test_little_that_is_shared_makes_no_group() -> None:
    few = [query for i in range(3) for query in queries("x" * 100 + f"{i}?", "A")]
    assert [len(group.prefix) for group in plan(few, batch_size=8, share=True)] == [0]
    more = [query for i in range(4) for query in queries("x" * 100 + f"{i}?", "A")]
    assert [len(group.prefix) for group in plan(more, batch_size=8, share=True)] == [100]


def test_nothing_is_shared_where_it_must_not_be() -> None:
    asked = [query for i in range(9) for query in queries("x" * 100 + f"{i}?", "A", "one", "two")]
    (group,) = plan(asked, batch_size=8, share=False)
    assert group.prefix == ()
    assert all(len(row.branches) <= 1 for row in group.rows)


def test_batches_stand_for_no_more_sequences_than_their_size() -> None:
    asked = [query for i in range(5) for query in queries(f"{i}?", "one", "two", "three")]
    (group,) = plan(asked, batch_size=8, share=True)
    assert [len(batch) for batch in batches(group, 8)] == [2, 2, 1]


words = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=25), st.integers(1, 5), st.integers(0, 8), st.randoms())
def test_every_query_is_read_once_behind_its_own_tokens(
    monkeypatch: pytest.MonkeyPatch,
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]],
    batch_size: int,
    pays: int,
    order: random.Random,
) -> None:
    monkeypatch.setattr(prefix_groups, "GROUP_TOKENS", pays)
    asked = [Query(stem, answer) for stem, answer in pairs]
    groups = plan(asked, batch_size=batch_size, share=True)
    read = [Query(row.stem, answer) for group in groups for row in group.rows for answer in row.answers]
    assert len(read) == len(set(read))
    assert set(read) == set(asked)
    for i, group in enumerate(groups):
        if group.parent is not None:
            assert any(group.parent is earlier for earlier in groups[:i])
            assert group.prefix[: len(group.parent.prefix)] == group.parent.prefix
        for row in group.rows:
            assert row.stem[: len(group.prefix)] == group.prefix
            assert len(row.stem) > len(group.prefix), "the token that predicts stays"
        for batch in batches(group, batch_size):
            assert sum(row.sequences for row in batch) <= batch_size
    assert count(groups, batch_size).read <= sum(len(query.stem) + len(query.answer) - 1 for query in set(asked))
    shuffled = order.sample(asked, len(asked))
    assert plan(shuffled, batch_size=batch_size, share=True) == groups


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(words, min_size=2, max_size=20, unique=True))
def test_where_every_span_pays_each_distinct_beginning_is_read_once(
    monkeypatch: pytest.MonkeyPatch, stems: list[tuple[int, ...]]
) -> None:
    """Then the tokens read are the nodes of a trie, with the last token of every stem apart."""
    monkeypatch.setattr(prefix_groups, "GROUP_TOKENS", 0)
    groups = plan([Query(stem, (0,)) for stem in stems], batch_size=4, share=True)
    trie = {stem[:length] for stem in stems for length in range(1, len(stem))}
    assert count(groups, 4).read == len(trie) + len(stems)
