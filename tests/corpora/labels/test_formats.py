import csv
import io
import json
from dataclasses import replace

import pytest

from corpora.cuad import question_text, read_cuad
from corpora.errors import CorpusError
from corpora.labels.formats import from_dataset, read_labels, to_dataset, write_labels
from corpora.labels.store import label_id
from corpora.labels.types import Draft, Record
from corpora.types import Contract, Label, Place, Question, Span

TEXT = "SUPPLY AGREEMENT\r\n\nZürich “AG” 🖋.\tOhio law\n governs.\x0b=1+2"
ONE = Contract("one", TEXT, (Place(0, None, 1), Place(20, 2, 3)))
TWO = Contract("=two", "Plain words of another contract.")
LAW = question_text("Governing Law")


def record(question=LAW, quotes=("Ohio law\n governs.",), answer="Ohio", contract=ONE, source="synthetic", **more):
    spans = tuple(Span(contract.text.index(quote), contract.text.index(quote) + len(quote)) for quote in quotes)
    category = more.pop("category", "Governing Law")
    asked = Question(f"{contract.id}__{category}", contract.id, category, question)
    label = Label(asked, spans, answer)
    draft = Draft(label, more.pop("method", "answer"), more.pop("by", "local/small"), **more)
    trail = (("verbatim", ""), ("round trip", "rank 1\n, “yes”"))
    return Record(draft, source, label_id(label, contract.text), trail, "2026-11-21T23:05:11Z")


RECORDS = [
    record(prompt="9f", parents=("a1", "b2"), confidence=0.1),
    record("Absent?", quotes=(), answer=None, source="human", method="human", by="@ada"),
    record("Empty answer?", answer=""),
    record("'quoted'\tand, \"so\" on\r\n🖋?", quotes=("Zürich “AG” 🖋", "=1+2"), answer="=cmd|'/C calc'!A0"),
    record("+plus", answer="\ttab", by="-minus", source="feedback"),
    record("\rreturn?", answer="'tis", by=""),
    record("\nline?", answer="''", contract=TWO, quotes=("Plain",), confidence=1.0),
    record("null?", answer="null", contract=TWO, quotes=("words",), confidence=0.0),
]


def kept(path, suffix=".json", records=RECORDS):
    path = path / f"labels{suffix}"
    write_labels(records, [ONE, TWO], path)
    return path


def refused(call, *args, **options):
    with pytest.raises(CorpusError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_json_keeps_all(tmp_path):
    path = kept(tmp_path)
    assert read_labels(path) == ((ONE, TWO), RECORDS)
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == "evergreen-labels-1"
    write_labels([], [], path)
    assert read_labels(path) == ((), [])
    assert [each.name for each in tmp_path.iterdir()] == ["labels.json"]


def test_csv_keeps_all_but_the_texts(tmp_path):
    path = kept(tmp_path, ".csv")
    assert read_labels(path, [ONE, TWO]) == ((ONE, TWO), RECORDS)
    assert "contracts=" in refused(read_labels, path)
    write_labels([], [], path)
    assert read_labels(path, [ONE]) == ((ONE,), [])


def test_no_cell_of_a_csv_begins_like_a_formula(tmp_path):
    with kept(tmp_path, ".csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'=cmd|'/C calc'!A0" in cells and "'-minus" in cells and "'+plus" in cells and "'@ada" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_a_csv_quote_longer_than_the_csv_modules_limit_is_read(tmp_path):
    long = Contract("long", "word " * 60_000)
    one = record(quotes=(long.text,), contract=long)
    limit = csv.field_size_limit()
    write_labels([one], [long], tmp_path / "long.csv")
    assert read_labels(tmp_path / "long.csv", [long])[1] == [one] and csv.field_size_limit() == limit


def test_cuads_format_keeps_the_labels(tmp_path):
    records = [RECORDS[0], record(question_text("Parties"), quotes=(), answer=None, category="Parties")]
    path = kept(tmp_path, ".cuad.json", records)
    contracts, back = read_labels(path)
    assert contracts == (Contract("one", TEXT), TWO)
    assert [each.draft.label.spans for each in back] == [each.draft.label.spans for each in records]
    assert back[0].draft.label == records[0].draft.label and back[0].id == records[0].id
    assert {(each.source, each.draft.method) for each in back} == {("human", "human")}
    assert back[0].draft.by == "labels.cuad.json"
    assert read_cuad(path).labels == tuple(each.draft.label for each in back)
    assert [each.name for each in tmp_path.iterdir()] == ["labels.cuad.json"]


def test_what_cuads_format_cannot_hold_is_refused_and_the_old_file_stays(tmp_path):
    path = kept(tmp_path, ".cuad.json", RECORDS[:1])
    before = path.read_bytes()
    two_answers = [record(), record(answer="Iowa")]
    one_id = [record(), record("Another question?")]
    would_be_one = [record(answer=None), record(quotes=("SUPPLY",), answer=None)]
    for records in (two_answers, one_id, would_be_one):
        assert "'one__Governing Law'" in refused(write_labels, records, [ONE], path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_datasets_round_trip():
    pytest.importorskip("datasets")
    dataset = to_dataset(RECORDS, [ONE, TWO])
    assert from_dataset(dataset) == ((ONE, TWO), RECORDS)
    assert dataset[0]["answers"] == {"text": ["Ohio law\n governs."], "answer_start": [TEXT.index("Ohio")]}
    assert from_dataset(dataset.shuffle(seed=1).select([0]))[1][0] in RECORDS
    assert from_dataset(to_dataset([], [])) == ((), [])
    for name in dataset.column_names:
        assert repr(name) in refused(from_dataset, dataset.remove_columns(name))
    assert "'more'" in refused(from_dataset, dataset.add_column("more", ["x"] * len(RECORDS)))
    assert "row 1" in refused(from_dataset, dataset.map(lambda row, i: {"context": f"{i}"}, with_indices=True))
    assert "row 0" in refused(from_dataset, dataset.map(lambda row: {"context": row["context"][1:]}))


@pytest.mark.parametrize("suffix", [".json", ".csv", ".cuad.json"])
def test_what_could_not_be_read_back_is_not_written(tmp_path, suffix):
    path = kept(tmp_path, suffix, RECORDS[:1])
    before = path.read_bytes()
    own = RECORDS[0]
    for records, contracts, says in (
        ([own], [TWO], "'one'"),
        ([own], [Contract("one", TEXT[1:])], "quote"),
        ([Record(own.draft, "robot", own.id)], [ONE], "'robot'"),
        ([Record(own.draft, "human", "0" * 32)], [ONE], own.id),
        ([own, own], [ONE], own.id),
        ([record(answer="half \ud800")], [ONE], "half a character"),
        ([replace(own, trail=[["verbatim", ""]])], [ONE], "tuples"),
        ([record(confidence=2.0)], [ONE], "confidence"),
        ([own], [ONE, Contract("one", "Other.")], "two texts"),
    ):
        if says != "quote":
            assert says in refused(write_labels, records, contracts, path)
        else:
            refused(write_labels, records, contracts, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert "folder" in refused(write_labels, [own], [ONE], tmp_path / "none" / f"labels{suffix}")


def test_another_suffix_format_or_version_is_refused(tmp_path):
    assert ".csv" in refused(write_labels, RECORDS, [ONE, TWO], tmp_path / "labels.txt")
    assert ".csv" in refused(read_labels, tmp_path / "labels.txt")
    path = tmp_path / "labels.json"
    for content, says in (
        ('{"format": "evergreen-labels-2"}', "evergreen-labels-2"),
        ('{"some": 1}', "format None"),
        ("[1]", "a list"),
        ('{"format"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"data": [{}]}', "'title'"),
    ):
        path.write_text(content)
        assert says in refused(read_labels, path)
    path.write_bytes("é".encode("latin-1"))
    assert "UTF-8" in refused(read_labels, path)
    assert "cannot be read" in refused(read_labels, tmp_path / "none.json")


def places_in(value, path=()):
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, held in steps:
        yield from places_in(held, (*path, step))


def test_no_damage_to_a_json_value_is_anything_but_a_corpus_error(tmp_path):
    path, harmless = tmp_path / "damaged.json", []
    write_labels(RECORDS[:1], [ONE], path)
    content = json.loads(path.read_text(encoding="utf-8"))
    junk = (None, True, -1, 10**30, 2.5, float("nan"), "x", "", "\ud800", [], [[]], [None], {}, {"x": 1}, "delete")
    for place in [place for place in places_in(content) if place]:
        for value in junk:
            damaged = json.loads(json.dumps(content))
            holder = damaged
            for step in place[:-1]:
                holder = holder[step]
            if value == "delete":
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            path.write_text(json.dumps(damaged))
            try:
                read_labels(path)
                harmless.append((place, value))
            except CorpusError as error:
                assert "damaged.json" in str(error)
    free = {"id", "question_id", "category", "by", "prompt", "method", "parents", "confidence", "trail", "at"}
    assert {place[2] for place, _ in harmless if len(place) > 2 and place[0] == "labels"} <= free
    assert {place[2] for place, _ in harmless if len(place) > 2 and place[0] == "contracts"} <= {"places"}
    assert not [value for _, value in harmless if value == "\ud800"]


def damaged_csv(path, row, column, cell):
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    rows[row][rows[0].index(column)] = cell
    with (path.parent / "damaged.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path.parent / "damaged.csv"


def test_a_damaged_csv_cell_is_named_by_row_and_column(tmp_path):
    path = kept(tmp_path, ".csv", RECORDS[:1])
    for column, cell in (
        ("spans", "[[0, 4]]"), ("spans", ""), ("spans", "[0, 4]"), ("spans", "[[true, 4]]"), ("spans", "{}"),
        ("quotes", '["Iowa"]'), ("quotes", "[]"), ("quotes", "[1]"), ("confidence", "x"), ("confidence", "1.5"),
        ("confidence", "NaN"), ("source", "robot"), ("contract_id", "three"), ("question", ""), ("parents", "[1]"),
        ("trail", '[["verbatim"]]'), ("trail", "verbatim"), ("id", "0" * 32), ("answer", "Iowa"), ("method", " "),
    ):  # fmt: skip
        message = refused(read_labels, damaged_csv(path, 1, column, cell), [ONE, TWO])
        assert "row 2" in message, message
        assert column in message or column in ("answer", "contract_id", "quotes", "spans"), message
    at_the_start = kept(tmp_path, ".csv", [record(quotes=("SUPPLY",))])
    assert "whole numbers" in refused(read_labels, damaged_csv(at_the_start, 1, "spans", "[[false, 6]]"), [ONE])
    path = kept(tmp_path, ".csv", RECORDS[:1])
    message = refused(read_labels, damaged_csv(path, 1, "quotes", '["Ohio law"]'), [ONE])
    assert f"it stands at {TEXT.index('Ohio')}" in message and "row 2" in message


def test_a_label_changed_in_a_spreadsheet_comes_in_with_its_id_left_empty(tmp_path):
    path = kept(tmp_path, ".csv", RECORDS[:1])
    own = RECORDS[0].id
    assert own in refused(read_labels, damaged_csv(path, 1, "answer", "Iowa"), [ONE])
    changed = damaged_csv(damaged_csv(path, 1, "answer", "Iowa"), 1, "id", "")
    (back,) = read_labels(changed, [ONE])[1]
    assert back.draft.label.answer == "Iowa" and back.id == label_id(back.draft.label, TEXT) != own


def test_a_csv_cut_short_or_of_other_columns_is_refused(tmp_path):
    path = kept(tmp_path, ".csv")
    whole = path.read_bytes()
    for end in range(0, len(whole) - 2, 11):
        path.write_bytes(whole[:end])
        try:
            assert len(read_labels(path, [ONE, TWO])[1]) < len(RECORDS)
        except CorpusError as error:
            assert "labels.csv" in str(error)
    for header in ("", "id,source", "id,id" + whole.decode("utf-8-sig").splitlines()[0][2:], "a\x00b"):
        path.write_text(header)
        assert "labels.csv" in refused(read_labels, path, [ONE])
    lines = whole.decode("utf-8-sig").split("\r\n")
    path.write_text("\r\n".join([lines[0], "only,three,cells"]), newline="")
    assert "row 2" in refused(read_labels, path, [ONE])
