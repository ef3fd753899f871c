"""The demo model: a small Llama of a made-up world, with its questions, for a machine that has nothing else on it.

`world` invents the facts and words them, `corpus` mixes them into training rows, `tokenizer` learns the vocabulary,
`train` makes the weights and everything else that lies beside this file.
"""

from pathlib import Path

ROOT = Path(__file__).parent

MODEL_DIR = ROOT / "model"
"""A transformers folder: config.json, model.safetensors (bfloat16), tokenizer.json."""

MMLU_DIR = ROOT / "mmlu"
"""Questions in MMLU's published layout: test/<subject>_test.csv and dev/<subject>_dev.csv, no header."""

TASKS_DIR = ROOT / "tasks"
"""Task files for lm-evaluation-harness: the same questions, answered in words."""

CALIBRATION_TEXT = ROOT / "calibration.txt"
"""Text of the training distribution, one document a paragraph."""

HELDOUT_TEXT = ROOT / "heldout.txt"
"""Newly sampled text of the same distribution, for perplexity."""

ENGLISH_WORDS = ROOT / "english.txt"
"""Common English words, and word endings after a hyphen, which the tokenizer learns beside the world's own."""
