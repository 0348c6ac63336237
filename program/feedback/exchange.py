"""Feedback as files: JSON that another store takes in as it is, CSV for a spreadsheet.

One real row, in JSON:

    {"id": "77c0...", "kind": "rating", "about": "5c1e...", "by": "3e1f...", "at": "2026-11-22T09:15:44.001201Z",
     "nonce": "b01f22c4", "body": {"thumbs": "down", "stars": 2, "comment": "the wrong state"}}

What was withdrawn is in neither. Pseudonyms are as they stand: the same person in two stores has two.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpora.errors import CorpusError
from corpora.labels.exchange import all_are, exactly, get, parsed
from corpora.labels.formats import formula_safe, replace_text
from program.feedback.rows import ABOUT, FeedbackError, Row, UnknownError, row_id
from program.feedback.store import FeedbackStore
from program.feedback.types import Answered, Choice, Correction, Event, Rating

_FORMAT = "evergreen-feedback-1"
_ROW = ("id", "kind", "about", "by", "at", "nonce", "body")
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
CSV_COLUMNS = (
    "kind", "at", "by", "contract_id", "category", "question", "release", "answer", "found", "quotes", "confidence",
    "other_answer", "thumbs", "stars", "chosen", "corrected_found", "corrected_answer", "corrected_quotes", "comment",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Imported:
    """Rows of a file: how many are new, how many the store had, and how many somebody has withdrawn from it since."""

    n_new: int
    n_known: int
    n_withdrawn: int


def write_feedback(store: FeedbackStore, path: str | Path) -> None:
    """Write `.json` (all of it) or `.csv` (a line for each thing said; not read back), whole or not at all.

    FeedbackError for another suffix, or a path that cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv"):
        raise FeedbackError(f"{path} is neither .json nor .csv. Choose one of these suffixes.")
    text = _json(store) if path.suffix == ".json" else _csv(store)
    try:
        replace_text(path, text)
    except OSError as error:
        raise FeedbackError(
            f"{path} cannot be written ({error.strerror}). Give a path in a folder that is there."
        ) from error


def read_feedback(store: FeedbackStore, path: str | Path) -> Imported:
    """Take in what `write_feedback` wrote as JSON, all or nothing; what is here already is passed over.

    FeedbackError, naming the row, for whatever is not so: ids that are not the rows', spans that are not in the
    contract, answers to questions that are not there.
    """
    path = Path(path)
    try:
        raw = parsed(path.read_bytes().decode("utf-8-sig"), str(path))
        exactly(raw, ("format", "contracts", "rows"), str(path))
        if raw["format"] != _FORMAT:
            raise FeedbackError(
                f"{path} has the format {raw['format']!r}. This reads {_FORMAT!r}; write the file anew."
            )
        contracts, entries = get(raw, "contracts", list, str(path)), get(raw, "rows", list, str(path))
        if not all_are(contracts, str):
            raise FeedbackError(f"{path}: 'contracts' must be texts. Write the file anew.")
        rows = [_row(entry, f"{path}, rows[{i}]") for i, entry in enumerate(entries)]
        return Imported(*store.log.add_rows(rows, contracts))
    except OSError as error:
        raise FeedbackError(f"{path} cannot be read ({error.strerror}). Give a file of feedback.") from error
    except UnicodeDecodeError as error:
        raise FeedbackError(f"{path} is not UTF-8 ({error}). Write it anew.") from error
    except (CorpusError, UnknownError) as error:
        raise FeedbackError(f"{path}: {error}") from error


def _row(entry: Any, where: str) -> Row:
    exactly(entry, _ROW, where)
    texts = {name: get(entry, name, str, where) for name in _ROW if name not in ("id", "body")}
    if texts["kind"] not in ABOUT:
        raise FeedbackError(f"{where}: nothing is of the kind {texts['kind']!r}; there are {', '.join(ABOUT)}.")
    if not _AT.fullmatch(texts["at"]):
        raise FeedbackError(f"{where}: 'at' is {texts['at']!r}; it must be as 2026-11-22T09:15:44.001201Z, in UTC.")
    row = Row(**texts, body=get(entry, "body", dict, where))
    if row_id(row) != entry["id"]:
        raise FeedbackError(
            f"{where}: the id is {entry['id']!r}, but that of this row is {row_id(row)!r}: it was changed. "
            "Export it again."
        )
    return row


def _json(store: FeedbackStore) -> str:
    rows = [{name: row[name] for name in _ROW} | {"body": json.loads(row["body"])} for row in store.rows()]
    shas = dict.fromkeys(row["body"]["sha256"] for row in rows if row["kind"] == "asked")
    content = {"format": _FORMAT, "contracts": [store.log.text(sha) for sha in shas], "rows": rows}
    return json.dumps(content, ensure_ascii=False, indent=1)


def _csv(store: FeedbackStore) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, CSV_COLUMNS)
    writer.writeheader()
    for line in _lines(store):
        writer.writerow({name: "" if value is None else formula_safe(str(value)) for name, value in line.items()})
    # With the mark of UTF-8 in front: without it spreadsheets take curly quotes for something else.
    return "\ufeff" + file.getvalue()


def _lines(store: FeedbackStore) -> Iterator[dict[str, Any]]:
    events = list(store.events())
    answers = {answered.id: answered for answered in store.answers()}
    for event in events:
        first = answers[event.left_id if isinstance(event, Choice) else event.answer_id]
        line = {"kind": type(event).__name__.lower(), "at": event.at, "by": event.by} | _of_answer(first)
        yield line | _of_event(event, answers)


def _of_answer(answered: Answered) -> dict[str, Any]:
    return {
        "contract_id": answered.contract_id, "category": answered.category, "question": answered.question,
        "release": answered.release, "answer": answered.answer, "found": answered.found,
        "quotes": json.dumps([quote.text for quote in answered.quotes], ensure_ascii=False),
        "confidence": answered.confidence,
    }  # fmt: skip


def _of_event(event: Event, answers: dict[str, Answered]) -> dict[str, Any]:
    if isinstance(event, Rating):
        return {"thumbs": event.thumbs, "stars": event.stars, "comment": event.comment}
    if isinstance(event, Choice):
        return {"other_answer": answers[event.right_id].answer, "chosen": event.chosen, "comment": event.comment}
    if isinstance(event, Correction):
        quotes = json.dumps([span.text for span in event.spans], ensure_ascii=False)
        corrected = {"corrected_found": event.found, "corrected_answer": event.answer, "corrected_quotes": quotes}
        return corrected | {"comment": event.comment}
    return {}
