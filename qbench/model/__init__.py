"""The model before it runs: where it comes from, its dimensions, texts, and random weights of a shape.

Only `load` and `random_weights` import torch. Begin with `find`.
"""
