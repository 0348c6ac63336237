"""Feedback as rows of the log, and back: the hash that names a row, and what is checked before one is written.

The same checks stand before what is said now and what comes from a file.
"""

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from corpora.labels.rows import folded, sha256
from corpora.types import Quote
from program.feedback.types import (
    CHOSEN,
    THUMBS,
    Answered,
    Asked,
    Candidates,
    Choice,
    Correction,
    Event,
    Rating,
    Said,
    Shown,
    Skip,
    Withdrawal,
)

MAX_COMMENT_CHARS = 10_000
MAX_QUESTION_CHARS = 4_000
# What a row of each kind speaks of, and what its body holds.
ABOUT = {
    "asked": None, "answered": "asked", "candidates": "asked", "rating": "answered", "correction": "answered",
    "choice": "candidates", "skip": "answered", "withdrawal": None,
}  # fmt: skip
EVENTS = ("rating", "correction", "choice", "skip")
_SAID = tuple(field.name for field in fields(Said))
BODY = {
    "asked": ("question", "contract_id", "category", "sha256"),
    "answered": _SAID,
    "candidates": ("left_id", "right_id"),
    "rating": ("thumbs", "stars", "comment"),
    "correction": ("found", "answer", "spans", "comment"),
    "choice": ("chosen", "comment"),
    "skip": (),
    "withdrawal": ("event_ids",),
}


_NUMBERS = ("confidence", "p_answered", "samples_agree", "latency_s")
_TYPES: dict[str, tuple[type | None, ...]] = {
    "found": (bool,), "readable": (bool,), "predictor": (int,), "stars": (int, None),
    "category": (str, None), "answer": (str, None), "thumbs": (str, None),
} | {name: (float, int, None) for name in _NUMBERS}  # fmt: skip
# Of what is a list, what each of its entries is; all other values are texts.
_LISTS: dict[str, tuple[type, ...]] = {
    "quotes": (int, int, str), "spans": (int, int, str), "passages": (str, str, int, int), "inputs": (str, str),
}  # fmt: skip


class FeedbackError(ValueError):
    """What is said breaks a rule: an unknown id, spans that are not in the contract, stars of 7."""


class UnknownError(FeedbackError):
    """What is spoken of is not in the store."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the log; `body` is of plain JSON values."""

    kind: str
    about: str
    by: str
    at: str
    nonce: str
    body: Mapping[str, Any]


def row_id(row: Row) -> str:
    """32 hex characters of the SHA-256 of all that is in the row."""
    parts = [row.kind, row.about, row.by, row.at, row.nonce, row.body]
    return sha256(json.dumps(parts, sort_keys=True))[:32]


def said_body(said: Said) -> dict[str, Any]:
    """The body of an answer; quotes, passages and inputs as lists."""
    body = {name: getattr(said, name) for name in _SAID}
    for name in _NUMBERS:  # of numpy's, say
        body[name] = None if body[name] is None else float(body[name])
    body["quotes"] = [[quote.start, quote.end, quote.text] for quote in said.quotes]
    body["passages"] = [[p.id, p.contract_id, p.start, p.end] for p in said.passages]
    body["inputs"] = [list(pair) for pair in said.inputs]
    return body


def asked_of(row: Mapping[str, Any]) -> Asked:
    """The question in a row."""
    body = json.loads(row["body"])
    return Asked(row["id"], body["question"], body["contract_id"], body["category"], body["sha256"], row["at"])


def answered_of(row: sqlite3.Row) -> Answered:
    """The answer in a row that has its question's body beside it, as `parent`."""
    body, asked = json.loads(row["body"]), json.loads(row["parent"])
    contract_id = asked["contract_id"]
    return Answered(
        **body
        | {
            "quotes": _quotes(body["quotes"], contract_id),
            "passages": tuple(Shown(*one) for one in body["passages"]),
            "inputs": tuple((name, value) for name, value in body["inputs"]),
        },
        id=row["id"],
        asked_id=row["about"],
        question=asked["question"],
        contract_id=contract_id,
        category=asked["category"],
        contract_sha256=asked["sha256"],
        at=row["at"],
    )


def candidates_of(row: Mapping[str, Any]) -> Candidates:
    """The two candidates in a row."""
    body = json.loads(row["body"])
    return Candidates(row["id"], row["about"], body["left_id"], body["right_id"], row["at"])


def event_of(row: Mapping[str, Any]) -> Event | Withdrawal:
    """The event in a row; `parent` is the body of the candidates of a choice, `contract_id` that of a correction."""
    body, ends = json.loads(row["body"]), {"by": row["by"], "at": row["at"]}
    if row["kind"] == "rating":
        return Rating(row["id"], row["about"], **body, **ends)
    if row["kind"] == "correction":
        body["spans"] = _quotes(body["spans"], row["contract_id"])
        return Correction(row["id"], row["about"], **body, **ends)
    if row["kind"] == "choice":
        return Choice(row["id"], row["about"], **json.loads(row["parent"]), **body, **ends)
    if row["kind"] == "skip":
        return Skip(row["id"], row["about"], **ends)
    return Withdrawal(row["id"], row["by"], tuple(body["event_ids"]), row["at"])


def _quotes(rows: list[list[Any]], contract_id: str) -> tuple[Quote, ...]:
    return tuple(Quote(text, contract_id, start, end) for start, end, text in rows)


def check_body(kind: str, body: Mapping[str, Any], contract_text: str) -> None:
    """FeedbackError for a body that breaks a rule of its kind; `contract_text` is that of the contract it is about."""
    _check_types(kind, body)
    for name, most in (("comment", MAX_COMMENT_CHARS), ("question", MAX_QUESTION_CHARS)):
        if len(body.get(name) or "") > most:
            raise FeedbackError(f"the {name} has {len(body[name])} characters; at most {most} are kept. Shorten it.")
    if kind == "asked" and not body["question"].strip():
        raise FeedbackError("the question is empty; ask something about the contract.")
    if kind == "answered":
        _check_said(body, contract_text)
    elif kind == "rating":
        _check_rating(body)
    elif kind == "correction":
        _check_correction(body, contract_text)
    elif kind == "choice" and body["chosen"] not in CHOSEN:
        raise FeedbackError(f"{body['chosen']!r} was chosen; choose one of {', '.join(CHOSEN)}.")


def _check_types(kind: str, body: Mapping[str, Any]) -> None:
    if set(body) != set(BODY[kind]):
        raise FeedbackError(f"the {kind} has {sorted(body)}; it must have {sorted(BODY[kind])}.")
    for name, value in body.items():
        if name in _LISTS:
            fits = type(value) is list and all(_is_entry(entry, _LISTS[name]) for entry in value)
        elif name == "event_ids":
            fits = type(value) is list and all(type(entry) is str for entry in value)
        else:
            # Not isinstance: true is an int too.
            fits = (None if value is None else type(value)) in _TYPES.get(name, (str,))
        if not fits:
            raise FeedbackError(f"the {name} of the {kind} is {str(value)[:60]!r}, which is of no fitting type.")


def _is_entry(entry: Any, types: tuple[type, ...]) -> bool:
    return type(entry) is list and tuple(map(type, entry)) == types


def _check_said(body: Mapping[str, Any], contract_text: str) -> None:
    for name in _NUMBERS:
        most = math.inf if name == "latency_s" else 1
        if body[name] is not None and not (0 <= body[name] <= most and math.isfinite(body[name])):
            raise FeedbackError(f"the answer's {name} is {body[name]}; it must be in [0, {most}], or None.")
    if body["answer"] is None:
        raise FeedbackError('the answer is None; give a text, "" where it could not be read.')
    check_spans(body["quotes"], contract_text, "quote")
    if body["quotes"] and not body["found"]:
        raise FeedbackError("the answer says that there is none, and has quotes. Drop them, or say found=True.")


def _check_rating(body: Mapping[str, Any]) -> None:
    thumbs, stars = body["thumbs"], body["stars"]
    if thumbs is not None and thumbs not in THUMBS:
        raise FeedbackError(f"the thumbs are {thumbs!r}; give one of {', '.join(THUMBS)}, or None.")
    if stars is not None and not (type(stars) is int and 1 <= stars <= 5):
        raise FeedbackError(f"there are {stars!r} stars; give a whole number from 1 to 5, or None.")
    if thumbs is None and stars is None and not body["comment"].strip():
        raise FeedbackError("the rating says nothing: give thumbs, stars or a comment.")


def _check_correction(body: Mapping[str, Any], contract_text: str) -> None:
    check_spans(body["spans"], contract_text, "span")
    answer = (body["answer"] or "").strip()
    if body["found"] and not body["spans"] and not answer:
        raise FeedbackError("the correction says nothing: select the words that answer, or write the answer.")
    if not body["found"] and (body["spans"] or answer):
        raise FeedbackError("the correction says that there is no answer, and gives one. Leave it out, or found=True.")
    ends = [(start, end) for start, end, _ in body["spans"]]
    if ends != sorted(set(ends)):
        raise FeedbackError(f"the spans are {ends[:5]}; give them in document order, none twice.")


def check_spans(spans: list[list[Any]], contract_text: str, what: str) -> None:
    """FeedbackError unless each (start, end, text) stands in the contract: `text == contract_text[start:end]`."""
    for start, end, text in spans:
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(contract_text):
            raise FeedbackError(
                f"a {what} goes from {start} to {end}; it must have a length and be in the contract's "
                f"{len(contract_text)} characters (half-open, counted from 0)."
            )
        if contract_text[start:end] != text:
            raise FeedbackError(
                f"the contract has {contract_text[start:end][:60]!r} at {start} to {end} where the {what} is "
                f"{text[:60]!r}. Offsets count characters (code points) from 0; correct the offsets or the text."
            )


def same_question(question: str) -> str:
    """What two wordings of one question have in common: white space and case are no difference."""
    return folded(question).casefold()
