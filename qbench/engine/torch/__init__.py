"""The torch engine: transformers models, generated eagerly or by a CUDA graph.

Begin with `engine`; a decode step is in `decode`, shared prefixes are in `prefix`.
"""
