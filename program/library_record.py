"""What a library knows of its files, in SQLite beside the index: which file holds which contract, and since when.

Two tables. `files`: path, as it was seen (size, mtime), the hash of its bytes. `sources`: one row a contract or failure
found in a file, its key being `path`, `path!member` in a zip, or `path#title` in a CUADv1-format file. One real row:

    source="/deals/2019.zip!acme.pdf", file="/deals/2019.zip", status="indexed", contract_id="2019/acme",
    text_sha256="9f2c...", reason=None, notes="pages 3-5 of 12 have no text layer", recorded_at="2026-11-21T16:40:02"

The index follows this record: a row is written once its contract is in the index, and deleted before it is taken out.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from modules.index_files import StoreError

FILE_NAME = "library.sqlite3"
INDEXED, DUPLICATE, FAILED = "indexed", "duplicate", "failed"
_VERSION = 1
_Row = TypeVar("_Row")
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE files (
    path TEXT PRIMARY KEY, relative TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL, seen_ns INTEGER NOT NULL, reader TEXT NOT NULL);
CREATE TABLE sources (
    source TEXT PRIMARY KEY, file TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('indexed', 'duplicate', 'failed')),
    contract_id TEXT, text_sha256 TEXT, reason TEXT, notes TEXT NOT NULL, recorded_at TEXT NOT NULL);
CREATE INDEX sources_by_file ON sources (file);
CREATE INDEX sources_by_text ON sources (text_sha256);
CREATE UNIQUE INDEX contract_ids ON sources (contract_id) WHERE status = 'indexed';
"""


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file as it was when it was last read, at `seen_ns`, by what `reader` names: its version and limits.

    `relative` is its path below the folder that was named, of which contract ids are made. A `size` below 0 says that
    it must be read again, whatever it looks like.
    """

    path: str
    relative: str
    size: int
    mtime_ns: int
    sha256: str
    seen_ns: int
    reader: str


@dataclass(frozen=True, slots=True)
class Source:
    """A contract in a file, or a failure: `contract_id` is the contract's (of a duplicate: the one it is equal to)."""

    source: str
    file: str
    status: str
    contract_id: str | None
    text_sha256: str | None
    reason: str | None
    notes: str
    recorded_at: str


class Record:
    """The open record; every method is one transaction, on the disk when it returns."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        """StoreError if there is none in `folder` and `create` is False, or if it is damaged or of another version."""
        path = folder / FILE_NAME
        if not create and not path.exists():
            raise StoreError(f"there is no library in {folder}. Make one with `evergreen index PATH --out {folder}`.")
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            # NORMAL can lose the last transactions when the machine goes down.
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path} is damaged ({error}). Delete {folder} and index the files again.") from error
        if version not in (0, _VERSION):
            self.close()
            raise StoreError(
                f"{path} is of version {version}, not {_VERSION}. Delete {folder} and index the files again."
            )

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def setting(self, name: str) -> str | None:
        """A value kept by `set`, or None."""
        row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def set(self, name: str, value: str) -> None:
        """Keep a value."""
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def file(self, path: str) -> SeenFile | None:
        """The file as it was last seen whole."""
        return next(self._select(SeenFile, "files WHERE path = ?", path), None)

    def files(self) -> tuple[SeenFile, ...]:
        """All files, by path."""
        return tuple(self._select(SeenFile, "files ORDER BY path"))

    def sources(self, where: str = "1", *values: str) -> tuple[Source, ...]:
        """The sources for which the SQL condition `where` holds, by key."""
        return tuple(self._select(Source, f"sources WHERE {where} ORDER BY source", *values))

    def write(self, *, files: Iterable[SeenFile] = (), sources: Iterable[Source] = ()) -> None:
        """Replace rows by key."""
        with self._transaction():
            self._put("sources", "source", sources)
            self._put("files", "path", files)

    def delete(self, *, sources: Iterable[str] = (), files: Iterable[str] = (), then: Iterable[Source] = ()) -> None:
        """Delete rows by key and write those of `then`; a file without its row is read again."""
        with self._transaction():
            self._db.executemany("DELETE FROM sources WHERE source = ?", [(key,) for key in sources])
            self._db.executemany("DELETE FROM files WHERE path = ?", [(key,) for key in files])
            self._put("sources", "source", then)

    def _put(self, table: str, key: str, rows: Iterable[SeenFile | Source]) -> None:
        for row in rows:
            values = asdict(row)
            # Not INSERT OR REPLACE, which would delete whichever row had the same contract id.
            self._db.execute(
                f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))}) "
                f"ON CONFLICT ({key}) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in values)}",
                tuple(values.values()),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _select(self, kind: type[_Row], rest: str, *values: str) -> Iterator[_Row]:
        columns = ", ".join(field.name for field in fields(kind))
        with closing(self._db.execute(f"SELECT {columns} FROM {rest}", values)) as rows:
            yield from (kind(*row) for row in rows)
