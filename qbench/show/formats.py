"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.text import MISSING


def number(value: float | None, pattern: str) -> str:
    """`value` by a pattern of `str.format`; a dash for a missing one."""
    return MISSING if value is None else pattern.format(value)


def tokens(value: float | None) -> str:
    """Tokens/s with three digits or more: `7.66`, `24.0`, `1,502`."""
    if value is None:
        return MISSING
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as ms with three digits or more."""
    return MISSING if seconds is None else f"{tokens(1000 * seconds)} ms"


def percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction as percent."""
    return MISSING if fraction is None else f"{100 * fraction:.{decimals}f} %"


def joules(value: float | None) -> str:
    """Joules with three digits."""
    return MISSING if value is None else f"{value:.3g} J"


def gigabytes_a_second(bytes_per_s: float | None) -> str:
    """Bytes a second as GB/s, with three digits or more."""
    if bytes_per_s is None:
        return MISSING
    value = bytes_per_s / 1e9
    return f"{value:,.0f} GB/s" if value >= 100 else f"{value:.3g} GB/s"


def objective(ttft_s: float | None, itl_s: float | None) -> str:
    """`first token within 500 ms, 50.0 ms between tokens`."""
    first = f"first token within {milliseconds(ttft_s)}" if ttft_s is not None else ""
    return ", ".join(filter(None, (first, f"{milliseconds(itl_s)} between tokens" if itl_s is not None else "")))


def span(speeds: tuple[float, float] | None) -> str:
    """The slowest and the fastest trial; empty if there is but one."""
    return f"trials: {tokens(speeds[0])} to {tokens(speeds[1])}" if speeds else ""


def lines(*texts: str) -> str:
    """Those that are not empty, each on its line."""
    return "\n".join(text for text in texts if text)


def doubts(reasons: Sequence[str]) -> str:
    """Reasons not to trust a figure: `foreign load, unstable`; empty if there is none."""
    return ", ".join(reason.replace("_", " ") for reason in reasons)


def memory_unit(largest: float) -> tuple[str, int]:
    """The unit for bytes up to `largest`, and its size."""
    return ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
