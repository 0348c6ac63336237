"""Feedback that is kept, in one SQLite file: what was asked and answered, and what people said of it.

    with FeedbackStore.open("feedback.db") as store:
        answered = store.answer(store.ask("Which law governs?", contract), Said("Ohio", True))
        store.rate(answered.id, thumbs="down", by="Ada")
        store.correct(answered.id, found=True, spans=[Span(5120, 5137)], by="Ada")

Rows are added and never changed; what a method has returned for is on the disk. Many processes and threads may use one
file. Not handled: wiping what was withdrawn from the file itself (export it, and import that into a new one).
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from corpora.types import Contract, Quote, Span
from modules.index_files import StoreError
from program.feedback.log import Log, utc_now
from program.feedback.rows import (
    ABOUT,
    EVENTS,
    FeedbackError,
    UnknownError,
    answered_of,
    asked_of,
    candidates_of,
    event_of,
    said_body,
)
from program.feedback.tables import open_tables
from program.feedback.types import (
    Answered,
    Asked,
    Candidates,
    Choice,
    Correction,
    Event,
    Rating,
    Said,
    Skip,
    Withdrawal,
)

__all__ = ["FeedbackError", "FeedbackStore", "StoreError", "UnknownError"]

_ANSWERS = "SELECT l.*, q.body AS parent FROM live AS l JOIN log AS q ON q.id = l.about WHERE l.kind = 'answered'"
# A choice with its candidates, a correction with its contract.
_EVENTS = """
SELECT l.*, p.body AS parent, json_extract(q.body, '$.contract_id') AS contract_id FROM live AS l
LEFT JOIN log AS p ON l.kind = 'choice' AND p.id = l.about
LEFT JOIN log AS a ON l.kind = 'correction' AND a.id = l.about
LEFT JOIN log AS q ON q.id = a.about
WHERE l.kind IN """


class FeedbackStore:
    """The open store; every method that writes is one transaction, on the disk when it returns.

    All raise FeedbackError for what breaks a rule, UnknownError (a FeedbackError) for an id that is not here, and
    StoreError where the file cannot be used.
    """

    def __init__(self, log: Log) -> None:
        """Use `open`."""
        self.log = log

    @classmethod
    def open(cls, path: str | Path, *, now: Callable[[], str] = utc_now) -> Self:
        """Open the store at `path`, or make one where there is no file; `now` is the clock.

        StoreError if the file is something else, is damaged, or was written by a newer version.
        """
        return cls(Log(open_tables(Path(path)), now))

    def close(self) -> None:
        """Let go of the file; the last to do so leaves one file, without SQLite's `-wal` beside it."""
        with self.log.lock:
            self.log.tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, question: str, contract: Contract, category: str | None = None) -> Asked:
        """Record that something is asked of a contract; the contract's text is kept, once."""
        with self.log.writing():
            sha = self.log.add_text(contract.text)
            body = {"question": question, "contract_id": contract.id, "category": category, "sha256": sha}
            return asked_of(self.log.add("asked", "", body))

    def answer(self, asked: Asked | str, said: Said) -> Answered:
        """Record what a program said to a question."""
        asked_id = asked if isinstance(asked, str) else asked.id
        with self.log.writing():
            question = self.log.row(asked_id, "asked")
            contract_id = json.loads(question["body"])["contract_id"]
            if other := [quote for quote in said.quotes if quote.contract_id != contract_id]:
                raise FeedbackError(f"{other[0]} is of another contract than {contract_id!r}. Leave it out.")
            row = self.log.add("answered", asked_id, said_body(said), text=self.log.text_of(question))
            return answered_of(row | {"parent": question["body"]})

    def offer(self, left_id: str, right_id: str) -> Candidates:
        """Record that two answers to one question are laid side by side, the first on the left."""
        with self.log.writing():
            asked_id = self.log.same_question(left_id, right_id)
            return candidates_of(self.log.add("candidates", asked_id, {"left_id": left_id, "right_id": right_id}))

    def rate(
        self, answer_id: str, *, thumbs: str | None = None, stars: int | None = None, comment: str = "", by: str = ""
    ) -> Rating:
        """Record what somebody thinks of an answer: `thumbs` "up" or "down", `stars` 1 to 5, a comment."""
        return self._event("rating", answer_id, {"thumbs": thumbs, "stars": stars, "comment": comment}, by)

    def correct(
        self,
        answer_id: str,
        *,
        found: bool,
        answer: str | None = None,
        spans: Sequence[Span | Quote] = (),
        comment: str = "",
        by: str = "",
    ) -> Correction:
        """Record what an answer should have been; `found` False where the contract has none.

        Spans count in the text that the question was put to; the text of a `Quote` must stand there.
        """
        asked = self.log.asked_by(answer_id)
        text = self.log.text_of(asked)
        ordered = sorted(spans, key=lambda span: (span.start, span.end))
        rows = [[span.start, span.end, getattr(span, "text", text[span.start : span.end])] for span in ordered]
        body = {"found": found, "answer": answer, "spans": rows, "comment": comment}
        return self._event("correction", answer_id, body, by, text, json.loads(asked["body"])["contract_id"])

    def choose(self, candidates_id: str, chosen: str, *, comment: str = "", by: str = "") -> Choice:
        """Record which of two candidates somebody prefers: "left", "right" or "tie"."""
        return self._event("choice", candidates_id, {"chosen": chosen, "comment": comment}, by)

    def skip(self, answer_id: str, *, by: str = "") -> Skip:
        """Record that somebody would not judge an answer."""
        return self._event("skip", answer_id, {}, by)

    def withdraw(self, by: str) -> Withdrawal:
        """Take back all that a person has said so far: it is no longer read, nor exported, nor imported again.

        The rows stay in the file. FeedbackError where the store has nothing of this person.
        """
        with self.log.writing():
            who = self.pseudonym(by)
            rows = self.log.tables.rows(f"SELECT id FROM live WHERE by = ? AND kind IN {EVENTS}", who) if who else ()
            if not rows:
                raise FeedbackError("nothing that this person has said is in the store; give the name as it was given.")
            return event_of(self.log.add("withdrawal", "", {"event_ids": [row["id"] for row in rows]}, who))

    def answers(self, contract_id: str | None = None, *, after: str = "") -> Iterator[Answered]:
        """Recorded answers, in the order they came: all, or those about one contract; behind that of the id `after`."""
        seq = self.log.row(after, "answered")["seq"] if after else 0
        found = map(answered_of, self.log.paged(f"{_ANSWERS} AND l.seq > {seq}"))
        return (each for each in found if contract_id in (None, each.contract_id))

    def answered(self, answer_id: str) -> Answered:
        """The answer of that id."""
        row = self.log.row(answer_id, "answered")
        return answered_of(dict(row) | {"parent": self.log.row(row["about"], "asked")["body"]})

    def candidates(self, candidates_id: str) -> Candidates:
        """The two candidates of that id."""
        return candidates_of(self.log.row(candidates_id, "candidates"))

    def events(self, *kinds: str, answer_id: str | None = None) -> Iterator[Event]:
        """What people said and have not withdrawn, in the order it came; of one answer where `answer_id` is given.

        `kinds` are among "rating", "correction", "choice" and "skip"; none are all.
        """
        if unknown := set(kinds) - set(EVENTS):
            raise FeedbackError(f"there are no events of the kind {sorted(unknown)}; there are {', '.join(EVENTS)}.")
        named = ", ".join(f"'{kind}'" for kind in kinds or EVENTS)
        events = map(event_of, self.log.paged(f"{_EVENTS} ({named})"))
        return (event for event in events if answer_id in (None, *answers_of(event)))

    def contract_text(self, asked: Asked | Answered) -> str:
        """The text that the question was put to, which offsets count in."""
        return self.log.text(asked.contract_sha256)

    def pseudonym(self, name: str) -> str:
        """What `by` is for a name; "" for none."""
        return self.log.pseudonym(name)

    def rows(self) -> Iterator[sqlite3.Row]:
        """All rows of the log but those withdrawn, as they stand in it: what `exchange` writes."""
        return self.log.paged("SELECT l.* FROM live AS l WHERE 1")

    def _event(
        self, kind: str, about: str, body: dict[str, Any], by: str, text: str = "", contract_id: str | None = None
    ) -> Any:
        with self.log.writing():
            parent = self.log.row(about, ABOUT[kind])
            row = self.log.add(kind, about, body, self.pseudonym(by), text)
            return event_of(row | {"parent": parent["body"], "contract_id": contract_id})


def answers_of(event: Event) -> tuple[str, ...]:
    """The ids of the answers that an event is about: both candidates of a choice."""
    return (event.left_id, event.right_id) if isinstance(event, Choice) else (event.answer_id,)
