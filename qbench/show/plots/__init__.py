"""The charts of a run, for `qbench plot` and for the page of `qbench report`.

    RunReport ─ bars, scatter ─▶ shapes (plain data) ─ mpl ─▶ PNG, SVG
                                                     └ plotly ─▶ JSON for plotly.js

Begin with `charts`: a chart that stands there is in the page and among the files. `files` writes the latter.
"""
