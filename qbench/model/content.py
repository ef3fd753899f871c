"""Files by their content: what decides a figure is known by what is in it, not by what it is called.

A file of gigabytes is read once. Its hash is kept by its inode, size and times, which every writing changes and which
moving the folder that it lies in does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from qbench.model import hub

SMALL_BYTES = 1 << 20
"""Files up to this size are read each time, which is as fast as looking their hash up."""

SETTLED_NS = 100_000_000
"""A file that was written so recently might be written again without a change of its times, which go by ticks of some
milliseconds."""

MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".bpe", ".spm", ".py"})
"""Of a model's files that decide what it computes: weights, configuration, tokenizer, templates, code of its own."""


def cache_folder() -> Path:
    """Where qbench keeps what it makes: QBENCH_CACHE, else XDG_CACHE_HOME/qbench, else ~/.cache/qbench."""
    if "QBENCH_CACHE" in os.environ:
        return Path(os.environ["QBENCH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qbench"


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex; reads all of them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """`sha256` of a file, read only if it has been written since it was last read.

    Raises:
        OSError: the file cannot be read.
    """
    state = path.stat()
    if state.st_size <= SMALL_BYTES:
        return sha256(path)
    known = cache_folder() / "hashes" / f"{state.st_dev}-{state.st_ino}"
    identity = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
    try:
        kept, _, found = known.read_text(encoding="ascii").partition("\n")
        if kept == identity:
            return found
    except (OSError, UnicodeDecodeError):
        pass
    found = sha256(path)
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > SETTLED_NS:
        _keep(known, f"{identity}\n{found}")
    return found


def _keep(path: Path, text: str) -> None:
    """Without the note the file is read again, and nothing else is lost."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="ascii")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def identify(paths: Iterable[Path], root: Path) -> str:
    """One hash over files by their paths below `root` and their contents.

    Raises:
        OSError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()} {file_hash(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def fingerprint(folder: Path) -> str:
    """A hash of everything in a model's folder that decides what it computes; Python and templates at any depth.

    Of adapters every file counts: transformers puts one on the model beside which it lies, be it a pickle.
    """
    there = [path for path in folder.iterdir() if path.is_file()]
    files = {path for path in there if path.suffix in MODEL_SUFFIXES or path.name.startswith("adapter")}
    files |= {path for suffix in (".py", ".jinja") for path in folder.rglob(f"*{suffix}") if path.is_file()}
    found = identify(files, folder).removeprefix("sha256:")
    elsewhere = [f"{repo}@{commit}" for repo in _code_repos(folder) if (commit := hub.commit(repo))]
    return hashlib.sha256("\n".join((found, *elsewhere)).encode()).hexdigest() if elsewhere else found


def _code_repos(folder: Path) -> list[str]:
    """Repositories on the hub that a model's code lies in, by its configuration: `owner/name--module.Class`."""
    try:
        named = json.loads((folder / "config.json").read_bytes()).get("auto_map") or {}
        values = [value for entry in named.values() for value in (entry if isinstance(entry, list) else [entry])]
    except (OSError, ValueError, AttributeError):
        return []
    return sorted({value.partition("--")[0] for value in values if isinstance(value, str) and "--" in value})
