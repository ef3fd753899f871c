"""Statistics of a run's rows: medians, intervals, paired tests, and which figures can be trusted.

Imports records, and neither torch nor words for people. `formulas`, which is of plain numbers, serves measures, too.
Begin with `summary`, which makes one `CellSummary` for each cell of a run; p-values are made in `paired`.
"""
