"""A run's summary as `summary.csv` has it."""

import pandas as pd

from qbench.analysis.summary import summarize
from qbench.analysis.summary_table import to_frame
from qbench.records.run import Run


def frame(run: Run, *, allow_partial: bool = False) -> pd.DataFrame:
    return to_frame(summarize(run, allow_partial=allow_partial))
