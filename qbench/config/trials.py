"""Names of the throughput's trials, under which each is kept."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

_NAME = re.compile(r"(?:throughput/)?(?:s(\d+)/)?(?:d(\d+)/)?b(\d+)/t(\d+)")


class Trial(NamedTuple):
    """What tells a trial from the others of its cell."""

    start: int
    """Which process of the cell makes it, from 0 on."""
    depth: int
    """Tokens in the cache before the prompt."""
    batch_size: int
    number: int

    @property
    def unit(self) -> str:
        """`s1/d512/b8/t0`; without the first start and without a depth of 0, as runs that knew no other."""
        start, depth = f"s{self.start}" if self.start else "", f"d{self.depth}" if self.depth else ""
        return "/".join(filter(None, (start, depth, f"b{self.batch_size}", f"t{self.number}")))

    @classmethod
    def parse(cls, unit: str) -> Self | None:
        """The trial of a unit's name, `throughput/…` or without that; None if it is none."""
        found = _NAME.fullmatch(unit)
        return cls(*(int(text or 0) for text in found.groups())) if found else None


def start_of(unit: str) -> int:
    """Which start of its cell measures a unit; the first, 0, measures all that are no trials."""
    trial = Trial.parse(unit)
    return trial.start if trial else 0
