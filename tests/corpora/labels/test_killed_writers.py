"""A writer that is killed at any moment, and two that write at once: what `add` has returned for is there, once."""

import multiprocessing
import random
import sqlite3
import time

import pytest

from corpora.labels.store import LabelStore
from corpora.labels.types import Draft
from corpora.types import Contract, Label, Question, Span

OUTCOMES = ("kept", "kept", "verbatim: no quote")

if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("these tests fork", allow_module_level=True)
FORK = multiprocessing.get_context("fork")


def draft(i, answer, name):
    question = Question(f"c__{i}", "c", "Some", f"What is number {i}?")
    return Draft(Label(question, (Span(i, i + 1),), answer), "answer", name)


def write(path, name, first, last, pipe):
    """Each unit of work keeps two labels and drops a draft; its number is sent once `add` is back."""
    with LabelStore.open(path) as store:
        pipe.send("ready")
        for i in range(first, last):
            unit = ("c", f"What is number {i}?", "answer", name, "p")
            if store.was_asked([unit]) == [False]:
                drafts = [(draft(i, answer, name), [("verbatim", "")]) for answer in ("yes", "no")]
                store.add(drafts, "synthetic", [(*unit, outcome) for outcome in OUTCOMES])
                pipe.send(i)
    pipe.send("done")


def started(path, name="w", first=0, last=4000):
    ours, its = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=write, args=(path, name, first, last, its))
    writer.start()
    its.close()
    return writer, ours


def ended(writer, pipe):
    """All that the writer sent; what the kill cut off was not said."""
    said = []
    try:
        while pipe.poll(60):
            said.append(pipe.recv())
    except (EOFError, OSError):
        pass
    writer.join()
    return said


def made(path):
    with LabelStore.open(path) as store:
        store.add_contracts([Contract("c", "word " * 2000)])


def check(path, acknowledged):
    """What was acknowledged is there; each unit is there whole and once, in records and ledger alike."""
    with LabelStore.open(path) as store:
        asked = [int(record.draft.label.question.id.removeprefix("c__")) for record in store.records()]
        dropped = store.dropped_counts()
    db = sqlite3.connect(path)
    ledger = db.execute("SELECT question, outcome FROM ledger").fetchall()
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    units = set(asked)
    assert acknowledged <= units and len(asked) == 2 * len(units)
    assert sorted(ledger) == sorted((f"What is number {i}?", outcome) for i in units for outcome in OUTCOMES)
    assert dropped == ({"verbatim": len(units)} if units else {})
    return units


def test_a_writer_killed_at_any_moment_loses_nothing_it_was_told_is_kept(tmp_path):
    path, chance, acknowledged = tmp_path / "labels.sqlite3", random.Random(5), set()
    made(path)
    for _ in range(12):
        writer, pipe = started(path)
        time.sleep(chance.uniform(0, 0.15))
        writer.kill()
        acknowledged |= {each for each in ended(writer, pipe) if isinstance(each, int)}
        check(path, acknowledged)
    assert acknowledged


def test_a_store_killed_while_it_is_made_can_be_opened(tmp_path):
    chance = random.Random(6)
    for i in range(10):
        writer, pipe = started(tmp_path / f"{i}.sqlite3", last=0)
        time.sleep(chance.uniform(0, 0.04))
        writer.kill()
        ended(writer, pipe)
        made(tmp_path / f"{i}.sqlite3")


def test_writers_at_once_lose_nothing_and_store_nothing_twice(tmp_path):
    path = tmp_path / "labels.sqlite3"
    made(path)
    writers = [started(path, first=0, last=60), started(path, first=60, last=120)]
    assert [ended(*writer)[-1] for writer in writers] == ["done", "done"]
    assert check(path, set(range(120))) == set(range(120))


def test_the_same_labels_from_two_writers_are_stored_once(tmp_path):
    path = tmp_path / "labels.sqlite3"
    made(path)
    writers = [started(path, name, 0, 40) for name in ("one", "two")]
    assert [ended(*writer)[-1] for writer in writers] == ["done", "done"]
    with LabelStore.open(path) as store:
        assert len(list(store.records())) == 80 and store.dropped_counts() == {"verbatim": 80}


def test_processes_that_open_a_new_file_at_once_all_get_it(tmp_path):
    for i in range(5):
        openers = [started(tmp_path / f"{i}.sqlite3", last=0) for _ in range(4)]
        assert [ended(*opener) for opener in openers] == [["ready", "done"]] * 4
