"""Names of other libraries that they do not promise to keep: one module a library, and nothing else of qbench.

Each module says what it relies on; `tests/test_compat.py` fails when an upgrade changes it. Imported by whatever needs
the library, from `engine` upwards. Begin with `transformers`.
"""
