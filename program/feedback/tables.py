"""The SQLite file under a feedback store: one log of all that was asked, answered and said, and the contracts' texts.

Rows are added and never changed. `about` is the row that a row speaks of: of an answer its question, of a rating its
answer, of a choice its candidates; "" of a question and a withdrawal. One real row of `log`:

    seq=7, id="77c0...", kind="rating", about="5c1e...", by="3e1f...", at="2026-11-22T09:15:44.001201Z",
    nonce="b01f22c4", body='{"comment": "the wrong state", "stars": 2, "thumbs": "down"}'
"""

import os
from pathlib import Path

from corpora.labels.tables import Layout, Tables, only_added_to
from modules.index_files import StoreError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (sha256 TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS log (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, about TEXT NOT NULL, by TEXT NOT NULL,
    at TEXT NOT NULL, nonce TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS withdrawn (event_id TEXT PRIMARY KEY);
CREATE INDEX IF NOT EXISTS log_by_about ON log (about);
CREATE INDEX IF NOT EXISTS log_by_kind ON log (kind);
CREATE INDEX IF NOT EXISTS log_by_person ON log (by);
CREATE VIEW IF NOT EXISTS live AS SELECT * FROM log WHERE id NOT IN (SELECT event_id FROM withdrawn);
"""
FEEDBACK = Layout(
    noun="feedback store",
    row="row",
    application=0x45564642,  # "EVFB"
    version=1,
    schema=_SCHEMA + only_added_to("feedback store", ("texts", "log", "withdrawn")),
    error=StoreError,
)


def open_tables(path: Path) -> Tables:
    """The file at `path`, made where there is none, for its owner's eyes; StoreError if it cannot be."""
    return Tables.open(for_its_owner(path), FEEDBACK, shared=True)


def for_its_owner(path: Path) -> Path:
    """The path, with an empty file that its owner alone may read where there was none; StoreError if it cannot be."""
    if path.parent.is_dir():
        try:
            # SQLite gives the files beside it the same mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreError(
                f"{path} cannot be opened ({error.strerror}). Give the path of a file that you may write to."
            ) from error
    return path
