"""Labels and contracts as rows of a label store, and back: content hashes, and the checks before a row is written."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from corpora.errors import CorpusError
from corpora.labels.types import Draft, Record
from corpora.types import Contract, Label, Question, Span

Trail = Sequence[tuple[str, str]]
Unit = tuple[str, str, str, str, str]  # contract id, question's text, method, by, prompt
Asked = tuple[str, str, str, str, str, str]  # a unit and its outcome


def checked_contracts(contracts: Iterable[Contract]) -> dict[str, tuple[Contract, str]]:
    """Contracts with their texts' hashes, by id; CorpusError for one without text, or two texts under one id."""
    given: dict[str, tuple[Contract, str]] = {}
    for contract in contracts:
        if not contract.id or not contract.text.strip():
            raise CorpusError(f"the contract {contract.id!r} has no id or no text. Give it both, or leave it out.")
        try:
            sha = sha256(contract.text)
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"the contract {contract.id!r} has half a character (a lone surrogate) at {error.start}. "
                "Read its file again as UTF-8."
            ) from error
        if given.setdefault(contract.id, (contract, sha))[1] != sha:
            raise CorpusError(f"the contract id {contract.id!r} came with two texts. Give each an id of its own.")
    return given


def check_draft(draft: Draft, trail: Trail, n_chars: int) -> None:
    """CorpusError for a draft that would not come out of the store as it went in, or is outside the contract's text."""
    label, question = draft.label, draft.label.question
    where = f"label {question.id!r} on the contract {question.contract_id!r}"
    texts = {
        "question id": question.id, "category": question.category, "question": question.text,
        "answer": label.answer or "", "method": draft.method, "by": draft.by, "prompt": draft.prompt,
    } | {f"parents[{i}]": parent for i, parent in enumerate(draft.parents)}  # fmt: skip
    for name, value in texts.items():
        if not isinstance(value, str):
            raise CorpusError(f"{where}: the {name} is {value!r}, no text. Give a text.")
    if any(len(step) != 2 or not all(isinstance(part, str) for part in step) for step in trail):
        raise CorpusError(f"{where}: the trail is {list(trail)[:5]}; it must be pairs of a filter and what it noted.")
    if not question.text.strip():
        raise CorpusError(f"{where}: the question is empty. Give its text.")
    ends = [(span.start, span.end) for span in label.spans]
    if any(not 0 <= start < end <= n_chars for start, end in ends) or ends != sorted(set(ends)):
        raise CorpusError(
            f"{where}: the spans are {ends[:5]}; they must be in document order, none twice, none empty, and in the "
            f"contract's {n_chars} characters. Correct them."
        )
    if draft.confidence is not None and not 0 <= draft.confidence <= 1:
        raise CorpusError(f"{where}: the confidence is {draft.confidence}; it must be in [0, 1], or None.")


def checked_asked(row: Asked) -> Asked:
    """The row as it is, or CorpusError where its outcome says neither that it was kept nor what dropped it."""
    if len(row) != 6 or not all(isinstance(part, str) for part in row):
        raise CorpusError(f"{row!r} was asked; give contract id, question, method, by, prompt and outcome, all text.")
    name, colon, _ = row[5].partition(":")
    if row[5] != "kept" and not (name.strip() and colon):
        raise CorpusError(f"the outcome {row[5]!r} of {row[1][:60]!r} is neither 'kept' nor '<filter>: <reason>'.")
    return row


def label_row(draft: Draft, trail: Trail, source: str, sha: str, at: str) -> dict[str, Any]:
    """The row of `labels` that `record_of` reads; `sha` is the hash of the contract's text."""
    label, question = draft.label, draft.label.question
    return {
        "id": content_id(label, sha), "sha256": sha, "contract_id": question.contract_id, "question_id": question.id,
        "category": question.category, "question": question.text, "answer": label.answer,
        "spans": json.dumps([[int(span.start), int(span.end)] for span in label.spans]),
        "method": draft.method, "by": draft.by, "prompt": draft.prompt, "parents": json.dumps(list(draft.parents)),
        "confidence": None if draft.confidence is None else float(draft.confidence),
        "source": source, "trail": json.dumps([list(step) for step in trail]), "at": at,
    }  # fmt: skip


def record_of(row: sqlite3.Row) -> Record:
    """The record in a row of `labels`."""
    question = Question(row["question_id"], row["contract_id"], row["category"], row["question"])
    label = Label(question, tuple(Span(start, end) for start, end in json.loads(row["spans"])), row["answer"])
    parents = tuple(json.loads(row["parents"]))
    draft = Draft(label, row["method"], row["by"], row["prompt"], parents, row["confidence"])
    trail = tuple((name, note) for name, note in json.loads(row["trail"]))
    return Record(draft, row["source"], row["id"], trail, row["at"])


def one_of(value: str, allowed: Sequence[str], what: str) -> None:
    """CorpusError if `value` is none of those allowed."""
    if value not in allowed:
        raise CorpusError(f"the {what} is {value!r}; it must be one of {', '.join(allowed)}.")


def content_id(label: Label, sha: str) -> str:
    """What `store.label_id` says, for the hash of the contract's text."""
    spans = [[int(span.start), int(span.end)] for span in label.spans]
    return _hashed([sha, folded(label.question.text), spans, label.answer])


def unit_id(unit: Sequence[str]) -> str:
    """A hash of a unit of work: contract id, question (white space folded), method, by, prompt."""
    contract_id, question, *rest = unit
    return _hashed([contract_id, folded(question), *rest])


def _hashed(parts: list[Any]) -> str:
    # JSON, so that no two lists of parts are written the same.
    return sha256(json.dumps(parts))[:32]


@lru_cache(maxsize=8)  # labels come contract by contract, and a text is long
def sha256(text: str) -> str:
    """SHA-256 of the text in UTF-8, in hex; UnicodeEncodeError for a lone surrogate."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def folded(text: str) -> str:
    """The text with one space for each stretch of white space, and none at the ends."""
    return " ".join(text.split())
