"""The log under a feedback store: rows added after their checks, looked up by id, and taken from elsewhere."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from corpora.labels.rows import sha256
from corpora.labels.tables import Tables
from program.feedback.people import pseudonym, read_salt, salt_path
from program.feedback.rows import ABOUT, EVENTS, FeedbackError, Row, UnknownError, check_body, row_id


def utc_now() -> str:
    """Now, in UTC, to the microsecond."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Log:
    """Rows by id; threads take turns. FeedbackError for what breaks a rule, UnknownError for an id that is not here."""

    def __init__(self, tables: Tables, now: Callable[[], str] = utc_now) -> None:
        self.tables, self._now, self.lock = tables, now, threading.RLock()

    @property
    def path(self) -> Path:
        """Where the file stands."""
        return self.tables.path

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: all that is written in it is on the disk when it ends, or none of it is."""
        with self.lock, self.tables.transaction():
            yield

    def paged(self, sql: str) -> Iterator[sqlite3.Row]:
        """`Tables.paged`, for several threads."""
        pages = self.tables.paged(sql)
        while True:
            with self.lock:
                row = next(pages, None)
            if row is None:
                return
            yield row

    def row(self, row_id: str, kind: str) -> sqlite3.Row:
        """The row of that id and kind, not withdrawn."""
        with self.lock:
            rows = self.tables.rows("SELECT * FROM live WHERE id = ? AND kind = ?", row_id, kind)
        if not rows:
            raise UnknownError(f"nothing is {kind} under the id {row_id[:40]!r} in {self.path.name}.")
        return rows[0]

    def asked_by(self, answer_id: str) -> sqlite3.Row:
        """The row of the question that an answer is to."""
        return self.row(self.row(answer_id, "answered")["about"], "asked")

    def text(self, sha: str) -> str:
        """A contract's text by its SHA-256."""
        with self.lock:
            rows = self.tables.rows("SELECT text FROM texts WHERE sha256 = ?", sha)
        if not rows:
            raise UnknownError(f"{self.path.name} has no contract's text of the SHA-256 {sha[:64]!r}. Give the text.")
        return rows[0]["text"]

    def text_of(self, asked: sqlite3.Row) -> str:
        """The text of the contract that a question was put to."""
        return self.text(json.loads(asked["body"])["sha256"])

    def pseudonym(self, name: str) -> str:
        """What `by` is for a name; "" for none."""
        if not name.strip():
            return ""
        with self.lock:
            # Made once: with another salt all who are here already would be somebody else.
            new = not self.tables.rows("SELECT 1 FROM log WHERE by != '' LIMIT 1")
            make = new and not salt_path(self.path).exists()
            try:
                return pseudonym(name, read_salt(self.path, make=make))
            except UnicodeEncodeError as error:
                raise FeedbackError(f"the name {name[:40]!r} has half a character in it. Give it as text.") from error

    def add_text(self, text: str) -> str:
        """Keep a contract's text, once; its SHA-256."""
        try:
            sha = sha256(text)
        except UnicodeEncodeError as error:
            raise FeedbackError(
                f"the contract has half a character (a lone surrogate) at {error.start}. Read its file again as UTF-8."
            ) from error
        self.tables.insert("texts", {"sha256": sha, "text": text}, "ON CONFLICT (sha256) DO NOTHING")
        return sha

    def add(self, kind: str, about: str, body: dict[str, Any], by: str = "", text: str = "") -> dict[str, Any]:
        """Add a row that is new, now; `text` is the contract that its offsets count in. Returns its columns."""
        return self._insert(Row(kind, about, by, self._now(), token_hex(4), body), text)

    def add_rows(self, rows: Iterable[Row], texts: Iterable[str]) -> tuple[int, int, int]:
        """Add rows from elsewhere, all or nothing: how many are new, were here already, had been withdrawn here.

        What a row is about must stand before it or be here.
        """
        counts = [0, 0, 0]
        with self.writing():
            for text in texts:
                self.add_text(text)
            for row in rows:
                counts[self._add_row(row)] += 1
        return counts[0], counts[1], counts[2]

    def _add_row(self, row: Row) -> int:
        if self.tables.rows("SELECT 1 FROM log WHERE id = ?", row_id(row)):
            return 1
        withdrawal = "SELECT 1 FROM log WHERE kind = 'withdrawal' AND by = ? AND at >= ?"
        if row.kind in EVENTS and row.by and self.tables.rows(withdrawal, row.by, row.at):
            return 2
        parent = ABOUT[row.kind]
        if parent is None and row.about:
            raise FeedbackError(f"the {row.kind} {row_id(row)} is about {row.about!r}; it must be about nothing.")
        about = self.row(row.about, parent) if parent else None
        text = ""
        if row.kind == "asked":
            text = self.text(str(row.body.get("sha256")))
        elif row.kind == "answered":
            text = self.text_of(about)
        elif row.kind == "correction":
            text = self.text_of(self.asked_by(row.about))
        self._insert(row, text)
        return 0

    def _insert(self, row: Row, text: str) -> dict[str, Any]:
        check_body(row.kind, row.body, text)
        if row.kind == "candidates" and self.same_question(row.body["left_id"], row.body["right_id"]) != row.about:
            raise FeedbackError(f"the candidates answer another question than {row.about!r}.")
        body = json.dumps(row.body, ensure_ascii=False)
        try:
            body.encode()
        except UnicodeEncodeError as error:
            raise FeedbackError(f"the {row.kind} has half a character in it. Give it as text.") from error
        values = {"id": row_id(row), "kind": row.kind, "about": row.about, "by": row.by, "at": row.at}
        values |= {"nonce": row.nonce, "body": body}
        self.tables.insert("log", values)
        if row.kind == "withdrawal":
            self._withdraw(row.body["event_ids"], row.by)
        return values

    def same_question(self, left_id: str, right_id: str) -> str:
        """The id of the question that both answers are to; FeedbackError for one answer, or two questions."""
        left, right = (self.row(each, "answered")["about"] for each in (left_id, right_id))
        if left != right or left_id == right_id:
            raise FeedbackError(f"{left_id} and {right_id} are not two answers to one question. Give two.")
        return left

    def _withdraw(self, event_ids: Sequence[str], by: str) -> None:
        for event_id in event_ids:
            rows = self.tables.rows("SELECT by, kind FROM log WHERE id = ?", event_id)
            if any(row["by"] != by or row["kind"] not in EVENTS for row in rows):
                raise FeedbackError(f"{event_id} was to be withdrawn by somebody who did not say it.")
            self.tables.insert("withdrawn", {"event_id": event_id}, "ON CONFLICT (event_id) DO NOTHING")
