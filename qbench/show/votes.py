"""What blind votes say of two backends: as lines, as a table, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from qbench.analysis.power import SIGNIFICANCE
from qbench.analysis.votes import Judged, Preference, Tally, judge_votes, sign_test
from qbench.show.phrases import p_words
from qbench.show.verdicts import settled_by
from qbench.text import signed

Pair = tuple[str, str, str]
"""A model and two backends."""


@dataclass(frozen=True, slots=True)
class PairVotes:
    """The votes on two backends of a model."""

    model: str
    first: str
    second: str
    judged: Judged
    left: Tally
    """The same votes, where the first is whichever answer stood on the left."""

    @property
    def words(self) -> str:
        """See `vote_words`."""
        return vote_words(self.judged, self.first, self.second)


def judge_pairs(tallies: Mapping[Pair, Tally], sides: Mapping[Pair, Tally], margin: float) -> list[PairVotes]:
    """The verdicts on all pairs; `sides` is `qbench.serve.store.Store.tallies_by_side`."""
    judged = judge_votes(list(tallies.values()), margin)
    return [PairVotes(*pair, one, sides[pair]) for pair, one in zip(tallies, judged, strict=True)]


def vote_words(found: Judged, first: str, second: str) -> str:
    """`int4 preferred by 31 of 40 votes that prefer one, p < 0.001`, `no difference larger than 10 points: int4 leads
    by +1.0 [−4.2, +6.1]` or `inconclusive: a lead of up to 21 points cannot be excluded; about 390 votes would settle
    it`.

    Points are percent of all votes, p is the sign test's after Holm's correction.
    """
    if found.verdict is Preference.INCONCLUSIVE:
        most = math.ceil(100 * max(map(abs, found.lead)))
        return f"inconclusive: a lead of up to {most} points cannot be excluded; {settled_by(found.needed, 'votes')}"
    ahead = found.tally.lead >= 0
    if found.verdict is Preference.NO_DIFFERENCE:
        ends = found.lead if ahead else (-found.lead[1], -found.lead[0])
        lead, low, high = (signed(100 * value, 1) for value in (abs(found.tally.lead), *ends))
        margin = f"{100 * found.margin:g} points"
        return f"no difference larger than {margin}: {first if ahead else second} leads by {lead} [{low}, {high}]"
    name, votes = (first, found.tally.first) if ahead else (second, found.tally.second)
    return f"{name} preferred by {votes:,} of {found.tally.decided:,} votes that prefer one, {p_words(found.p_holm)}"


def side_words(pair: PairVotes) -> str | None:
    """A warning where people prefer a place; None where they do not."""
    left = pair.left
    if (p_value := sign_test(left.first, left.second)) >= SIGNIFICANCE:
        return None
    place, votes = ("left", left.first) if left.first > left.second else ("right", left.second)
    return (
        f"{pair.first} and {pair.second}: the answer on the {place} was preferred by {votes:,} of {left.decided:,} "
        f"votes, {p_words(p_value)}; the order is drawn, so that this blurs preferences and does not turn them"
    )


def table(pairs: Sequence[PairVotes]) -> Table:
    """A row for each pair, and how it is to be read."""
    found = Table(caption="\n".join(reading(pairs)), caption_justify="left")
    for heading in ("model", "backends"):
        found.add_column(heading)
    for heading in ("votes", "first", "second", "neither", "share of first [%]"):
        found.add_column(heading, justify="right")
    found.add_column("verdict")
    for pair in pairs:
        tally, (low, high) = pair.judged.tally, pair.judged.share
        share = f"{100 * tally.first / tally.decided:.0f} [{100 * low:.0f}, {100 * high:.0f}]" if tally.decided else ""
        counts = (f"{count:,}" for count in (tally.n, tally.first, tally.second, tally.ties))
        names = escape(f"{pair.first}, {pair.second}")
        found.add_row(escape(pair.model), names, *counts, escape(share), escape(pair.words))
    return found


def reading(pairs: Sequence[PairVotes]) -> list[str]:
    """Lines below the table."""
    lines = [
        "share: of the votes that prefer one, with its exact interval; intervals hold together with 95 %",
        "p: exact sign test, corrected by Holm; decide how many votes to take before you look",
    ]
    return lines + [words for pair in pairs if (words := side_words(pair))]


def to_dict(pairs: Sequence[PairVotes]) -> list[dict[str, Any]]:
    """What `--json` prints: counts, and shares of 1."""
    return [
        {
            "model": pair.model,
            "backends": [pair.first, pair.second],
            **asdict(pair.judged),
            "left": asdict(pair.left),
            "words": pair.words,
        }
        for pair in pairs
    ]
