"""The store of answers: append-only, one writer at a time, nothing asked twice."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillroom.failures import Failure
from stillroom.store.locks import writing
from stillroom.store.requests import Identity, Outcome, Tokens, digest

FILE = "answers.sqlite"
_MARK, _VERSION = 0x53116007, 1  # application_id and user_version of the file
_TABLES = """
CREATE TABLE IF NOT EXISTS sources (id TEXT PRIMARY KEY, told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests
  (key TEXT PRIMARY KEY, source TEXT NOT NULL, told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts
  (id INTEGER PRIMARY KEY, key TEXT NOT NULL, began REAL NOT NULL,
   most_prompt INTEGER NOT NULL, most_answer INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes
  (attempt INTEGER PRIMARY KEY, ended REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
   why TEXT NOT NULL, prompt INTEGER, answer INTEGER);
CREATE INDEX IF NOT EXISTS attempts_by_key ON attempts (key);
"""
_STAYS = """
CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, 'the store is append-only'); END;
"""
_PAST = """
SELECT most_prompt, most_answer, kind, text, why, prompt, answer
FROM attempts LEFT JOIN outcomes ON attempt = id WHERE key = ? ORDER BY id
"""


class Store:
    """Questions, attempts to ask them and what came of these, in a folder.

    An attempt is written before its request is sent, with the most tokens that it may cost; its
    outcome when it ends. Nothing is changed or taken out afterwards, so an attempt without an
    outcome is one that a kill cut off. Reading is free to all; ``writing`` lets one process in.

    Raises:
        Failure: the folder cannot be made, or the file in it is damaged or none of ours.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file = self.folder / FILE
        with self._plainly():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.file, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._open()

    def _open(self) -> None:
        if not self._number("SELECT count(*) FROM sqlite_master"):
            tables = ("sources", "requests", "attempts", "outcomes")
            stays = [_STAYS.format(table=t, verb=v) for t in tables for v in ("UPDATE", "DELETE")]
            marks = f"PRAGMA application_id = {_MARK}; PRAGMA user_version = {_VERSION};"
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} {''.join(stays)} {marks} COMMIT;")
        marks = (self._number("PRAGMA application_id"), self._number("PRAGMA user_version"))
        if marks != (_MARK, _VERSION):
            raise Failure(
                f"{self.file} is a database, but no store of answers of version {_VERSION}: "
                "give another folder"
            )
        if (found := self._number("PRAGMA quick_check(1)")) != "ok":
            raise sqlite3.DatabaseError(found)
        self._db.execute("PRAGMA synchronous = FULL")  # an answer is paid for: outlives a power cut

    def _number(self, sql: str) -> Any:
        return self._db.execute(sql).fetchone()[0]

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """This process writes, and no other until the block ends.

        Raises:
            Failure: another process does; it is named.
        """
        with writing(self.folder):
            yield

    def sources(self) -> list[Identity]:
        """The teachers whose answers it holds."""
        return [
            json.loads(told) for (told,) in self._all("SELECT told FROM sources ORDER BY rowid")
        ]

    def past(self, key: str) -> list[tuple[Tokens, Outcome | None]]:
        """Attempts at a question in their order: the most each may have cost, what came of it."""
        return [
            (Tokens(*most), kind and Outcome(kind, text, why, _tokens(*told)))
            for *most, kind, text, why, told_prompt, told_answer in self._all(_PAST, key)
            for told in [(told_prompt, told_answer)]
        ]

    def begin(self, identity: Identity, key: str, rendered: Any, most: Tokens) -> int:
        """Writes that a question is about to be asked; gives the attempt's number."""
        source = digest(dict(identity))
        with self._plainly():
            self._db.execute("BEGIN IMMEDIATE")
            for table, *values in (
                ("sources", source, _json(dict(identity))),
                ("requests", key, source, _json(rendered)),
            ):
                marks = ", ".join("?" * len(values))
                self._db.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)
            made = self._db.execute(
                "INSERT INTO attempts (key, began, most_prompt, most_answer) VALUES (?, ?, ?, ?)",
                (key, time.time(), most.prompt, most.answer),
            )
            self._db.execute("COMMIT")
        assert made.lastrowid is not None
        return made.lastrowid

    def end(self, attempt: int, outcome: Outcome) -> None:
        """Writes what came of an attempt."""
        told = outcome.tokens
        tokens = (told.prompt, told.answer) if told else (None, None)
        row = (attempt, time.time(), outcome.kind, outcome.text, outcome.why, *tokens)
        with self._plainly():
            self._db.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with self._plainly():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What the database or the disk refuses, as a Failure that names the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise Failure(f"the store {self.file} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise Failure(
                f"the store {self.file} is damaged or is none ({error}): put its last copy back, "
                "or give another folder"
            ) from error
        except OSError as error:
            raise Failure(f"the store {self.folder} cannot be made: {error}") from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tokens(prompt: int | None, answer: int | None) -> Tokens | None:
    return None if prompt is None or answer is None else Tokens(prompt, answer)
