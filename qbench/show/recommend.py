"""A recommendation in words, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qbench.analysis.effects import speed_ratio
from qbench.analysis.formulas import electricity_per_million_tokens
from qbench.decide.candidates import Candidate, points
from qbench.decide.constraints import UNLIMITED, Limits, doubt, need_memory
from qbench.decide.doubts import Doubt
from qbench.decide.recommend import Change, Pick, Recommendation, difference_of, tie_break
from qbench.decide.serving import difference as goodput_difference
from qbench.show.formats import tokens
from qbench.show.phrases import level_words, p_words, ratio_words
from qbench.show.verdicts import settled_by
from qbench.text import human_bytes, signed

SINGLE_TRIAL = " (a single trial: no interval)"
"""Behind a ratio that has none."""


@dataclass(frozen=True, slots=True)
class Prices:
    """In any one currency; None is not given."""

    per_hour: float | None = None
    """Of the machine."""
    per_kwh: float | None = None
    """Of electricity."""


NO_PRICES = Prices()


def lines(found: Recommendation, prices: Prices = NO_PRICES) -> Iterator[str]:
    """What a person reads."""
    yield from (f"note: {note}" for note in found.notes)
    if found.pick is None:
        yield from _nothing(found)
    else:
        named = found.pick.named
        at = f"at batch {found.batch_size}" if named.speeds else "after its first forward"
        if found.objective == "goodput" and named.served:
            at = f"under load, {level_words(named.served.level)}"
        yield f"{named.name} {at}: {_figures(named, prices)}"
        yield from (f"  {line}" for line in reasons(found, found.pick))
        yield from (f"  inconclusive: {line}" for line in open_questions(found))
        yield from (f"  but: {line}" for line in named.caveats)
    if second := found.runner_up:
        yield f"runner-up: {second.name}: {_figures(second, prices)}"
        yield from (f"  but: {line}" for line in caveats(second, found.limits))
    if found.pick and found.changes:
        yield "what would change the answer:"
        yield from (f"  {_options(change, found.limits)}: {_named(change)}" for change in found.changes)
    if found.excluded:
        yield "left out:"
        yield from (f"  {candidate.name}: {why}" for candidate, why in found.excluded)


def reasons(found: Recommendation, pick: Pick) -> Iterator[str]:
    """Why the named one: by the objective or a tie, its accuracy, and which constraint binds."""
    yield _advantage(found, pick)
    if pick.named.drop:
        yield f"accuracy against the 16-bit cell: {points(pick.named.drop)}"
    for change in found.binding:
        option = (
            "--max-memory" if change.limits.memory_bytes == UNLIMITED != found.limits.memory_bytes else "--max-drop"
        )
        yield f"{option} binds: without it {_named(change)}"
    if str(found.limits) and not found.binding:
        yield f"no constraint binds: without {found.limits} it would be named, too"


def open_questions(found: Recommendation) -> Iterator[str]:
    """What the figures do not show of the named one, and what would settle it."""
    for one in found.doubts:
        yield f"{_doubt(found, one)}; {settled_by(one.needed, one.unit)}"


def _doubt(found: Recommendation, one: Doubt) -> str:
    if one.what == "drop" and found.pick:
        return doubt(found.pick.named, found.limits)
    unit = "points" if one.what == "accuracy" else "%"
    loss, allowed = (f"{value:g} {unit}" for value in (math.ceil(1000 * one.loss) / 10, 100 * one.allowed))
    if one.what == "energy":
        return f"{loss} more energy than {one.against} takes cannot be excluded, {allowed} count as none"
    return f"a loss of {loss} of {one.what} against {one.against} cannot be excluded, {allowed} count as none"


def caveats(candidate: Candidate, limits: Limits) -> list[str]:
    """What has to be said of a candidate that is named."""
    return [*filter(None, [doubt(candidate, limits)]), *candidate.caveats]


def cost_per_million_tokens(candidate: Candidate, cost_per_hour: float | None) -> float | None:
    """cost_per_hour ÷ 3600 ÷ tokens/s × 10⁶, of decoding alone and at full load; None without a speed or a cost."""
    if cost_per_hour is None or candidate.speed is None:
        return None
    return cost_per_hour / 3600 / candidate.speed * 1e6


def to_dict(found: Recommendation, prices: Prices = NO_PRICES) -> dict[str, Any]:
    """For a script: bytes, tokens/s and fractions; null where there is no value or no limit."""
    return {
        "objective": found.objective,
        "batch_size": found.batch_size,
        "limits": _limits(found.limits),
        "slo": found.slo.model_dump() if found.slo else None,
        "recommended": _choice(found.pick.named, found.limits, prices) if found.pick else None,
        "tied_with": [one.name for one in found.pick.tied if one is not found.pick.named] if found.pick else [],
        "reasons": list(reasons(found, found.pick)) if found.pick else [],
        "runner_up": _choice(found.runner_up, found.limits, prices) if found.runner_up else None,
        "inconclusive": list(open_questions(found)),
        "changes": [_change(change, found.limits) for change in found.changes] if found.pick else [],
        "relaxations": [] if found.pick else [_change(change, found.limits) for change in found.changes],
        "left_out": [{"name": one.name, "run": str(one.folder), "reason": why} for one, why in found.excluded],
        "notes": list(found.notes),
    }


def _advantage(found: Recommendation, pick: Pick) -> str:
    named = pick.named
    if found.fitting == 1:
        return "the only one that fits" if str(found.limits) else "the only one that can be named"
    if len(pick.tied) == 1:
        words = {
            "speed": "fastest",
            "memory": "smallest",
            "accuracy": "most accurate",
            "goodput": "best",
            "energy": "most economical",
        }
        word = words[found.objective]
        return f"the {word} of {found.fitting}: {_against(found, found.runner_up, named)}"
    others = [one for one in pick.tied if one is not named]
    rival = pick.leader if named is not pick.leader else min(others, key=tie_break)
    if found.objective == "memory":
        return f"as small as {_names(others)}; {_tie_words(named, rival)}"
    return f"not told apart from {_names(others)} ({_against(found, rival, named)}); {_tie_words(named, rival)}"


def _against(found: Recommendation, other: Candidate | None, named: Candidate) -> str:
    """The named one's figure against another's."""
    if other is None:
        return _figures(named, NO_PRICES)
    if found.objective == "speed":
        return f"{ratio_words(speed_ratio(other.samples, named.samples), SINGLE_TRIAL)} the speed of {other.name}"
    if found.objective == "energy":
        ratio = speed_ratio(other.energy_samples, named.energy_samples)
        return f"{ratio_words(ratio, SINGLE_TRIAL)} the energy a token of {other.name}"
    if found.objective == "memory":
        return f"{human_bytes(need_memory(named))} against {human_bytes(need_memory(other))} of {other.name}"
    if found.objective == "goodput" and named.served and other.served:
        delta, low, high = goodput_difference(other.served.goodput, named.served.goodput)
        interval = f"[{signed(low, 2)}, {signed(high, 2)}]"
        return f"{signed(delta, 2)} {interval} requests/s within {found.slo} against {other.name}"
    difference = difference_of(other, named)
    return f"{points(difference)} against {other.name}, {p_words(difference.p_value)}" if difference else ""


def _tie_words(named: Candidate, rival: Candidate) -> str:
    if need_memory(named) < need_memory(rival):
        own, other = human_bytes(need_memory(named)), human_bytes(need_memory(rival))
        return f"smaller memory wins: {own} against {other} of {rival.name}"
    if named.bits is not None and (rival.bits is None or named.bits < rival.bits):
        other_bits = "an unknown number" if rival.bits is None else f"{rival.bits:.2f}"
        return f"fewer bits win: {named.bits:.2f} against {other_bits} of {rival.name}"
    return "memory and bits are the same, the faster wins"


def _nothing(found: Recommendation) -> Iterator[str]:
    yield f"nothing fits {found.limits}" if str(found.limits) else "no cell can be named"
    yield from (f"  relax {_options(change, found.limits)}: {_named(change)}" for change in found.changes)


def _figures(candidate: Candidate, prices: Prices) -> str:
    cost = cost_per_million_tokens(candidate, prices.per_hour)
    electricity = electricity_per_million_tokens(candidate.energy, prices.per_kwh)
    parts = [
        f"goodput {tokens(candidate.served.goodput.per_s)} requests/s" if candidate.served else "",
        f"{candidate.speed:,.1f} tok/s" if candidate.speed else "",
        f"{candidate.energy:.3g} J a token" if candidate.energy else "",
        human_bytes(candidate.memory_bytes) if candidate.memory_bytes is not None else "",
        f"accuracy {100 * candidate.accuracy.value:.2f} %" if candidate.accuracy else "",
        f"{candidate.bits:.2f} bits a weight" if candidate.bits is not None else "",
        f"{cost:,.4g} a million tokens" if cost is not None else "",
        f"{electricity:,.4g} for the electricity of a million tokens" if electricity is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _options(change: Change, limits: Limits) -> str:
    """The constraints that a change changes, and by how much where it loosens them."""
    words = []
    if change.limits.memory_bytes != limits.memory_bytes:
        more = change.limits.memory_bytes - limits.memory_bytes
        words.append(
            f"{Limits(memory_bytes=change.limits.memory_bytes)}" + (f" ({human_bytes(more)} more)" if more > 0 else "")
        )
    if change.limits.drop_points != limits.drop_points:
        more = change.limits.drop_points - limits.drop_points
        words.append(f"{Limits(drop_points=change.limits.drop_points)}" + (f" ({more:.2f} more)" if more > 0 else ""))
    return " and ".join(words)


def _named(change: Change) -> str:
    return f"{change.named.name} would be named" if change.named else "nothing would fit"


def _names(candidates: list[Candidate]) -> str:
    return ", ".join(one.name for one in candidates)


def _limits(limits: Limits) -> dict[str, float | None]:
    values = {"max_memory_bytes": limits.memory_bytes, "max_drop_points": limits.drop_points}
    return {key: None if value == UNLIMITED else value for key, value in values.items()}


def _change(change: Change, limits: Limits) -> dict[str, Any]:
    named = change.named.name if change.named else None
    return {**_limits(change.limits), "options": _options(change, limits), "recommended": named}


def _choice(candidate: Candidate, limits: Limits, prices: Prices) -> dict[str, Any]:
    drop = candidate.drop
    return {
        "name": candidate.name,
        "run": str(candidate.folder),
        "model": candidate.model,
        "backend": candidate.backend,
        "label": candidate.label,
        "bits_per_weight": candidate.bits,
        "peak_memory_bytes": candidate.memory_bytes,
        "decode_tokens_per_s": candidate.speed,
        "goodput_per_s": candidate.served.goodput.per_s if candidate.served else None,
        "goodput_level": candidate.served.level.level if candidate.served else None,
        "joules_per_token": candidate.energy,
        "accuracy": candidate.accuracy.value if candidate.accuracy else None,
        "accuracy_delta": drop.delta if drop else None,
        "accuracy_delta_low": drop.low if drop else None,
        "accuracy_delta_high": drop.high if drop else None,
        "cost_per_million_tokens": cost_per_million_tokens(candidate, prices.per_hour),
        "electricity_per_million_tokens": electricity_per_million_tokens(candidate.energy, prices.per_kwh),
        "caveats": caveats(candidate, limits),
    }
