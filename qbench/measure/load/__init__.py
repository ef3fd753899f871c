"""A server under load: what its answers take when requests come together; a row a request, and one a level.

`measure` takes the levels one after another. `requests` says what is sent, `loops` sends it, `search` looks for the
highest rate that keeps an objective; the figures are those of `qbench.analysis.load`.
"""

from qbench.measure.load.levels import NEEDS, measure

__all__ = ["NEEDS", "measure"]
