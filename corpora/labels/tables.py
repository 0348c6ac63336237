"""The SQLite file under a store that is only added to: its tables, how it is opened, and its transactions.

`LABELS` is the layout of a label store; other stores give a layout of their own.

Not handled: moving a file from one version of the tables to the next; there is one version so far.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from corpora.errors import CorpusError

_BUSY_S = 60.0
_LABEL_TABLES = ("texts", "contracts", "held_out", "labels", "assertions", "retractions", "ledger")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (sha256 TEXT PRIMARY KEY, text TEXT NOT NULL, n_chars INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS contracts (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, places TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS held_out (
    sha256 TEXT PRIMARY KEY, side TEXT NOT NULL CHECK (side IN ('val', 'test')), near TEXT);
CREATE TABLE IF NOT EXISTS labels (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, contract_id TEXT NOT NULL,
    question_id TEXT NOT NULL, category TEXT NOT NULL, question TEXT NOT NULL, spans TEXT NOT NULL, answer TEXT,
    method TEXT NOT NULL, by TEXT NOT NULL, prompt TEXT NOT NULL, parents TEXT NOT NULL, confidence REAL,
    source TEXT NOT NULL, trail TEXT NOT NULL, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS assertions (
    seq INTEGER PRIMARY KEY, label_id TEXT NOT NULL, source TEXT NOT NULL, by TEXT NOT NULL, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS retractions (
    seq INTEGER PRIMARY KEY, label_id TEXT NOT NULL, by TEXT NOT NULL, why TEXT NOT NULL, at TEXT NOT NULL,
    after INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (
    seq INTEGER PRIMARY KEY, unit TEXT NOT NULL, contract_id TEXT NOT NULL, question TEXT NOT NULL,
    method TEXT NOT NULL, by TEXT NOT NULL, prompt TEXT NOT NULL, outcome TEXT NOT NULL, at TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS contracts_by_text ON contracts (sha256);
CREATE INDEX IF NOT EXISTS labels_by_text ON labels (sha256);
CREATE INDEX IF NOT EXISTS assertions_by_label ON assertions (label_id);
CREATE INDEX IF NOT EXISTS retractions_by_label ON retractions (label_id);
CREATE INDEX IF NOT EXISTS ledger_by_unit ON ledger (unit);
-- A person who gives a label again after it was taken back has the last word; a model that does has not.
CREATE VIEW IF NOT EXISTS live AS SELECT * FROM labels AS l WHERE NOT EXISTS (
    SELECT 1 FROM retractions AS r WHERE r.label_id = l.id AND r.after >= coalesce(
        (SELECT max(seq) FROM assertions AS a WHERE a.label_id = l.id AND a.source = 'human'), 0));
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is in a store's file: SQL that makes its tables and does nothing the second time, and what it is known by.

    `application` (SQLite's application_id) tells it from any other SQLite file, `noun` and `row` are what messages call
    the store and one of its rows, and `error` is what is raised.
    """

    noun: str
    row: str
    application: int
    version: int
    schema: str
    error: type[Exception]


def only_added_to(noun: str, tables: Iterable[str]) -> str:
    """SQL of triggers that refuse to change or delete a row of these tables."""
    return "".join(
        f"CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'a {noun} is only added to'); END;\n"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


LABELS = Layout(
    noun="label store",
    row="label",
    application=0x45564C42,  # "EVLB"
    version=1,
    schema=_SCHEMA + only_added_to("label store", _LABEL_TABLES),
    error=CorpusError,
)


class Tables:
    """The open file. Reads see what is committed; writes stand in `with tables.transaction()`."""

    def __init__(self, db: sqlite3.Connection, path: Path, layout: Layout) -> None:
        self._db, self.path, self._layout = db, path, layout

    @classmethod
    def open(cls, path: str | Path, layout: Layout = LABELS, *, shared: bool = False) -> Self:
        """Open the store at `path`, or make one where there is no file.

        `shared`: several threads use the object, and the caller sees that they take turns. The layout's error if the
        file is something else, is damaged, or was written by a newer version.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise layout.error(f"{path} cannot be made: there is no folder {path.parent}. Make the folder first.")
        try:
            db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S, check_same_thread=not shared)
        except sqlite3.Error as error:
            raise layout.error(
                f"{path} cannot be opened ({error}). Give the path of a file you may write to."
            ) from error
        try:
            _prepare(db, path, layout)
        except sqlite3.DatabaseError as error:
            db.close()
            what = "is in use by another process" if _locked(error) else f"is not a {layout.noun}, or is damaged"
            raise layout.error(f"{path} {what} ({error}). Give another path, or put back a copy of it.") from error
        except BaseException:
            db.close()
            raise
        return cls(db, path, layout)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._told():
            return self._db.execute(sql, values).fetchall()

    def paged(self, sql: str) -> Iterator[sqlite3.Row]:
        """The rows of a query on `l`, which ends in a condition, by `l.seq`; nothing stays open between pages."""
        # A read left open would keep SQLite from ever emptying the file beside this one.
        last = 0
        while rows := self.rows(f"{sql} AND l.seq > ? ORDER BY l.seq LIMIT 500", last):
            yield from rows
            last = rows[-1]["seq"]

    def insert(self, table: str, values: Mapping[str, Any], conflict: str = "") -> int:
        """Add one row; returns 1, or 0 where `conflict` says that nothing is to be done."""
        marks = ", ".join("?" * len(values))
        sql = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks}) {conflict}"
        return self._db.execute(sql, tuple(values.values())).rowcount

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in it is on the disk when it ends, or none of it is."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # A full disk ends the transaction by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            do = "Try again" if _locked(error) else "See that the file is whole, writable and that the disk has room"
            raise self._layout.error(
                f"{self.path} could not be used ({error}); nothing of this call was kept. {do}."
            ) from error
        except UnicodeEncodeError as error:
            raise self._layout.error(
                f"a {self._layout.row} has half a character, a lone surrogate, at {error.start} of "
                f"{error.object[:60]!r}; nothing of this call was kept. Read its source again as UTF-8."
            ) from error


def _prepare(db: sqlite3.Connection, path: Path, layout: Layout) -> None:
    """Make the tables in an empty file; the layout's error if the file is not such a store of this version."""
    db.row_factory = sqlite3.Row
    db.execute("BEGIN")  # the three are read of one moment: another process may be making the tables
    application, version, n_tables = (
        db.execute(sql).fetchone()[0]
        for sql in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    db.execute("COMMIT")
    if application != layout.application and (application, version, n_tables) != (0, 0, 0):
        raise layout.error(f"{path} is an SQLite file, but no {layout.noun}. Give another path.")
    if version > layout.version:
        raise layout.error(
            f"{path} is of version {version}, and this program knows up to {layout.version}. Update the program."
        )
    _use_wal(db)
    # NORMAL can lose the last transactions when the machine goes down.
    db.execute("PRAGMA synchronous = FULL")
    if version == 0:
        # Two processes may be here at once: each statement does nothing the second time.
        marks = f"PRAGMA application_id = {layout.application}; PRAGMA user_version = {layout.version};"
        db.executescript(f"BEGIN IMMEDIATE; {layout.schema} {marks} COMMIT;")


def _use_wal(db: sqlite3.Connection) -> None:
    """Turn on the write-ahead log; SQLite does not wait for its lock here, so this does."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _locked(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _locked(error: sqlite3.Error) -> bool:
    return "locked" in str(error)
