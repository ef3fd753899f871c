"""What is shown of a run: its figures with what was predicted, and what it says of itself in words.

`data.collect` makes a `RunReport`, from which plots, page and BENCHMARK.md are drawn.
"""
