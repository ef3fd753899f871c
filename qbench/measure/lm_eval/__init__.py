"""lm-evaluation-harness: its tasks on a loaded model, local data, and what prompts share.

Begin with `harness`.
"""
