"""lm-evaluation-harness itself, as the reference of what the measures find."""

from typing import Any

import lm_eval

from qbench.compat.lm_eval import without_environment


def evaluate(**arguments: Any) -> dict[str, Any]:
    """`lm_eval.simple_evaluate`, which is not to describe the machine."""
    with without_environment():
        results: dict[str, Any] = lm_eval.simple_evaluate(**arguments)
    return results
