"""Log-likelihoods of many answers, reading what prompts have in common once.

A shared beginning is a sequence of its own in the cache, which lends its cells to the sequences of every batch that
begins with it (`llama_memory_seq_cp`). The answers behind one copy of a prompt are sequences that share its cells, too,
and hence do not see each other. Groups and batches are those of the torch engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qbench.engine import prefix_groups
from qbench.engine.base import Answer, Journal, Query
from qbench.engine.llama_cpp.context import MAX_SEQUENCES, Context, Tokens
from qbench.engine.llama_cpp.logprobs import log_softmax
from qbench.engine.prefix_groups import Group, Row
from qbench.errors import QbenchError

TOLERANCE = 0.25
"""Difference of a token's log-probability, in nats. Activations are rounded for a product, to 8 bits in front of most
quantized weights, and what another order of sums makes of that is up to 0.12 for improbable tokens of the demo model;
positions that are wrong by a place differ by 0.3 and more."""

MakeContext = Callable[[int, int], Context]
"""A unified context of so many tokens and sequences."""


class PrefixReader:
    """Answers queries group by group. A batch stands for `batch_size` sequences at most.

    Raises:
        QbenchError: llama.cpp has not so many sequences.
    """

    def __init__(
        self, make: MakeContext, groups: Sequence[Group], batch_size: int, at_once: int, journal: Journal | None
    ) -> None:
        depth = max((len(_chain(group)) for group in groups), default=0)
        if depth + batch_size > MAX_SEQUENCES:
            raise QbenchError(
                f"batch_size: {batch_size} sequences, and llama.cpp has {MAX_SEQUENCES - depth} here; ask for fewer"
            )
        self._make, self._groups, self._batch_size = make, groups, batch_size
        self._first = depth
        self._at_once = at_once
        self._journal = journal

    def read(self) -> Iterator[dict[Query, Answer]]:
        """The answers of every batch: first those in the journal, then the others as they are read."""
        missing: list[tuple[Group, list[tuple[Row, ...]]]] = []
        for group in self._groups:
            left: list[tuple[Row, ...]] = []
            for rows in prefix_groups.batches(group, self._batch_size):
                known = self._journal.get(prefix_groups.name_of(rows)) if self._journal else None
                if known is None:
                    left.append(rows)
                else:
                    yield dict(zip(prefix_groups.queries_of(rows), known, strict=True))
            if left:
                missing.append((group, left))
        yield from self._read(missing) if missing else ()

    def _read(self, missing: Sequence[tuple[Group, list[tuple[Row, ...]]]]) -> Iterator[dict[Query, Answer]]:
        cells = max(_cells(group, rows) for group, batches in missing for rows in batches)
        context = self._make(cells, self._first + self._batch_size)
        held: list[Group] = []
        try:
            for group, batches in missing:
                held = self._hold(context, held, group)
                for rows in batches:
                    found = self._read_rows(context, rows, len(group.prefix), len(held) - 1)
                    yield found
                    # Not before: whoever took them refuses NaN.
                    if self._journal:
                        answers = [found[query] for query in prefix_groups.queries_of(rows)]
                        self._journal.put(prefix_groups.name_of(rows), answers)
        finally:
            context.close()

    def _hold(self, context: Context, held: list[Group], group: Group) -> list[Group]:
        """Read the prefixes that `group` builds on and that are not in the cache; drop those that it does not need.

        The prefix at place i of what is held is sequence i.
        """
        needed = _chain(group)
        same = 0
        while same < min(len(held), len(needed)) and held[same] is needed[same]:
            same += 1
        for number in range(same, len(held)):
            context.drop(number)
        for number in range(same, len(needed)):
            if number:
                context.lend(number - 1, number)
            fresh = needed[number].fresh
            start = len(needed[number].prefix) - len(fresh)
            ids, places = np.array(fresh), np.arange(start, start + len(fresh))
            tokens = Tokens(ids, places, [(number,)] * len(fresh), np.zeros(len(fresh), bool))
            for _ in context.read(tokens, self._at_once):
                pass
        return needed

    def _read_rows(self, context: Context, rows: Sequence[Row], prefix: int, lender: int) -> dict[Query, Answer]:
        """Every answer of `rows`, whose first `prefix` tokens are those of the sequence `lender`."""
        layout = Layout(self._first)
        for row in rows:
            layout.add(row, prefix)
        numbers = range(self._first, layout.end)
        for number in numbers if prefix else ():
            context.lend(lender, number)
        sums = dict.fromkeys(prefix_groups.queries_of(rows), 0.0)
        greedy = dict.fromkeys(sums, True)
        for places, logits in context.read(layout.tokens(), self._at_once):
            logprobs, best = log_softmax(logits), logits.argmax(-1)
            for line, place in enumerate(places):
                for query, token in layout.looks[int(place)]:
                    sums[query] += float(logprobs[line, token])
                    greedy[query] &= bool(best[line] == token)
        for number in numbers:
            context.drop(number)
        return {query: (sums[query], greedy[query]) for query in sums}


@dataclass(slots=True)
class Layout:
    """Rows as one list of tokens: of each, its stem and then its branches, which are sequences that share the stem."""

    end: int
    """The next number of a sequence that is not taken."""
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[tuple[int, ...]] = field(default_factory=list)
    looks: dict[int, list[tuple[Query, int]]] = field(default_factory=dict)
    """By the place whose logits are looked at, the queries and the tokens whose log-probability they ask for."""

    def add(self, row: Row, prefix: int) -> None:
        """A row whose first `prefix` tokens are in the cache."""
        numbers = tuple(range(self.end, self.end + row.sequences))
        self.end += len(numbers)
        self._put(row.stem[prefix:], prefix, numbers)
        last = len(self.ids) - 1
        starts: dict[tuple[int, ...], int] = {}
        for number, branch in zip(numbers, row.branches, strict=False):
            starts[branch] = len(self.ids)
            self._put(branch, len(row.stem), (number,))
        for answer in row.answers:
            start = starts.get(answer[:-1], 0)
            for place, token in zip((last, *range(start, start + len(answer) - 1)), answer, strict=True):
                self.looks.setdefault(place, []).append((Query(row.stem, answer), token))

    def tokens(self) -> Tokens:
        """What is read."""
        wanted = np.zeros(len(self.ids), bool)
        wanted[list(self.looks)] = True
        return Tokens(np.array(self.ids), np.array(self.positions), self.sequences, wanted)

    def _put(self, tokens: Sequence[int], start: int, numbers: tuple[int, ...]) -> None:
        self.ids += tokens
        self.positions += range(start, start + len(tokens))
        self.sequences += [numbers] * len(tokens)


def sharing_agrees(make: MakeContext, groups: Sequence[Group], batch_size: int, at_once: int) -> bool:
    """Whether the answers of the longest prompt that shares a beginning, and of the longest that branches, are those
    of plain prompts."""
    rows = [(group, row) for group in groups for row in group.rows]
    after_prefix = [(group, row) for group, row in rows if group.prefix]
    branching = [(group, row) for group, row in rows if len(row.branches) > 1]
    for candidates in (after_prefix, branching):
        group, row = max(candidates, key=lambda pair: pair[1].tokens, default=(None, None))
        if group and row and not _agree(make, group, row, batch_size, at_once):
            return False
    return True


def _agree(make: MakeContext, group: Group, row: Row, batch_size: int, at_once: int) -> bool:
    queries = prefix_groups.queries_of([row])
    plain = prefix_groups.plan(queries, batch_size=batch_size, share=False)
    found: list[dict[Query, Answer]] = []
    for planned in ([replace(group, rows=(row,))], plain):
        answers: dict[Query, Answer] = {}
        for batch in PrefixReader(make, planned, batch_size, at_once, None).read():
            answers |= batch
        found.append(answers)
    differences = [abs(found[0][query][0] - found[1][query][0]) / len(query.answer) for query in queries]
    # NaN is refused by whoever takes the answers.
    return not max(differences) > TOLERANCE


def _chain(group: Group) -> list[Group]:
    """The groups that a group builds on, outermost first, and itself if it has a prefix."""
    return [*(_chain(group.parent) if group.parent else ()), *([group] if group.prefix else ())]


def _cells(group: Group, rows: Sequence[Row]) -> int:
    """Tokens that are in the cache while a batch is read."""
    return len(group.prefix) + sum(row.tokens - len(group.prefix) for row in rows)
