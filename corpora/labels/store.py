"""Labels that are kept, in one SQLite file: what each was made from, what was tried, what is held out.

Rows are added and never changed or deleted; taking a label back is a row too. One real row of `labels`:

    id="b1d4...", contract_id="acme-2019", question="Which law governs?", spans="[[5120, 5201]]", answer="Ohio",
    method="answer", by="local/evergreen-base", source="synthetic", trail='[["verbatim", ""]]', at="2026-11-21T23..."

Many processes may write to one file; within a process, a thread opens its own. Not handled: versions of a contract
(another text is another contract), and models that were trained on a label before it was taken back.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from corpora.errors import CorpusError
from corpora.labels import held_out
from corpora.labels.rows import (
    Asked,
    Trail,
    Unit,
    check_draft,
    checked_asked,
    checked_contracts,
    content_id,
    folded,
    label_row,
    one_of,
    record_of,
    sha256,
    unit_id,
)
from corpora.labels.tables import Tables
from corpora.labels.types import SOURCES, Draft, Record
from corpora.types import Contract, Corpus, Label, Place

HELD_OUT_SIDES = ("val", "test")
# Who is believed where two labels answer one question.
_RANK = {"synthetic": 0, "feedback": 1, "human": 2}


@dataclass(frozen=True, slots=True)
class Provenance:
    """A record's history: (source, by, at) of each that gave the label, (by, why, at) of each that took it back.

    `parents` are the records that it follows, as far as the store holds them.
    """

    record: Record
    assertions: tuple[tuple[str, str, str], ...]
    retractions: tuple[tuple[str, str, str], ...]
    parents: tuple[Record, ...]


def label_id(label: Label, contract_text: str) -> str:
    """32 hex characters of the SHA-256 of contract text, question text (white space folded), spans and answer.

    What the contract and the question are called plays no part: the same label from two corpora is one.
    """
    return content_id(label, sha256(contract_text))


class LabelStore:
    """The open store; every method that writes is one transaction, on the disk when it returns."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the store at `path`, or make one where there is no file.

        CorpusError if the file is something else, is damaged, or was written by a newer version.
        """
        return cls(Tables.open(Path(path)))

    def close(self) -> None:
        """Let go of the file; the last to do so leaves one file, without SQLite's `-wal` beside it."""
        self._tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_contracts(self, contracts: Iterable[Contract]) -> None:
        """Keep contracts and their texts; those that are here already are passed over.

        One that is a near-duplicate of a held-out contract is held out with it: with any held out, that search is over
        all the store, so give the contracts in one call. CorpusError for an id that has another text, and for a
        contract that would join a held-out one to another side or to one that synthetic labels train on.
        """
        held_out.place(self._tables, checked_contracts(contracts), None)

    def hold_out(self, contracts: Iterable[Contract], side: str) -> None:
        """Keep contracts, and with them all their near-duplicates, for "val" or "test": nothing trains on them.

        CorpusError, by name, for those that synthetic labels train on already or that the other side holds.
        """
        one_of(side, HELD_OUT_SIDES, "side")
        held_out.place(self._tables, checked_contracts(contracts), side)

    def refuse_overlap(self, contracts: Iterable[Contract]) -> None:
        """CorpusError that names each of the contracts that is held out, or is a near-duplicate of one that is."""
        held_out.refuse_overlap(self._tables, contracts)

    def add(self, drafts_with_trails: Iterable[tuple[Draft, Trail]], source: str, asked: Iterable[Asked] = ()) -> int:
        """Keep drafts, and note the units of work that were done for them; all or nothing. Returns how many are new.

        A label that is here already keeps its first provenance, and who gives it again is noted. `asked` are units with
        their outcome: "kept" or "<filter>: <reason>"; a unit that gave several drafts has a row each. CorpusError for a
        contract that is not here, spans outside its text, and a synthetic label on a contract that is held out.
        """
        one_of(source, SOURCES, "source")
        drafts, asked, at = list(drafts_with_trails), [checked_asked(row) for row in asked], _now()
        with self._tables.transaction():
            ids = {draft.label.question.contract_id for draft, _ in drafts} | {row[0] for row in asked}
            known = {contract_id: self._contract_row(contract_id) for contract_id in ids}
            n_new = 0
            for draft, trail in drafts:
                row = known[draft.label.question.contract_id]
                held_out.refuse_held(self._tables, draft, row, source)
                check_draft(draft, trail, row["n_chars"])
                values = label_row(draft, trail, source, row["sha256"], at)
                n_new += self._tables.insert("labels", values, "ON CONFLICT (id) DO NOTHING")
                assertion = {"label_id": values["id"], "source": source, "by": draft.by, "at": at}
                self._tables.insert("assertions", assertion)
            names = ("contract_id", "question", "method", "by", "prompt", "outcome")
            for row in asked:
                noted = {"unit": unit_id(row[:5]), **dict(zip(names, row, strict=True)), "at": at}
                self._tables.insert("ledger", noted)
        return n_new

    def was_asked(self, units: Iterable[Unit]) -> list[bool]:
        """For each unit, whether `add` has noted it; white space in questions is folded."""
        sql = "SELECT 1 FROM ledger WHERE unit = ? LIMIT 1"
        return [bool(self._tables.rows(sql, unit_id(unit))) for unit in units]

    def dropped_counts(self) -> dict[str, int]:
        """How many drafts each filter has dropped, the most first."""
        rows = self._tables.rows("SELECT outcome FROM ledger WHERE outcome != 'kept'")
        return dict(Counter(row["outcome"].partition(":")[0] for row in rows).most_common())

    def records(
        self, source: str | None = None, side: str | None = None, *, retracted: bool = False
    ) -> Iterator[Record]:
        """Records in the order they came: of one source, and of the side "val", "test" or "train" (not held out).

        Those that were taken back are among them only if `retracted`.
        """
        table = "labels" if retracted else "live"
        sql = f"SELECT l.* FROM {table} AS l LEFT JOIN held_out AS h USING (sha256) WHERE {_on_side(side)}"
        if source is not None:
            one_of(source, SOURCES, "source")
            sql += f" AND l.source = '{source}'"
        return map(record_of, self._tables.paged(sql))

    def contracts(self, side: str | None = None) -> tuple[Contract, ...]:
        """Contracts in the order they came: all, or those of the side "val", "test" or "train" (not held out)."""
        sql = "SELECT c.id, t.text, c.places FROM contracts AS c JOIN texts AS t USING (sha256)"
        rows = self._tables.rows(f"{sql} LEFT JOIN held_out AS h USING (sha256) WHERE {_on_side(side)} ORDER BY c.seq")
        return tuple(Contract(r["id"], r["text"], tuple(Place(*p) for p in json.loads(r["places"]))) for r in rows)

    def training(self) -> Corpus:
        """All labels that are neither held out nor taken back, and their contracts: one label a contract and question.

        A person's label stands before feedback's, and that before a synthetic one; of equals the last that was given.
        """
        given: dict[str, tuple[int, int]] = {}
        sql = "SELECT label_id, source, max(seq) AS seq FROM assertions GROUP BY label_id, source"
        for row in self._tables.rows(sql):
            given[row["label_id"]] = max(given.get(row["label_id"], (-1, 0)), (_RANK[row["source"]], row["seq"]))
        best: dict[tuple[str, str], sqlite3.Row] = {}
        sql = "SELECT l.* FROM live AS l WHERE l.sha256 NOT IN (SELECT sha256 FROM held_out) ORDER BY l.seq"
        for row in self._tables.rows(sql):
            key = (row["sha256"], folded(row["question"]))
            if key not in best or given[row["id"]] > given[best[key]["id"]]:
                best[key] = row
        labels = tuple(record_of(row).draft.label for row in sorted(best.values(), key=lambda row: row["seq"]))
        ids = {label.question.contract_id for label in labels}
        return Corpus("labels", tuple(c for c in self.contracts("train") if c.id in ids), labels)

    def provenance(self, label_id: str) -> Provenance:
        """Where a label came from, who gave it again and who took it back; CorpusError if there is none of that id."""
        record = self._record(label_id)
        if record is None:
            raise CorpusError(f"{self._tables.path} has no label {label_id!r}. Ids are those of `records()`.")
        assertions = self._tables.rows(
            "SELECT source, by, at FROM assertions WHERE label_id = ? ORDER BY seq", label_id
        )
        retractions = self._tables.rows("SELECT by, why, at FROM retractions WHERE label_id = ? ORDER BY seq", label_id)
        parents = (self._record(parent) for parent in record.draft.parents)
        found = tuple(parent for parent in parents if parent is not None)
        return Provenance(record, tuple(map(tuple, assertions)), tuple(map(tuple, retractions)), found)

    def retract(self, label_id: str, by: str, why: str) -> None:
        """Take a label back: its row stays, and nothing trains on it unless a person gives it again.

        CorpusError if there is none of that id, or if `by` or `why` is empty.
        """
        if not by.strip() or not why.strip():
            raise CorpusError(
                f"label {label_id!r} was to be taken back by {by!r} for {why!r}. Say who does it and why."
            )
        with self._tables.transaction():
            self.provenance(label_id)
            after = self._tables.rows("SELECT coalesce(max(seq), 0) AS seq FROM assertions")[0]["seq"]
            row = {"label_id": label_id, "by": by, "why": why, "at": _now(), "after": after}
            self._tables.insert("retractions", row)

    def _contract_row(self, contract_id: str) -> sqlite3.Row:
        sql = "SELECT * FROM contracts JOIN texts USING (sha256) LEFT JOIN held_out USING (sha256) WHERE id = ?"
        rows = self._tables.rows(sql, contract_id)
        if not rows:
            raise CorpusError(
                f"{self._tables.path} has no contract {contract_id!r}. Add it with `add_contracts` first."
            )
        return rows[0]

    def _record(self, label_id: str) -> Record | None:
        rows = self._tables.rows("SELECT * FROM labels WHERE id = ?", label_id)
        return record_of(rows[0]) if rows else None


def _on_side(side: str | None) -> str:
    if side is None:
        return "1"
    one_of(side, ("train", *HELD_OUT_SIDES), "side")
    return "h.side IS NULL" if side == "train" else f"h.side = '{side}'"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
