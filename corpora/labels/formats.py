"""Labels as files to exchange: this project's own JSON, CSV for a spreadsheet, CUAD's JSON, Hugging Face `datasets`.

One real row, in JSON (in CSV a cell each, lists as JSON):

    {"id": "b1d4...", "source": "human", "contract_id": "acme-2019", "question_id": "acme-2019__Governing Law",
     "category": "Governing Law", "question": "Which law governs?", "spans": [[5120, 5134]],
     "quotes": ["State of Ohio."], "answer": "Ohio", "method": "human", "by": "ada", "prompt": "", "parents": [],
     "confidence": null, "at": "2026-11-21T23:05:11Z", "trail": [["verbatim", ""]]}

What is written is what reading gives back, or nothing is written. Not handled: other encodings than UTF-8.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.cuad import read_cuad, write_cuad
from corpora.errors import CorpusError
from corpora.labels.exchange import (
    COLUMNS,
    JSON_COLUMNS,
    all_are,
    contract_of,
    contract_row,
    contracts_by_id,
    exactly,
    get,
    mapping_of,
    parsed,
    records_of,
    rows_of,
)
from corpora.labels.rows import folded
from corpora.labels.store import label_id
from corpora.labels.types import Draft, Record
from corpora.types import Contract, Corpus, Label, Question

if TYPE_CHECKING:
    import datasets

_FORMAT = "evergreen-labels-1"
_OF_CONTRACT = ("context", "places")
# A spreadsheet runs a cell that begins with one of these as a formula; one that begins with ' is marked too, so that
# taking the mark away is exact.
_MARKED = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def write_labels(records: Iterable[Record], contracts: Iterable[Contract], path: str | Path) -> None:
    """Write `.json`, `.csv` or `.cuad.json`, whole or not at all; the suffix decides.

    Only `.json` keeps all. `.csv` has no contracts' texts. `.cuad.json` is in CUADv1.json's format and has contracts,
    questions, spans and short answers: ids, source, method, trail, places and the rest are lost. CorpusError for
    another suffix, a label whose contract is not given, and whatever would not be read back as it is.
    """
    path, records, by_id = Path(path), list(records), contracts_by_id(contracts)
    try:
        _write(records, by_id, path)
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be written ({error.strerror}). Give a path in a folder that is there."
        ) from error


def _write(records: Sequence[Record], by_id: Mapping[str, Contract], path: Path) -> None:
    if path.name.endswith(".cuad.json"):
        _write_cuad(records, by_id, path)
    elif path.suffix == ".json":
        given = [contract_row(contract) for contract in by_id.values()]
        content = {"format": _FORMAT, "contracts": given, "labels": rows_of(records, by_id)}
        replace_text(path, json.dumps(content, ensure_ascii=False, indent=1))
    elif path.suffix == ".csv":
        replace_text(path, _csv(rows_of(records, by_id)))
    else:
        raise CorpusError(f"{path} is none of .json, .csv and .cuad.json. Choose one of these suffixes.")


def read_labels(
    path: str | Path, contracts: Iterable[Contract] | None = None
) -> tuple[tuple[Contract, ...], list[Record]]:
    """Read what `write_labels` wrote, or any CUADv1-format JSON: contracts and records.

    `contracts` are for `.csv`, which has no texts, and come back as they are. A row with an empty id gets its own; of a
    CUADv1-format file source and method are "human", and `by` the file's name. CorpusError, naming file and row or key,
    for whatever is not so: quotes that do not stand at the spans, ids that are not the labels', anything missing.
    """
    path = Path(path)
    if path.suffix == ".csv":
        if contracts is None:
            raise CorpusError(f"{path} has no contracts' texts. Give them: read_labels(path, contracts=...).")
        by_id = contracts_by_id(contracts)
        return tuple(by_id.values()), records_of(_csv_rows(path), by_id)
    if path.suffix != ".json":
        raise CorpusError(f"{path} is none of .json, .csv and .cuad.json. Give a file with one of these suffixes.")
    raw = parsed(_text(path), str(path))
    if isinstance(raw, dict) and "data" in raw and "format" not in raw:
        return _read_cuad(path)
    if not isinstance(raw, dict) or raw.get("format") != _FORMAT:
        got = f"the format {raw.get('format')!r}" if isinstance(raw, dict) else f"a {type(raw).__name__}"
        raise CorpusError(
            f"{path} has {got}. This reads {_FORMAT!r} and CUADv1-format JSON; write the file anew, or update the "
            "program if the file is from a newer one."
        )
    exactly(raw, ("format", "contracts", "labels"), str(path))
    entries = enumerate(get(raw, "contracts", list, str(path)))
    by_id = contracts_by_id(contract_of(entry, f"{path}, contracts[{i}]") for i, entry in entries)
    rows = enumerate(get(raw, "labels", list, str(path)))
    return tuple(by_id.values()), records_of(((f"{path}, labels[{i}]", row) for i, row in rows), by_id)


def to_dataset(records: Iterable[Record], contracts: Iterable[Contract]) -> "datasets.Dataset":
    """A `datasets.Dataset`, one row a label, laid out as SQuAD: `context`, `question`, `answers` {text, answer_start}.

    The contract's text stands in every row, and a contract without labels in none: 41 labels on CUAD's 510 contracts
    take 1.1 GB. CorpusError as in `write_labels`.
    """
    from datasets import Dataset, Features, Value

    by_id = contracts_by_id(contracts)
    text = Value("string")
    features = Features(
        {name: text for name in COLUMNS if name not in ("spans", "quotes")}
        | {"parents": [text], "trail": [{"filter": text, "note": text}], "confidence": Value("float64")}
        # Offsets of 64 bits: the contexts of one column are often more than 2 GB.
        | {"context": Value("large_string"), "places": text}
        | {"answers": {"text": [text], "answer_start": [Value("int64")]}}
    )
    places = {contract.id: json.dumps(contract_row(contract)["places"]) for contract in by_id.values()}
    rows = []
    for row in rows_of(records, by_id):
        contract = by_id[row["contract_id"]]
        starts, quotes = [start for start, _ in row.pop("spans")], row.pop("quotes")
        row["trail"] = [{"filter": name, "note": note} for name, note in row["trail"]]
        row |= {"context": contract.text, "places": places[contract.id]}
        rows.append(row | {"answers": {"text": quotes, "answer_start": starts}})
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns, features=features)


def from_dataset(dataset: "datasets.Dataset") -> tuple[tuple[Contract, ...], list[Record]]:
    """Contracts and records of a dataset that `to_dataset` made, in the order of its rows.

    CorpusError, naming the row, for whatever is not so.
    """
    contracts: dict[str, Contract] = {}
    seen: dict[str, tuple[str, str]] = {}
    rows = []
    for i, entry in enumerate(dataset):
        where = f"row {i} of the dataset"
        row = dict(mapping_of(entry, where))
        contract_id, given = get(row, "contract_id", str, where), tuple(get(row, n, str, where) for n in _OF_CONTRACT)
        if seen.setdefault(contract_id, given) != given:
            raise CorpusError(f"{where}: {contract_id!r} has another context or places than above. Correct one.")
        if contract_id not in contracts:
            places = parsed(given[1], f"{where}, 'places'")
            contracts[contract_id] = contract_of({"id": contract_id, "text": given[0], "places": places}, where)
        answers = get(row, "answers", dict, where)
        quotes, starts = get(answers, "text", list, where), get(answers, "answer_start", list, where)
        if len(quotes) != len(starts) or not (all_are(quotes, str) and all_are(starts, int)):
            raise CorpusError(f"{where}: 'answers' must have a text for each answer_start. Correct it.")
        steps = [mapping_of(step, f"{where}, 'trail'") for step in get(row, "trail", list, where)]
        row["trail"] = [[step.get("filter"), step.get("note")] for step in steps]
        row |= {"quotes": quotes, "spans": [[a, a + len(q)] for a, q in zip(starts, quotes, strict=True)]}
        for name in ("answers", *_OF_CONTRACT):
            del row[name]
        rows.append((where, row))
    return tuple(contracts.values()), records_of(rows, contracts)


def _write_cuad(records: Sequence[Record], contracts: Mapping[str, Contract], path: Path) -> None:
    rows = rows_of(records, contracts)
    labels = tuple(record.draft.label for record in records)
    plain = tuple(Contract(contract.id, contract.text) for contract in contracts.values())
    beside = _beside(path)
    try:
        write_cuad(Corpus(path.stem, plain, labels), beside)
        back = {label.question.id: label for label in read_cuad(beside).labels} if rows else {}
        for label in labels:
            question = label.question
            same = Question(question.id, question.contract_id, question.category, folded(question.text))
            if back.get(question.id) != Label(same, label.spans, label.answer):
                raise CorpusError(
                    f"the label {question.id!r} on {question.contract_id!r} would be read back otherwise: CUAD's "
                    "format has one answer a contract and question, and one question an id. Keep one label of each "
                    "(`LabelStore.training`), give ids that do not end in a number, or write .json."
                )
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _read_cuad(path: Path) -> tuple[tuple[Contract, ...], list[Record]]:
    corpus = read_cuad(path)
    texts = {contract.id: contract.text for contract in corpus.contracts}
    records = [
        Record(Draft(label, "human", path.name), "human", label_id(label, texts[label.question.contract_id]))
        for label in corpus.labels
    ]
    return corpus.contracts, records


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    writer.writerows([_cell(name, row[name]) for name in COLUMNS] for row in rows)
    # With the mark of UTF-8 in front: without it spreadsheets take curly quotes for something else.
    return "\ufeff" + file.getvalue()


def _cell(name: str, value: Any) -> str:
    if name in JSON_COLUMNS:
        return "" if value is None else json.dumps(value, ensure_ascii=False)
    if value is None:
        return ""
    # An empty answer is not "no answer": it is a marked nothing.
    return "'" if name == "answer" and not value else formula_safe(value)


def formula_safe(text: str) -> str:
    """The text as a cell of CSV that no spreadsheet runs: behind a ' where it begins as a formula does."""
    return f"'{text}" if text.startswith(_MARKED) else text


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    limit = csv.field_size_limit(2**31 - 1)  # a quote may be longer than the module's 128 kB
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        rows = list(enumerate(reader, 1))
    except csv.Error as error:
        raise CorpusError(
            f"{path}, line {reader.line_num}: {error}. Save the file again as comma-separated CSV."
        ) from error
    finally:
        csv.field_size_limit(limit)
    header = rows[0][1] if rows else []
    if sorted(header) != sorted(COLUMNS):
        missing, other = sorted(set(COLUMNS) - set(header)), sorted(set(header) - set(COLUMNS))
        raise CorpusError(
            f"{path}: the columns are not those of labels (missing: {missing}; unknown: {other}; each once). Give "
            f"{', '.join(COLUMNS)}."
        )
    for i, cells in rows[1:]:
        if cells:
            where = f"{path}, row {i}"
            if len(cells) != len(header):
                raise CorpusError(f"{where}: {len(cells)} cells in {len(header)} columns. Give each column its cell.")
            yield where, {name: _value(name, cell, where) for name, cell in zip(header, cells, strict=True)}


def _value(name: str, cell: str, where: str) -> Any:
    if name in JSON_COLUMNS:
        if not cell and name == "confidence":
            return None
        return parsed(cell, f"{where}, {name!r}")
    if name == "answer" and not cell:
        return None
    return cell.removeprefix("'")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}). Give a file of labels.") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error}). Save it again as UTF-8.") from error


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def replace_text(path: Path, text: str) -> None:
    """Write beside `path`, flush to the disk, then put it in place: a reader never sees half a file."""
    beside = _beside(path)
    try:
        with beside.open("wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except UnicodeEncodeError as error:
        beside.unlink(missing_ok=True)
        half = error.object[max(0, error.start - 30) : error.start]
        raise CorpusError(
            f"{path}: half a character (a lone surrogate) after {half!r}. Read its source as UTF-8."
        ) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
