"""Rows of tables."""

from qbench.records.rows import ThroughputRow

IDENTITY = {"run": "r", "model": "m", "backend": "int4", "label": "int4"}


def throughput(**fields: object) -> ThroughputRow:
    base = {"batch_size": 1, "prompt_tokens": 8, "new_tokens": 4, "decode_mode": "eager", "trial": 0, "status": "ok"}
    return ThroughputRow.model_validate(IDENTITY | base | fields)
