"""A process killed at any moment loses nothing that the store has acknowledged; two writers lose nothing either."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time

import pytest

from corpora.types import Contract, Span
from program.feedback.store import FeedbackStore
from program.feedback.types import Said

CONTRACT = Contract("acme", "word " * 500)

if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("these tests fork", allow_module_level=True)
FORK = multiprocessing.get_context("fork")


def write(path, name, n, pipe):
    """Every kind of row; an id is sent when the store has acknowledged it."""
    with FeedbackStore.open(path) as store:
        for i in range(n):
            asked = store.ask(f"{name} {i}?", CONTRACT)
            pipe.send(asked.id)
            one, two = (store.answer(asked, Said(answer, True)) for answer in ("yes", "no"))
            pipe.send(one.id)
            pipe.send(two.id)
            pipe.send(store.rate(one.id, stars=3, by=name).id)
            pipe.send(store.correct(one.id, found=True, spans=[Span(i, i + 4)], by=name).id)
            pipe.send(store.choose(store.offer(one.id, two.id).id, "left", by=name).id)
    pipe.send("done")


def started(path, name, n):
    ours, its = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=write, args=(path, name, n, its))
    writer.start()
    its.close()
    return writer, ours


def heard(pipe):
    """All that a writer sent; what the kill cut off was not said."""
    said = []
    try:
        while pipe.poll(60):
            said.append(pipe.recv())
    except (EOFError, OSError):
        pass
    return said


def kept(path):
    """The ids of all rows, each read as what it is."""
    with FeedbackStore.open(path) as store:
        read = [*store.answers(), *store.events()]
        ids = {row["id"] for row in store.rows()}
    assert {each.id for each in read} <= ids
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    return ids


def test_forty_kills_lose_nothing_that_was_acknowledged(tmp_path):
    path, chance, acknowledged = tmp_path / "f.db", random.Random(7), set()
    for _ in range(40):
        writer, pipe = started(path, "w", 10_000)
        # By how much was heard, not by the clock: a busy machine must not make all kills early ones.
        wanted, before = chance.randrange(0, 24), len(acknowledged)
        while len(acknowledged) - before < wanted:
            acknowledged.add(pipe.recv())
        time.sleep(chance.uniform(0, 0.008))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged |= set(heard(pipe))
        writer.join()
        assert acknowledged - {"done"} <= kept(path)
    assert len(acknowledged) > 200


def test_two_writers_at_once_lose_no_row(tmp_path):
    path = tmp_path / "f.db"
    writers = [started(path, name, 12) for name in ("ada", "ben")]
    said = [heard(pipe) for _, pipe in writers]
    for writer, _ in writers:
        writer.join()
    assert all(each[-1] == "done" and len(each) == 12 * 6 + 1 for each in said)
    ids = kept(path)
    assert {row for each in said for row in each} - {"done"} <= ids and len(ids) == 2 * 12 * 7
    with FeedbackStore.open(path) as store:
        assert len({event.by for event in store.events()}) == 2
