"""Labels as plain rows that any format can carry, and back, every value checked: what `formats` writes and reads.

A fault is named by where the row stands in its file, and by key.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corpora.errors import CorpusError
from corpora.labels.store import label_id
from corpora.labels.types import SOURCES, Draft, Record
from corpora.types import Contract, Label, Place, Question, Span

# The last is JSON, so that a file that was cut short is seen to be.
COLUMNS = (
    "id", "source", "contract_id", "question_id", "category", "question", "spans", "quotes", "answer", "method", "by",
    "prompt", "parents", "confidence", "at", "trail",
)  # fmt: skip
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
JSON_COLUMNS = ("spans", "quotes", "parents", "trail", "confidence")


def rows_of(records: Iterable[Record], contracts: Mapping[str, Contract]) -> list[dict[str, Any]]:
    """Rows of records; CorpusError for one that would not be read back as it is."""
    records = list(records)
    rows = [_row(record, contracts) for record in records]
    named = [(f"the label {record.draft.label.question.id!r}", row) for record, row in zip(records, rows, strict=True)]
    for record, back in zip(records, records_of(named, contracts), strict=True):
        if back != record:
            raise CorpusError(
                f"{record!r} would be read back as {back!r}. Give texts, numbers and tuples as the type says."
            )
    return rows


def _row(record: Record, contracts: Mapping[str, Contract]) -> dict[str, Any]:
    draft, label, question = record.draft, record.draft.label, record.draft.label.question
    text = contracts[question.contract_id].text if question.contract_id in contracts else ""
    return {
        "id": record.id, "source": record.source, "contract_id": question.contract_id, "question_id": question.id,
        "category": question.category, "question": question.text,
        "spans": [[int(span.start), int(span.end)] for span in label.spans],
        "quotes": [text[span.start : span.end] for span in label.spans], "answer": label.answer,
        "method": draft.method, "by": draft.by, "prompt": draft.prompt, "parents": list(draft.parents),
        "confidence": None if draft.confidence is None else float(draft.confidence),
        "at": record.at, "trail": [list(step) for step in record.trail],
    }  # fmt: skip


def records_of(rows: Iterable[tuple[str, Any]], contracts: Mapping[str, Contract]) -> list[Record]:
    """Records of (where it stands, row), no id twice."""
    seen: dict[str, str] = {}
    records = []
    for where, row in rows:
        record = _record(row, contracts, where)
        if record.id in seen:
            raise CorpusError(f"{where}: the same label as {seen[record.id]} (id {record.id}). Keep one of the two.")
        seen[record.id] = where
        records.append(record)
    return records


def _record(row: Any, contracts: Mapping[str, Contract], where: str) -> Record:
    exactly(row, COLUMNS, where)
    text = {name: get(row, name, str, where) for name in COLUMNS if name not in (*JSON_COLUMNS, "answer", "id")}
    contract = contracts.get(text["contract_id"])
    if contract is None:
        raise CorpusError(f"{where}: there is no contract {text['contract_id']!r}. Add the contract, or drop the row.")
    for name in ("question_id", "category", "question", "method"):
        if not text[name].strip():
            raise CorpusError(f"{where}: {name!r} is empty. Give it.")
    if text["source"] not in SOURCES:
        raise CorpusError(f"{where}: 'source' is {text['source']!r}; it must be one of {', '.join(SOURCES)}.")
    question = Question(text["question_id"], text["contract_id"], text["category"], text["question"])
    label = Label(question, _spans(row, contract, where), get(row, "answer", str, where, optional=True))
    if text["at"] and not _AT.fullmatch(text["at"]):
        raise CorpusError(f"{where}: 'at' is {text['at']!r}; it must be as 2026-11-21T23:05:11Z, in UTC, or empty.")
    parents, trail = get(row, "parents", list, where), get(row, "trail", list, where)
    if not (
        all_are(parents, str) and all_are(trail, list) and all(len(step) == 2 and all_are(step, str) for step in trail)
    ):
        raise CorpusError(f"{where}: 'parents' must be texts, and 'trail' pairs of texts. Correct them.")
    confidence = row.get("confidence")
    if confidence is not None and not (type(confidence) in (int, float) and 0 <= confidence <= 1):
        raise CorpusError(f"{where}: 'confidence' is {confidence!r}; it must be a number in [0, 1], or null.")
    own = label_id(label, contract.text)
    given = get(row, "id", str, where, optional=True) or own
    if given != own:
        raise CorpusError(
            f"{where}: the id is {given!r}, but that of this label is {own!r}: an id is made of what the label says. "
            "If the label was changed on purpose, leave its id empty."
        )
    draft = Draft(
        label,
        text["method"],
        text["by"],
        text["prompt"],
        tuple(parents),
        None if confidence is None else float(confidence),
    )
    return Record(draft, text["source"], own, tuple((name, note) for name, note in trail), text["at"])


def _spans(row: Mapping[str, Any], contract: Contract, where: str) -> tuple[Span, ...]:
    spans, quotes = get(row, "spans", list, where), get(row, "quotes", list, where)
    if not all(type(span) is list and len(span) == 2 and all_are(span, int) for span in spans):
        raise CorpusError(f"{where}: 'spans' must be pairs [start, end] of whole numbers. Correct them.")
    if len(quotes) != len(spans) or not all_are(quotes, str):
        raise CorpusError(
            f"{where}: there are {len(spans)} spans and {len(quotes)} quotes. Give a quote for each span."
        )
    if spans != [list(span) for span in sorted({tuple(span) for span in spans})]:
        raise CorpusError(
            f"{where}: 'spans' must be in document order, none twice. Sort them, and the quotes with them."
        )
    for (start, end), quote in zip(spans, quotes, strict=True):
        found = contract.text[start:end] if 0 <= start < end <= len(contract.text) else ""
        if not quote or found != quote:
            at = contract.text.find(quote) if quote else -1
            hint = f"it stands at {at}" if at >= 0 else "it is nowhere in the contract"
            raise CorpusError(
                f"{where}: the contract {contract.id!r} has {found[:60]!r} at {start} to {end} where the quote is "
                f"{quote[:60]!r} ({hint}). Offsets count characters from 0; correct the span or the quote, or give the "
                "contract that the label was made on."
            )
    return tuple(Span(start, end) for start, end in spans)


def contract_of(entry: Any, where: str) -> Contract:
    """The contract in a row of `contract_row`; CorpusError, beginning with `where`, for whatever is not so."""
    exactly(entry, ("id", "text", "places"), where)
    contract_id, text = get(entry, "id", str, where), get(entry, "text", str, where)
    if not contract_id or not text.strip():
        raise CorpusError(f"{where}: the contract {contract_id!r} has no id or no text. Give both.")
    places = get(entry, "places", list, where)
    if not all(
        type(place) is list
        and len(place) == 3
        and all_are((place[0], place[2]), int)
        and type(place[1]) in (int, type(None))
        for place in places
    ):
        raise CorpusError(f"{where}: 'places' must be triples [start, page or null, paragraph]. Correct them.")
    return Contract(contract_id, text, tuple(Place(*place) for place in places))


def contracts_by_id(contracts: Iterable[Contract]) -> dict[str, Contract]:
    """Contracts by id; CorpusError for an id with two texts."""
    by_id: dict[str, Contract] = {}
    for contract in contracts:
        if by_id.setdefault(contract.id, contract).text != contract.text:
            raise CorpusError(f"the contract id {contract.id!r} came with two texts. Give each an id of its own.")
    return by_id


def contract_row(contract: Contract) -> dict[str, Any]:
    """The row of a contract; CorpusError if it would not be read back as it is."""
    places = [[place.start, place.page, place.paragraph] for place in contract.places]
    row = {"id": contract.id, "text": contract.text, "places": places}
    contract_of(row, f"the contract {contract.id!r}")
    return row


def parsed(text: str, where: str) -> Any:
    """What the JSON says; CorpusError if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: {text[:60]!r} is not JSON ({error}). Correct it, or write it anew.") from error


def mapping_of(value: Any, where: str) -> Mapping[str, Any]:
    """The value itself if it is a mapping, else CorpusError."""
    if not isinstance(value, dict):
        raise CorpusError(f"{where}: there is a {type(value).__name__} where keys and values should be. Correct it.")
    return value


def exactly(value: Any, keys: Sequence[str], where: str) -> None:
    """CorpusError unless the keys are these, each there, and all texts are of whole characters."""
    unknown = sorted(set(mapping_of(value, where)) - set(keys))
    if unknown:
        raise CorpusError(f"{where}: nothing here is called {', '.join(map(repr, unknown))}. Take it out.")
    missing = [key for key in keys if key not in value]
    if missing:
        raise CorpusError(f"{where}: there is no {', '.join(map(repr, missing))}. Add it; what is not known is null.")
    for key, held in value.items():
        try:
            json.dumps(held, ensure_ascii=False, default=str).encode("utf-8")
        except (UnicodeEncodeError, RecursionError) as error:
            fault = "half a character (a lone surrogate)" if isinstance(error, UnicodeEncodeError) else "lists in lists"
            raise CorpusError(f"{where}: {key!r} holds {fault}. Write the file again, as UTF-8.") from error


def get(mapping: Mapping[str, Any], key: str, kind: type, where: str, *, optional: bool = False) -> Any:
    """`mapping[key]` if it is there and of that type (or null, or not there, if `optional`), else CorpusError."""
    value = mapping_of(mapping, where).get(key)
    if value is None and optional:
        return None
    if type(value) is not kind:
        got = f"a {type(value).__name__}" if key in mapping else "not there"
        raise CorpusError(f"{where}: {key!r} is {got}, not a {kind.__name__}. Correct it.")
    return value


def all_are(values: Iterable[Any], kind: type) -> bool:
    """Whether each value is of this type, and of no subtype of it."""
    # Not isinstance: true is an int too.
    return all(type(value) is kind for value in values)
