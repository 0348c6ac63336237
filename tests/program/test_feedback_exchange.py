"""Feedback as files: JSON goes into another store as it is, once; CSV runs no formula; what was withdrawn is gone."""

import csv
import io
import json

import pytest

from corpora.types import Contract, Span
from program.feedback.exchange import Imported, read_feedback, write_feedback
from program.feedback.rows import FeedbackError
from program.feedback.store import FeedbackStore
from program.feedback.types import Said

CONTRACT = Contract("acme", "Governed by the laws of Ohio 😀.")
FORMULA = '=HYPERLINK("http://x")'


@pytest.fixture
def store(tmp_path):
    """Four events by three people on two answers."""
    with FeedbackStore.open(tmp_path / "f.db") as opened:
        asked = opened.ask("Which law governs?", CONTRACT, "Governing Law")
        one, two = (opened.answer(asked, Said(text, True, confidence=0.3)) for text in ("Ohio", "-Utah"))
        opened.rate(one.id, thumbs="up", comment=FORMULA, by="Ada")
        opened.correct(one.id, found=True, spans=[Span(24, 30)], comment="“curly”", by="Ben")
        opened.choose(opened.offer(two.id, one.id).id, "right", by="Cy")
        opened.skip(two.id)
        yield opened


def test_json_goes_into_another_store_as_it_is_and_once(store, tmp_path):
    write_feedback(store, tmp_path / "f.json")
    with FeedbackStore.open(tmp_path / "other.db") as other:
        n = len(list(store.rows()))
        assert read_feedback(other, tmp_path / "f.json") == Imported(n, 0, 0)
        assert read_feedback(other, tmp_path / "f.json") == Imported(0, n, 0)
        assert list(other.events()) == list(store.events()) and list(other.answers()) == list(store.answers())
        assert other.contract_text(next(other.answers())) == CONTRACT.text
        write_feedback(other, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "f.json").read_bytes()


def test_what_was_withdrawn_is_not_written_and_does_not_come_back(store, tmp_path):
    write_feedback(store, tmp_path / "before.json")
    store.withdraw("Ada")
    write_feedback(store, tmp_path / "f.json")
    write_feedback(store, tmp_path / "f.csv")
    assert all("HYPERLINK" not in (tmp_path / name).read_text() for name in ("f.json", "f.csv"))
    assert read_feedback(store, tmp_path / "before.json").n_new == 0 and len(list(store.events())) == 3
    with FeedbackStore.open(tmp_path / "other.db") as other:
        read_feedback(other, tmp_path / "f.json")
        assert read_feedback(other, tmp_path / "before.json") == Imported(0, len(list(other.rows())) - 1, 1)
        assert list(other.events()) == list(store.events())
        # One that had it already takes it out.
    with FeedbackStore.open(tmp_path / "third.db") as third:
        read_feedback(third, tmp_path / "before.json")
        read_feedback(third, tmp_path / "f.json")
        assert list(third.events()) == list(store.events())


def test_no_cell_of_the_csv_runs(store, tmp_path):
    write_feedback(store, tmp_path / "f.csv")
    raw = (tmp_path / "f.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"))))
    assert raw.startswith("\ufeff".encode()) and [row["kind"] for row in rows] == [
        "rating",
        "correction",
        "choice",
        "skip",
    ]
    assert not any(cell.startswith(("=", "-", "+", "@")) for row in rows for cell in row.values())
    assert rows[0]["comment"] == f"'{FORMULA}" and rows[2]["answer"] == "'-Utah" and rows[2]["other_answer"] == "Ohio"
    assert json.loads(rows[1]["corrected_quotes"]) == [CONTRACT.text[24:30]] and rows[1]["comment"] == "“curly”"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("rating", {"comment": "better"}, "it was changed"),
        ("correction", {"spans": [[0, 4, "Gove"]]}, "it was changed"),
        ("answered", {"answer": "Utah"}, "it was changed"),
    ],
)
def test_a_row_that_was_changed_is_found_out(store, tmp_path, kind, change, message):
    _write_changed(store, tmp_path, lambda rows: _first(rows, kind)["body"].update(change))
    _refuse(tmp_path, message)


def _rehashed(row):
    from program.feedback.rows import Row, row_id

    row["id"] = row_id(Row(**{name: row[name] for name in ("kind", "about", "by", "at", "nonce", "body")}))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("rating", {"body": {"thumbs": None, "stars": 9, "comment": ""}}, "from 1 to 5"),
        ("rating", {"body": {"thumbs": "up"}}, "it must have"),
        ("rating", {"about": "nothing"}, "nothing is answered"),
        ("rating", {"kind": "applause"}, "of the kind 'applause'"),
        ("rating", {"at": "yesterday"}, "in UTC"),
        ("correction", {"body": {"found": True, "answer": None, "spans": [[0, 4, "Utah"]], "comment": ""}}, "offsets"),
        ("correction", {"body": {"found": True, "answer": None, "spans": [[0, 4]], "comment": ""}}, "fitting type"),
        ("asked", {"about": "x"}, "about nothing"),
        ("candidates", {"body": {"left_id": "a", "right_id": "b"}}, "nothing is answered"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_and_the_file_with_it(store, tmp_path, kind, change, message):
    def spoil(rows):
        row = _first(rows, kind)
        row.update(change)
        _rehashed(row)

    _write_changed(store, tmp_path, spoil)
    _refuse(tmp_path, message)


def test_nobody_withdraws_what_another_said(store, tmp_path):
    def forge(rows):
        row = _first(rows, "rating")
        forged = {"kind": "withdrawal", "about": "", "by": "f" * 32, "at": row["at"], "nonce": "", "body": {}}
        forged["body"]["event_ids"] = [row["id"]]
        _rehashed(forged)
        rows.append(forged)

    _write_changed(store, tmp_path, forge)
    _refuse(tmp_path, "did not say it")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x", "contracts": [], "rows": []}', "[" * 100_000])
def test_other_files_are_refused(store, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FeedbackError, match="x.json"):
        read_feedback(store, tmp_path / "x.json")


def test_paths_that_cannot_be_are_told(store, tmp_path):
    for path in (tmp_path / "f.xlsx", tmp_path / "none" / "f.json"):
        with pytest.raises(FeedbackError, match=path.name):
            write_feedback(store, path)
    with pytest.raises(FeedbackError, match="cannot be read"):
        read_feedback(store, tmp_path / "none.json")


def _first(rows, kind):
    return next(row for row in rows if row["kind"] == kind)


def _write_changed(store, tmp_path, change):
    write_feedback(store, tmp_path / "f.json")
    content = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    change(content["rows"])
    (tmp_path / "f.json").write_text(json.dumps(content), encoding="utf-8")


def _refuse(tmp_path, message):
    with FeedbackStore.open(tmp_path / "other.db") as other:
        with pytest.raises(FeedbackError, match=message):
            read_feedback(other, tmp_path / "f.json")
        assert list(other.rows()) == []
