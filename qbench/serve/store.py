"""Conversations with two backends and the votes on them: one SQLite file, which outlives a process that is killed.

An answer is written while it arrives. What a process leaves `streaming` when it ends is `interrupted` for the next one.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from filelock import FileLock, Timeout

from qbench.analysis.votes import Tally
from qbench.errors import QbenchError

SCHEMA_VERSION = 1
"""Kept in the file's `user_version`."""

DEFAULT = Path("results") / "side-by-side.sqlite"

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")
Choice = Literal["a", "b", "tie"]

_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, model TEXT NOT NULL, title TEXT NOT NULL, created TEXT NOT NULL
) STRICT;
CREATE TABLE turns (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    prompt TEXT NOT NULL, settings TEXT NOT NULL, mode TEXT NOT NULL, blind INTEGER NOT NULL,
    replaced INTEGER NOT NULL DEFAULT 0, created TEXT NOT NULL
) STRICT;
CREATE TABLE answers (
    turn TEXT NOT NULL REFERENCES turns (id) ON DELETE CASCADE, side TEXT NOT NULL CHECK (side IN ('a', 'b')),
    backend TEXT NOT NULL, text TEXT NOT NULL DEFAULT '', state TEXT NOT NULL, error TEXT,
    tokens INTEGER NOT NULL DEFAULT 0, ttft_s REAL, decode_tokens_per_s REAL, weight_bytes INTEGER,
    PRIMARY KEY (turn, side)
) STRICT;
CREATE TABLE votes (
    turn TEXT PRIMARY KEY REFERENCES turns (id) ON DELETE CASCADE,
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie')), created TEXT NOT NULL
) STRICT;
CREATE INDEX turns_of_conversation ON turns (conversation);
"""


class State(StrEnum):
    """Of an answer."""

    STREAMING = "streaming"
    DONE = "done"
    STOPPED = "stopped"
    """By the person."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Its process ended."""


@dataclass(slots=True)
class Answer:
    """What one backend said, as far as it has."""

    backend: str
    text: str = ""
    state: State = State.STREAMING
    error: str | None = None
    tokens: int = 0
    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None
    """(tokens − 1) ÷ the time between the first and the last; None below two tokens."""
    weight_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt and its two answers."""

    id: str
    prompt: str
    settings: dict[str, Any]
    """As `qbench.serve.page.Settings` has them."""
    mode: str
    """`chat`, or `completion` where the model has no chat template."""
    blind: bool
    replaced: bool
    """Whether it was asked again, or edited."""
    created: str
    answers: dict[Side, Answer]
    choice: Choice | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that follow each other, the oldest first."""

    id: str
    model: str
    title: str
    created: str
    turns: tuple[Turn, ...] = ()


class Store:
    """The file. Not for several threads at once; other processes may read it at any time."""

    def __init__(self, connection: sqlite3.Connection, lock: FileLock | None = None) -> None:
        self._db, self._lock = connection, lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """For a server: made if it is not there, held until `close`.

        Raises:
            QbenchError: it is no store, one of another version, or another server's.
        """
        path = path.expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.lock", blocking=False)
            lock.acquire()
        except Timeout:
            raise QbenchError(f"--store {path}: another `qbench serve` uses it; end it, or name another file") from None
        except OSError as error:
            raise QbenchError(f"--store {path}: cannot be written ({error.strerror}); name another file") from error
        try:
            store = cls(_connect(path, make=True), lock)
        except BaseException:
            lock.release()
            raise
        with store._db:
            store._db.execute("UPDATE answers SET state = ? WHERE state = ?", (State.INTERRUPTED, State.STREAMING))
        return store

    @classmethod
    def read(cls, path: Path) -> Self:
        """For a look at it, while a server may write.

        Raises:
            QbenchError: there is none, or one of another version.
        """
        path = path.expanduser()
        if not path.is_file():
            raise QbenchError(f"{path}: there is no such file; `qbench serve CONFIG --compare A B` makes one")
        return cls(_connect(path, make=False))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
        if self._lock:
            self._lock.release()

    def start(self, model: str, title: str) -> str:
        """A new conversation's id."""
        made = secrets.token_urlsafe(9)
        with self._db:
            self._db.execute("INSERT INTO conversations VALUES (?, ?, ?, ?)", (made, model, title, _now()))
        return made

    def add_turn(
        self,
        conversation: str,
        prompt: str,
        settings: Mapping[str, Any],
        answers: Mapping[Side, Answer],
        *,
        mode: str,
        blind: bool,
        replaces: str | None = None,
    ) -> str:
        """A new turn's id, written with its answers as far as they are there; `replaces` is the turn before it."""
        made = secrets.token_urlsafe(9)
        with self._db:
            if replaces:
                self._db.execute("UPDATE turns SET replaced = 1 WHERE id = ?", (replaces,))
            self._db.execute(
                "INSERT INTO turns (id, conversation, prompt, settings, mode, blind, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (made, conversation, prompt, json.dumps(dict(settings)), mode, blind, _now()),
            )
            for side, answer in answers.items():
                self._db.execute(
                    "INSERT INTO answers (turn, side, backend, state, weight_bytes) VALUES (?, ?, ?, ?, ?)",
                    (made, side, answer.backend, answer.state, answer.weight_bytes),
                )
        return made

    def write(self, turn: str, answers: Mapping[Side, Answer]) -> None:
        """Bring a turn's answers up to date."""
        with self._db:
            for side, one in answers.items():
                self._db.execute(
                    "UPDATE answers SET text = ?, state = ?, error = ?, tokens = ?, ttft_s = ?,"
                    " decode_tokens_per_s = ?, weight_bytes = ? WHERE turn = ? AND side = ?",
                    (one.text, one.state, one.error, one.tokens, one.ttft_s, one.decode_tokens_per_s,
                     one.weight_bytes, turn, side),
                )  # fmt: skip

    def vote(self, turn: str, choice: Choice) -> None:
        """Keep a vote; a turn has one, the first."""
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO votes VALUES (?, ?, ?)", (turn, choice, _now()))

    def delete(self, conversation: str) -> None:
        """With its turns and their votes."""
        with self._db:
            self._db.execute("DELETE FROM conversations WHERE id = ?", (conversation,))

    def conversations(self) -> list[Conversation]:
        """All of them without their turns, the newest first."""
        rows = self._db.execute("SELECT id, model, title, created FROM conversations ORDER BY rowid DESC")
        return [Conversation(*row) for row in rows]

    def conversation(self, chosen: str) -> Conversation | None:
        """One of them with its turns, those that were replaced included; None if there is none of that id."""
        row = self._db.execute("SELECT id, model, title, created FROM conversations WHERE id = ?", (chosen,)).fetchone()
        if row is None:
            return None
        return replace(Conversation(*row), turns=tuple(self._turns("t.conversation = ?", chosen)))

    def turn(self, chosen: str) -> Turn | None:
        """One turn; None if there is none of that id."""
        return next(self._turns("t.id = ?", chosen), None)

    def tallies(self) -> dict[tuple[str, str, str], Tally]:
        """Votes by model and pair of backends, whose names are in the order of the alphabet."""
        return self._count("min(a.backend, b.backend)")

    def tallies_by_side(self) -> dict[tuple[str, str, str], Tally]:
        """The same, where the first is whichever answer stood on the left: what the place alone does."""
        return self._count("a.backend")

    def _count(self, first: str) -> dict[tuple[str, str, str], Tally]:
        rows = self._db.execute(
            "SELECT c.model, min(a.backend, b.backend), max(a.backend, b.backend),"
            f" sum(CASE v.choice WHEN 'a' THEN a.backend WHEN 'b' THEN b.backend END = {first}),"
            f" sum(CASE v.choice WHEN 'a' THEN a.backend WHEN 'b' THEN b.backend END <> {first}),"
            " sum(v.choice = 'tie')"
            " FROM votes v JOIN turns t ON t.id = v.turn JOIN conversations c ON c.id = t.conversation"
            " JOIN answers a ON a.turn = t.id AND a.side = 'a' JOIN answers b ON b.turn = t.id AND b.side = 'b'"
            " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
        return {row[:3]: Tally(*(count or 0 for count in row[3:])) for row in rows}

    def _turns(self, where: str, value: str) -> Iterator[Turn]:
        rows = self._db.execute(
            "SELECT t.id, t.prompt, t.settings, t.mode, t.blind, t.replaced, t.created, v.choice"
            f" FROM turns t LEFT JOIN votes v ON v.turn = t.id WHERE {where} ORDER BY t.number",
            (value,),
        ).fetchall()
        for turn, prompt, settings, mode, blind, replaced, created, choice in rows:
            answers = self._db.execute(
                "SELECT side, backend, text, state, error, tokens, ttft_s, decode_tokens_per_s, weight_bytes"
                " FROM answers WHERE turn = ? ORDER BY side",
                (turn,),
            )
            found: dict[Side, Answer] = {
                side: Answer(backend, text, State(state), *rest) for side, backend, text, state, *rest in answers
            }
            yield Turn(turn, prompt, json.loads(settings), mode, bool(blind), bool(replaced), created, found, choice)


def _connect(path: Path, *, make: bool) -> sqlite3.Connection:
    """The file, of this version.

    Raises:
        QbenchError: it is no store, or one of another version.
    """
    # Requests are answered on one thread, which need not be the one that opened it.
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if make and not tables:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise QbenchError(
                f"{path}: is no store of this version of qbench (its schema is version {version}, not "
                f"{SCHEMA_VERSION}); name another file, or use the version that made it"
            )
        # A commit is in the log before the next token; a power cut may take the last ones, a kill takes none.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.DatabaseError as error:
        with closing(connection):
            raise QbenchError(f"{path}: is no store of qbench ({error}); name another file") from error
    except QbenchError:
        connection.close()
        raise
    return connection


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
