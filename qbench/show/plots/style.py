"""Colours and texts that every drawing shares. No drawing library is imported here."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qbench.config import Backend, backend_class

INK, FAINT, GRID, ALARM = "#222222", "#666666", "#e3e3e3", "#a83c00"

SPARE_COLORS = ("#56b4e9", "#d55e00", "#f0e442")
"""For kinds without a `color`. With those of the shipped kinds: Okabe–Ito, which colour-blind readers can tell apart;
grey, in place of its black, is the reference."""

HATCHES = ("", "///", "...", "xx")
"""In matplotlib's words."""

MANY_POINTS = 12
"""From here on the points of a series are small."""


@dataclass(frozen=True, slots=True)
class CellStyle:
    """What a cell looks like in every chart: the hue is its kind's; further cells of a kind are lighter, hatched."""

    fill: str
    edge: str
    """Colours as #rrggbb."""
    hatch: str


Looks = dict[str, CellStyle]
"""By the cells' names."""


def cell_styles(kinds: Sequence[str]) -> list[CellStyle]:
    """The styles of cells of these kinds, in their order."""
    own = {kind: (backend_class(kind) or Backend).color for kind in sorted(set(kinds))}
    spare = itertools.cycle(SPARE_COLORS)
    colors = {kind: color or next(spare) for kind, color in own.items()}
    seen: Counter[str] = Counter()
    styles = []
    for kind in kinds:
        nth = seen[kind]
        seen[kind] += 1
        styles.append(CellStyle(_lighter(colors[kind], nth), colors[kind], HATCHES[nth % len(HATCHES)]))
    return styles


def _lighter(color: str, steps: int) -> str:
    """Nearer to white with each step."""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - channel) * 0.55**steps):02x}" for channel in channels)


def shorten(text: str, length: int) -> str:
    """`text` in at most `length` characters, its middle left out, because names differ at their ends."""
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"


def wrap(text: str, width: int, lines: int) -> str:
    """`text` on at most `lines` lines of `width` characters, shortened if it has to be."""
    text = " ".join(text.split())
    for length in range(width * lines, 0, -1):
        wrapped = textwrap.wrap(shorten(text, length), width)
        if len(wrapped) <= lines:
            break
    return "\n".join(wrapped)
