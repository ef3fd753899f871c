"""The commit that the name of a repository on the hub stands for: what is under a name changes, a commit does not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

TIMEOUT_S = 10.0
"""Seconds the hub has to answer; then what its client has kept here is asked."""


@functools.cache
def commit(repo: str, revision: str | None = None, kind: Literal["model", "dataset"] = "model") -> str | None:
    """The commit of `repo` at `revision` (its main branch if None), asked once a process.

    That is what the hub says, or where it cannot be reached, what was downloaded last; None if neither is known.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        found: str | None = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=TIMEOUT_S).sha
        return found
    except HFValidationError:
        return None
    except Exception:  # offline, gated, gone, a proxy's page: the client's errors have no common base
        reference = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type=kind), "refs")
        try:
            return (reference / (revision or "main")).read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None


def identify(repo: str, revision: str | None = None, kind: Literal["model", "dataset"] = "model") -> str:
    """The name with its commit, or the name alone where none is known."""
    found = commit(repo, revision, kind)
    return f"{repo}@{found}" if found else repo
