"""Needle tasks: facts hidden in prompts of a chosen length, and the names of the units that measure them.

They are RULER's (C.-P. Hsieh et al. 2024, arXiv:2404.06654) as in lm-evaluation-harness, `lm_eval/tasks/ruler`.
"""

from __future__ import annotations

NEEDLES = (
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
)
"""Every needle task."""

WHOLE = frozenset(NEEDLES) - {"niah_multivalue", "niah_multiquery"}
"""Those with one needle to find: an answer is right or wrong, not right in part."""

LIBRARIES = ("wonderwords", "nltk")
"""Distributions that make the prompts."""

INSTALL = "pip install 'qbench-llm[ruler]'"

QUESTIONS = 500
"""Prompts of a task at each length."""

NEW_TOKENS = 128
"""What a model may answer; they are part of the length."""


def unit(task: str, tokens: int) -> str:
    """`niah_single_1@4096`: a task at a length."""
    return f"{task}@{tokens}"


def split(name: str) -> tuple[str, int | None]:
    """The task and the length of a unit's name; None for a task without one."""
    task, _, tokens = name.partition("@")
    return (task, int(tokens)) if task in NEEDLES and tokens.isdigit() else (name, None)
