"""Which tokens of many prompts need to be read only once: pure grouping of token sequences, without a model.

A `Row` is a stem and what may follow it: the choices of a question stand behind one copy of its prompt, and an answer
of one token adds nothing to read. A `Group` is rows whose stems begin alike; that beginning is read once for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from qbench.engine.base import Journal, Query, TokenCount, Tokens

GROUP_TOKENS = 256
"""What a group has to save: it costs a forward for its prefix, and a last batch that is not full."""

BRANCH_TOKENS = 512
"""The most tokens behind one copy of a stem: attention over a row costs the square of its length."""


@dataclass(frozen=True, slots=True)
class Row:
    """A stem with the distinct answers that are scored after it."""

    stem: Tokens
    answers: tuple[Tokens, ...]

    @property
    def branches(self) -> tuple[Tokens, ...]:
        """What is read after the stem, each as if the others were not there: answers without their last token."""
        return tuple(sorted({answer[:-1] for answer in self.answers} - {()}))

    @property
    def sequences(self) -> int:
        """Rows that it stands for, were nothing shared."""
        return max(1, len(self.branches))

    @property
    def tokens(self) -> int:
        """Tokens to read, those of a shared prefix among them."""
        return len(self.stem) + sum(map(len, self.branches))


@dataclass(frozen=True, slots=True)
class Group:
    """Rows, longest first, whose stems begin with the tokens of `prefix`, as `parent`'s do with those of its own.

    An empty prefix has no parent: rows that share nothing.
    """

    prefix: Tokens
    rows: tuple[Row, ...]
    parent: Group | None = None

    @property
    def fresh(self) -> Tokens:
        """The part of the prefix that the parent has not read."""
        return self.prefix[len(self.parent.prefix) :] if self.parent else self.prefix


def cut(context: Sequence[int], answer: Sequence[int], max_length: int) -> Query:
    """The query of a context and its answer, its beginning cut off where a model of `max_length` tokens needs it.

    The last token of an answer is only predicted: lm-evaluation-harness reads
    `(context + answer)[-(max_length + 1):][:-1]` (`HFLM._loglikelihood_tokens`), and so does this. `context` and
    `answer` are not empty, and the answer fits.
    """
    whole = (*context, *answer)[-(max_length + 1) :]
    return Query(whole[: len(whole) - len(answer)], tuple(answer))


def plan(queries: Iterable[Query], *, batch_size: int, share: bool) -> list[Group]:
    """The groups in which queries are read, each after its parent, the same for every order of `queries`.

    Args:
        batch_size: the most branches a row may have.
        share: whether rows may branch and groups may share a prefix.
    """
    rows = make_rows(queries, batch_size if share else 0)
    spans = shared_prefixes([row.stem for row in rows]) if share else []
    # The innermost span around every row; a span comes after the one around it.
    owner: list[int | None] = [None] * len(rows)
    for number, span in enumerate(spans):
        owner[span.first : span.end] = [number] * (span.end - span.first)
    members: dict[int | None, list[Row]] = {}
    for innermost, row in zip(owner, rows, strict=True):
        members.setdefault(innermost, []).append(row)
    groups: list[Group] = []
    for number, span in enumerate(spans):
        parent = None if span.parent is None else groups[span.parent]
        prefix = rows[span.first].stem[: span.depth]
        groups.append(Group(prefix, _longest_first(members.get(number, ())), parent))
    return [*groups, Group((), _longest_first(members[None]))] if None in members else groups


def make_rows(queries: Iterable[Query], most_branches: int) -> list[Row]:
    """The distinct queries as rows, sorted by stem; answers of one token go with the first row of their stem.

    Without branches (0), a row is what a model that shares nothing reads for its answers.
    """
    by_stem: dict[Tokens, set[Tokens]] = {}
    for query in queries:
        by_stem.setdefault(query.stem, set()).add(query.answer)
    rows: list[Row] = []
    for stem in sorted(by_stem):
        chunk: list[Tokens] = []
        # Sorted by what is read, so that answers that share their branch stay together.
        for answer in sorted(by_stem[stem], key=lambda answer: (answer[:-1], answer)):
            wider = Row(stem, (*chunk, answer))
            if not most_branches:
                full = bool(chunk) and answer[:-1] != chunk[-1][:-1]
            else:
                full = len(wider.branches) > most_branches or wider.tokens - len(stem) > BRANCH_TOKENS
            if chunk and full:
                rows.append(Row(stem, tuple(chunk)))
                chunk = []
            chunk.append(answer)
        rows.append(Row(stem, tuple(chunk)))
    return rows


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbours from `first` to before `end` that begin with the same `depth` tokens."""

    depth: int
    first: int
    end: int
    parent: int | None
    """Number of the span around it."""


@dataclass(slots=True)
class _Node:
    """All neighbours that begin with the same `depth` tokens, and those among them that share more."""

    depth: int
    first: int
    end: int = 0
    children: list[_Node] = field(default_factory=list)


def shared_prefixes(stems: Sequence[Tokens]) -> list[Span]:
    """Where sorted stems begin alike so far that reading the beginning once pays, outer spans before inner ones.

    A span pays if all of its stems but one skip more than `GROUP_TOKENS` tokens in sum, those apart that the span
    around it shares already. Every stem keeps at least its last token, the one that predicts.
    """
    spans: list[Span] = []
    todo: list[tuple[_Node, int | None]] = [(_tree(stems), None)]
    while todo:
        node, parent = todo.pop()
        known = 0 if parent is None else spans[parent].depth
        if (node.end - node.first - 1) * (node.depth - known) > GROUP_TOKENS:
            spans.append(Span(node.depth, node.first, node.end, parent))
            parent = len(spans) - 1
        todo += [(child, parent) for child in reversed(node.children)]
    return spans


def _tree(stems: Sequence[Tokens]) -> _Node:
    """The tree of shared beginnings, from the common lengths of neighbours.

    Abouelhoda, Kurtz and Ohlebusch, “Replacing suffix trees with enhanced suffix arrays”, 2004, algorithm 4.4.
    """
    stack = [_Node(0, 0)]
    for end in range(1, len(stems) + 1):
        depth = _common(stems[end - 1], stems[end]) if end < len(stems) else 0
        done: _Node | None = None
        while stack[-1].depth > depth:
            node = stack.pop()
            node.children += [done] if done else []
            node.end = end
            done = node
        if stack[-1].depth < depth:
            stack.append(_Node(depth, done.first if done else end - 1))
        stack[-1].children += [done] if done else []
    stack[0].end = len(stems)
    return stack[0]


def _common(a: Tokens, b: Tokens) -> int:
    """Tokens with which both begin, the last of either not counted."""
    most = min(len(a), len(b)) - 1
    return next((i for i in range(most) if a[i] != b[i]), most)


def batches(group: Group, batch_size: int) -> list[tuple[Row, ...]]:
    """The rows of a group, in order, in batches that stand for `batch_size` sequences at most."""
    found: list[tuple[Row, ...]] = []
    batch: list[Row] = []
    sequences = 0
    for row in group.rows:
        if batch and sequences + row.sequences > batch_size:
            found.append(tuple(batch))
            batch, sequences = [], 0
        batch.append(row)
        sequences += row.sequences
    return [*found, tuple(batch)] if batch else found


def queries_of(rows: Iterable[Row]) -> list[Query]:
    """Every query of a batch, in order."""
    return [Query(row.stem, answer) for row in rows for answer in row.answers]


def name_of(rows: Iterable[Row]) -> str:
    """A name for a batch that stands for all of its tokens."""
    return hashlib.sha256(repr([(row.stem, row.answers) for row in rows]).encode()).hexdigest()


def begun(groups: Sequence[Group], batch_size: int, journal: Journal | None) -> bool:
    """Whether the first answers that share something are in the journal: they were checked before these were read."""
    sharing = [group for group in groups if group.prefix or any(len(row.branches) > 1 for row in group.rows)]
    first = next((rows for group in sharing for rows in batches(group, batch_size)), None)
    return journal is not None and first is not None and journal.get(name_of(first)) is not None


def count(groups: Iterable[Group], batch_size: int) -> TokenCount:
    """What reading the groups costs: each prefix once, then what remains of its rows, padded in their batches."""
    read = padded = 0
    for group in groups:
        lengths = [[row.tokens - len(group.prefix) for row in batch] for batch in batches(group, batch_size)]
        read += len(group.fresh) + sum(map(sum, lengths))
        padded += len(group.fresh) + sum(len(batch) * max(batch) for batch in lengths)
    return TokenCount(read, padded)


def count_unshared(pairs: Iterable[Sequence[Sequence[int]]], max_length: int, batch_size: int) -> TokenCount:
    """What lm-evaluation-harness reads for pairs (context, answer): distinct inputs, longest first, in batches."""
    inputs = {(*context, *answer[:-1]) for context, answer in pairs}
    lengths = sorted((min(len(tokens), max_length) for tokens in inputs), reverse=True)
    starts = range(0, len(lengths), batch_size)
    return TokenCount(sum(lengths), sum(lengths[i] * len(lengths[i : i + batch_size]) for i in starts))


def _longest_first(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (-row.tokens, row.stem, row.answers)))
