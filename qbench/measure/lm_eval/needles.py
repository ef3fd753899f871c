"""Needle tasks at one length, their prompts made here as lm-evaluation-harness makes them.

Its tasks count tokens with a tokenizer that they load by name, and draw words and numbers from Python's global
generator. With the seed 0 the prompts are those of `lm_eval --tasks TASK --metadata '{"max_seq_lengths": [LENGTH]}'`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from qbench.compat.lm_eval import RULER_FILES
from qbench.config import needles
from qbench.errors import QbenchError
from qbench.model.find import read_json

ESSAYS = "niah_single_1, niah_multikey_2 and niah_multikey_3 need nothing from the network"
"""What is left where the essays of the other tasks cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Source:
    """What decides the prompts, besides the task and the length."""

    folder: Path
    """The model's, with its tokenizer: the same for all cells of a run, whatever runs the model."""
    seed: int
    trust_remote_code: bool = False
    """Whether a tokenizer of the model's own may be run."""


def load(name: str, tokens: int, source: Source) -> Task:
    """A needle task whose prompts, with room for the answer, have about `tokens` tokens and no more.

    Raises:
        QbenchError: a library is missing, the essays of its haystack cannot be read, `tokens` are too few for a prompt,
            or the tokenizer is code that comes with the model and must not run.
    """
    if not source.trust_remote_code and _own_tokenizer(source.folder):
        raise QbenchError(
            f"measure.tasks.names: {name} loads the model's tokenizer, which is code of its own; set "
            "model.trust_remote_code to run it, or leave the task out"
        )
    metadata = {"tokenizer": str(source.folder), "max_seq_lengths": [tokens]}
    manager = TaskManager(include_defaults=False, include_path=str(RULER_FILES), metadata=metadata)
    random.seed(source.seed)
    try:
        task: Task = manager.load([name])["tasks"][name]
    except ImportError as error:
        raise QbenchError(
            f"measure.tasks.names: {name} needs {', '.join(needles.LIBRARIES)}: {needles.INSTALL}"
        ) from error
    except (OSError, LookupError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise QbenchError(f"{name}: the essays of its prompts cannot be read ({reason}). Offline, {ESSAYS}") from error
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise QbenchError(f"measure.tasks.context_lengths: {tokens} for {name}: {reason}") from error
    return task


def length_of(task: Task) -> int | None:
    """The length of a needle task; None for other tasks."""
    found = (task.config.metadata or {}).get("max_seq_lengths") if task.task_name in needles.NEEDLES else None
    return int(found[0]) if found else None


def _own_tokenizer(folder: Path) -> bool:
    """Whether the files of a model name code for its tokenizer."""
    files = (folder / "tokenizer_config.json", folder / "config.json")
    return any("AutoTokenizer" in (read_json(path).get("auto_map") or {}) for path in files if path.is_file())
