"""Which trials of `throughput.csv` belong together; tables of older versions lack the columns that tell."""

from __future__ import annotations

import pandas as pd


def starts(trials: pd.DataFrame) -> pd.Series[int]:
    """Which process of its cell made each trial."""
    return trials["start"].fillna(0).astype(int)


def depths(trials: pd.DataFrame) -> pd.Series[int]:
    """Tokens in the cache before each trial's prompt."""
    return trials["depth"].fillna(0).astype(int)


def at_depth(trials: pd.DataFrame, depth: int = 0) -> pd.DataFrame:
    """The trials with so many tokens before the prompt."""
    return trials[depths(trials) == depth]
