"""One module a backend kind, with its options and its `load`, which alone imports torch.

`base` and names with a leading underscore are shared code, not kinds.
"""
