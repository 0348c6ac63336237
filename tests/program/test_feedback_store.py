"""Feedback kept: what goes in comes out, in the order it came; what breaks a rule, or cannot be kept, is refused."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest

from corpora.types import Contract, Quote, Span
from modules.index_files import StoreError
from program.feedback.people import salt_path
from program.feedback.rows import FeedbackError, UnknownError
from program.feedback.store import FeedbackStore
from program.feedback.types import Said, Shown

TEXT = "SUPPLY 😀 AGREEMENT\r\nThis Agreement is governed by the laws of the State of Ohio."
CONTRACT = Contract("acme/2019", TEXT)
START = TEXT.index("State of Ohio")
OHIO = Quote("State of Ohio", CONTRACT.id, START, START + len("State of Ohio"))


def said(answer="Ohio", **given):
    return Said(answer, True, **{"quotes": (OHIO,), "confidence": 0.5, "release": "mine"} | given)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore.open(tmp_path / "feedback.db") as opened:
        yield opened


@pytest.fixture
def answered(store):
    return store.answer(store.ask("Which law governs?", CONTRACT), said())


def test_an_answer_comes_out_as_it_went_in(store):
    asked = store.ask("Which law governs?", CONTRACT, "Governing Law")
    full = said(
        p_answered=0.9, passages=(Shown("acme:0-9", CONTRACT.id, 0, 9),),
        inputs=(("passages", "[1] é\n"), ("question", "q")),
        predictor=1, completion="[[ ## answer ## ]]\nOhio", readable=False, sample="rollout 3", samples_agree=0.25,
        latency_s=1.5,
    )  # fmt: skip
    answered = store.answer(asked, full)
    assert list(store.answers()) == [answered] == [store.answered(answered.id)]
    assert {name: getattr(answered, name) for name in full.__dataclass_fields__} == {
        name: getattr(full, name) for name in full.__dataclass_fields__
    }
    assert (answered.asked_id, answered.question, answered.category) == (
        asked.id,
        "Which law governs?",
        "Governing Law",
    )
    assert store.contract_text(answered) == TEXT


def test_events_come_out_as_they_went_in(store, answered):
    other = store.answer(answered.asked_id, said("Utah", quotes=(), sample="rollout 1"))
    offered = store.offer(other.id, answered.id)
    given = [
        store.rate(answered.id, thumbs="down", stars=2, comment="=cmd()", by="Ada"),
        store.correct(answered.id, found=True, spans=[OHIO, Span(0, 6)], comment="both", by="Ada"),
        store.correct(answered.id, found=False),
        store.choose(offered.id, "right", by="Ben"),
        store.skip(other.id),
    ]
    assert list(store.events()) == given and store.candidates(offered.id) == offered
    assert [span.text for span in given[1].spans] == ["SUPPLY", "State of Ohio"]
    assert (given[3].left_id, given[3].right_id) == (other.id, answered.id)
    assert list(store.events("rating", "skip")) == [given[0], given[4]]
    assert list(store.events(answer_id=other.id)) == given[3:]


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("rate", {"stars": 6}, "from 1 to 5"),
        ("rate", {"stars": True}, "no fitting type"),
        ("rate", {"thumbs": "sideways"}, "up, down"),
        ("rate", {"comment": "  "}, "says nothing"),
        ("rate", {"comment": "x" * 10_001}, "at most 10000"),
        ("rate", {"comment": "\ud83d"}, "half a character"),
        ("rate", {"thumbs": "up", "by": "\ud83d"}, "half a character"),
        ("correct", {"found": True}, "says nothing"),
        ("correct", {"found": False, "answer": "Ohio"}, "no answer, and gives one"),
        ("correct", {"found": False, "spans": [OHIO]}, "no answer, and gives one"),
        ("correct", {"found": True, "spans": [Span(5, 5)]}, "must have a length"),
        ("correct", {"found": True, "spans": [Span(0, len(TEXT) + 1)]}, "must have a length"),
        ("correct", {"found": True, "spans": [Quote("State of Utah", "c", OHIO.start, OHIO.end)]}, "State of Ohio"),
        ("correct", {"found": True, "spans": [OHIO, OHIO]}, "none twice"),
    ],
)
def test_what_breaks_a_rule_is_refused_and_leaves_nothing(store, answered, method, given, message):
    with pytest.raises(FeedbackError, match=message):
        getattr(store, method)(answered.id, **given)
    assert list(store.events()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"confidence": 1.5}, r"in \[0, 1\]"),
        ({"confidence": float("nan")}, r"in \[0, 1\]"),
        ({"latency_s": float("inf")}, r"in \[0, inf\]"),
        ({"quotes": (Quote("State of Utah", CONTRACT.id, OHIO.start, OHIO.end),)}, "correct the offsets"),
        ({"quotes": (Quote("x", "other", 0, 1),)}, "another contract"),
        ({"answer": None}, "is None"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(store, given, message):
    asked = store.ask("Which law governs?", CONTRACT)
    with pytest.raises(FeedbackError, match=message):
        store.answer(asked, said(**given))
    assert list(store.answers()) == []


def test_absence_has_no_quotes(store):
    with pytest.raises(FeedbackError, match="there is none, and has quotes"):
        store.answer(store.ask("Who?", CONTRACT), Said("not in this contract", False, (OHIO,)))


def test_an_empty_or_endless_question_is_refused(store):
    for question in (" ", "x" * 4001):
        with pytest.raises(FeedbackError, match="question"):
            store.ask(question, CONTRACT)


def test_unknown_ids_are_refused(store, answered):
    for call in (
        lambda: store.rate("gone", thumbs="up"),
        lambda: store.rate(answered.asked_id, thumbs="up"),
        lambda: store.choose(answered.id, "left"),
        lambda: store.answer("gone", said()),
        lambda: store.answered("gone"),
        lambda: store.candidates("gone"),
    ):
        with pytest.raises(UnknownError):
            call()


def test_candidates_are_two_answers_to_one_question(store, answered):
    other = store.answer(store.ask("Which law governs?", CONTRACT), said("Utah"))
    for left, right in ((answered.id, answered.id), (answered.id, other.id)):
        with pytest.raises(FeedbackError, match="not two answers to one question"):
            store.offer(left, right)


def test_one_of_the_sides_or_a_tie_is_chosen(store, answered):
    offered = store.offer(answered.id, store.answer(answered.asked_id, said("Utah")).id)
    with pytest.raises(FeedbackError, match="left, right, tie"):
        store.choose(offered.id, "both")


def test_a_clock_that_goes_back_reorders_nothing(tmp_path):
    times = iter([f"2026-11-22T0{hour}:00:00.000000Z" for hour in (9, 9, 8, 3, 5)])
    with FeedbackStore.open(tmp_path / "f.db", now=lambda: next(times)) as store:
        answered = store.answer(store.ask("Which?", CONTRACT), said())
        given = [store.rate(answered.id, stars=stars) for stars in (1, 2, 3)]
        assert list(store.events()) == given and [event.at[12] for event in given] == ["8", "3", "5"]


def test_names_are_kept_as_pseudonyms_alone(store, answered, tmp_path):
    by = store.rate(answered.id, thumbs="up", by="Ada Lovelace").by
    assert by == store.pseudonym(" ada  LOVELACE ") != store.pseudonym("Ben") and store.pseudonym(" ") == ""
    store.close()
    assert all(b"Lovelace" not in path.read_bytes() for path in tmp_path.iterdir())
    with FeedbackStore.open(tmp_path / "feedback.db") as again, FeedbackStore.open(tmp_path / "other.db") as other:
        assert again.pseudonym("Ada Lovelace") == by != other.pseudonym("Ada Lovelace")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_store_and_salt_are_their_owners_alone(store, answered, tmp_path):
    store.rate(answered.id, thumbs="up", by="Ada")
    files = list(tmp_path.iterdir())
    assert len(files) >= 2 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    salt_path(store.log.path).chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        store.rate(answered.id, thumbs="up", by="Ada")


def test_a_lost_or_damaged_salt_is_told_and_never_replaced(store, answered):
    store.rate(answered.id, thumbs="up", by="Ada")
    path = salt_path(store.log.path)
    kept = path.read_text()
    path.write_text("zz")
    with pytest.raises(StoreError, match="is damaged"):
        store.pseudonym("Ada")
    path.unlink()
    with pytest.raises(StoreError, match="Put it back"):
        store.rate(answered.id, thumbs="up", by="Ada")
    assert store.rate(answered.id, thumbs="up").by == "" and not path.exists()
    path.write_text(kept)
    path.chmod(0o600)
    assert store.rate(answered.id, thumbs="up", by="Ada").by == next(store.events()).by


def test_what_a_person_withdraws_is_read_no_more(store, answered):
    store.rate(answered.id, thumbs="up", by="Ada")
    kept = store.rate(answered.id, thumbs="down", by="Ben")
    withdrawn = store.withdraw("ada")
    assert len(withdrawn.event_ids) == 1 and list(store.events()) == [kept]
    again = store.rate(answered.id, stars=5, by="Ada")
    assert list(store.events()) == [kept, again]
    for nobody in ("Cy", ""):
        with pytest.raises(FeedbackError, match="nothing that this person"):
            store.withdraw(nobody)


def test_nothing_is_changed_or_deleted(store, answered):
    store.rate(answered.id, thumbs="up", by="Ada")
    store.withdraw("Ada")
    db = sqlite3.connect(store.log.path)
    for table in ("log", "texts", "withdrawn"):
        for sql in (f"DELETE FROM {table}", f"UPDATE {table} SET rowid = rowid + 1"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                db.execute(sql)
    db.close()


def test_what_is_acknowledged_is_on_the_disk(store):
    assert store.log.tables.rows("PRAGMA synchronous")[0][0] == 2  # FULL: NORMAL can lose the last rows
    assert store.log.tables.rows("PRAGMA journal_mode")[0][0] == "wal"


def test_a_contract_is_kept_once_and_every_version_of_it(store):
    for text in (TEXT, TEXT, TEXT + " "):
        store.answer(store.ask("Which?", Contract(CONTRACT.id, text)), said())
    assert [store.contract_text(each) for each in store.answers()] == [TEXT, TEXT, TEXT + " "]
    db = sqlite3.connect(store.log.path)
    assert db.execute("SELECT count(*) FROM texts").fetchone() == (2,)
    db.close()


def test_threads_share_a_store(store, answered):
    failed = []

    def rate(name):
        try:
            for stars in (1, 2, 3, 4, 5) * 4:
                store.rate(answered.id, stars=stars, by=name)
                assert list(store.events("rating"))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=rate, args=(f"person {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(list(store.events())) == 120


def test_no_folder_no_permission_and_other_files_are_told(tmp_path):
    (tmp_path / "text.db").write_text("no database, and longer than a header of SQLite's would be " * 3)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    for name, message in (("none/f.db", "Make the folder"), ("text.db", "damaged"), ("other.db", "no feedback store")):
        with pytest.raises(StoreError, match=message):
            FeedbackStore.open(tmp_path / name)
    with pytest.raises(StoreError, match="cannot be opened"):
        FeedbackStore.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes where it likes")
def test_a_folder_that_may_not_be_written_to_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="may write to"):
        FeedbackStore.open(tmp_path / "f.db")
    tmp_path.chmod(0o700)


FULL = """
import resource, signal, sys
from corpora.types import Contract
from program.feedback.store import FeedbackStore, StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = FeedbackStore.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
n = 0
try:
    while n < 10_000:
        store.ask("Which law governs? " * 100, Contract("c", "text"))
        n += 1
except StoreError as error:
    print(n, error)
"""


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    ran = subprocess.run([sys.executable, "-c", FULL, tmp_path / "f.db"], capture_output=True, text=True, timeout=60)
    n, _, told = ran.stdout.partition(" ")
    assert "nothing of this call was kept" in told and "room" in told, ran.stderr
    with FeedbackStore.open(tmp_path / "f.db") as store:
        assert len(list(store.rows())) == int(n) > 5
        store.ask("Which?", CONTRACT)


def test_the_store_loads_no_model_library():
    code = "import program.feedback.store, sys; print([m for m in ('torch', 'dspy', 'fastapi') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "[]\n"
