"""The file of traces: bounded, without words that may not be kept, and never in the way of an answer."""

import logging
import os
import random
import sqlite3
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from modules.index_files import StoreError
from program.feedback.store import FeedbackStore
from program.traces.policy import TracePolicy
from program.traces.store import TraceStore
from program.traces.types import Trace

AT = "2026-11-22T09:14:03.120551Z"
WHOLE = Trace(
    id="t", at=AT, release="mine", question="Which law governs?", contract_id="one", category="Governing Law",
    answer="Ohio", found=True, n_quotes=1, n_ungrounded=0, spans=((5, 9), (12, 20)), confidence=0.4, p_answered=0.9,
    scores=(0.5, 0.25), passages=("one:0-9", "one:9-20"), latency_s=0.8, prompt_tokens=12, completion_tokens=3,
    error=None, shadow=True, answer_id="a",
)  # fmt: skip


def trace(number=0, **given):
    return replace(WHOLE, **{"id": f"t{number}", "shadow": False} | given)


@pytest.fixture
def opened(tmp_path):
    """`opened(**policy)` is the store, opened anew under that policy; `now` is its clock."""
    made = []

    def make(now=lambda: AT, rng=None, **policy):
        made.append(TraceStore.open(tmp_path / "traces.db", TracePolicy(**policy), now=now, rng=rng))
        return made[-1]

    yield make
    for each in made:
        each.close()


def raw(path):
    """All that stands on the disk beside the store, its write-ahead log included."""
    return b"".join(each.read_bytes() for each in path.parent.iterdir())


def test_what_goes_in_comes_out(opened):
    store = opened()
    kept = store.record(WHOLE)
    assert list(store.between()) == [kept] and kept.question_sha256
    assert replace(kept, question_sha256="") == WHOLE and store.count() == 1 and store.lost == 0
    failed = store.record(
        Trace(id="u", at=AT, release="mine", question="\ud800?", contract_id="", error="OSError: no \ud800 LM")
    )
    assert list(opened().between()) == [kept, failed]


def test_traces_are_chosen_by_time_release_and_shadow(opened):
    store = opened()
    for i, (at, release, shadow) in enumerate(
        [("2026-11-01T00:00:00.000000Z", "a", False), ("2026-11-02T00:00:00.500000Z", "b'", True), (AT, "a", True)]
    ):
        store.record(trace(i, at=at, release=release, shadow=shadow))

    def ids(**given):
        return [each.id for each in store.between(**given)]

    assert ids(start="2026-11-02", stop=AT) == ["t1"] and ids(start=AT) == ["t2"]
    assert ids(start="2026-11-02T00:00:00Z", stop="2026-11-02T00:00:01Z") == ["t1"]
    assert ids(start="2026-11-02T02:00:00.4+02:00") == ["t1", "t2"]
    assert ids(release="b'") == ["t1"] and ids(release="a", shadow=False) == ["t0"] and ids(shadow=True) == ["t1", "t2"]
    with pytest.raises(ValueError, match="soon"):
        store.between(start="soon")


def test_many_pages_are_read_once_each(opened):
    store = opened()
    for i in range(1203):
        store.record(trace(i, release=f"r{i % 2}"))
    assert [each.id for each in store.between()] == [f"t{i}" for i in range(1203)]
    assert len(list(store.between(release="r0"))) == 602


@pytest.mark.parametrize(
    ("policy", "gone", "there"),
    [
        ({}, [b"hunter2"], [b"Ohio", b"governs", b"ada@example.com"]),
        ({"personal_data": "mask"}, [b"hunter2", b"ada@example"], [b"Ohio", b"[EMAIL]"]),
        ({"personal_data": "drop"}, [b"hunter2", b"ada@example", b"governs"], [b"Ohio"]),
        ({"inputs": "hash"}, [b"hunter2", b"ada@example", b"governs", b"Ohio", b"parse"], [b"AdapterParseError"]),
    ],
)
def test_what_may_not_be_kept_is_nowhere_on_the_disk(opened, policy, gone, there):
    store = opened(**policy)
    store.record(trace(1, question="Which law governs, ada@example.com?", answer="Ohio, password=hunter2"))
    store.record(trace(2, question=None, answer=None, error="AdapterParseError: parse of password=hunter2 failed"))
    assert (store.path.with_name("traces.db-wal")).exists()
    for _ in range(2):
        assert not [words for words in gone if words in raw(store.path)]
        assert not [words for words in there if words not in raw(store.path)]
        store.close()


def test_the_secret_of_the_hashes_stands_beside_the_file(opened, tmp_path):
    store = opened(inputs="hash")
    salt = tmp_path / "traces.db.salt"
    assert salt.read_bytes() not in store.path.read_bytes()
    first = store.record(trace(1)).question_sha256
    assert opened(inputs="hash").record(trace(2)).question_sha256 == first
    if os.name == "posix":
        assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in tmp_path.iterdir())
    salt.unlink()
    with pytest.raises(StoreError, match="traces.db.salt is gone"):
        opened()


def test_a_generator_may_decide_what_is_sampled(opened):
    kept = []
    for seed in (3, 3, 4):
        store = opened(rng=random.Random(seed), sample=0.5)
        kept.append([store.record(trace(f"{len(kept)}.{i}")) is not None for i in range(40)])
    assert kept[0] == kept[1] != kept[2] and 10 < sum(kept[0]) < 30
    assert store.record(trace(99, error="OSError: x")) is not None and store.lost == 0
    never = opened(sample=0)
    assert never.record(trace(100)) is None and never.lost == 0


def test_the_file_is_bounded_in_rows(opened):
    store = opened(max_rows=50)
    for i in range(400):
        store.record(trace(i))
        assert store.count() <= 55
    store.prune()
    assert [each.id for each in store.between()] == [f"t{i}" for i in range(350, 400)]
    assert store.prune() == 0
    fewer = opened(max_rows=7)
    assert fewer.prune() == 43 and fewer.count() == 7


def test_the_first_trace_removes_what_an_older_policy_left(opened):
    store = opened()
    for i in range(200):
        store.record(trace(i))
    fewer = opened(max_rows=100)
    fewer.record(trace(200))
    assert [each.id for each in fewer.between()] == [f"t{i}" for i in range(101, 201)]


def test_a_trace_beyond_its_age_is_wiped(opened):
    at = [datetime(2026, 1, 1, tzinfo=UTC)]

    def clock():
        return at[0].strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    store = opened(now=clock, max_age_days=30, max_rows=10)
    store.record(trace(1, at=clock(), answer="Ohio"))
    at[0] += timedelta(days=29)
    store.record(trace(2, at=clock(), answer="Utah"))
    assert store.count() == 2 and store.prune() == 0
    at[0] += timedelta(days=2)
    store.record(trace(3, at=clock(), answer="Iowa"))
    assert [each.id for each in store.between()] == ["t2", "t3"]
    store.close()
    assert b"Ohio" not in raw(store.path) and b"Utah" in raw(store.path)
    at[0] -= timedelta(days=60)  # a clock set back removes nothing
    assert opened(now=clock, max_age_days=30).prune() == 0


def test_pruning_does_not_count_the_rows(opened):
    store, seen = opened(max_rows=50), []
    store._tables._db.set_trace_callback(seen.append)
    for i in range(100):
        store.record(trace(i))
    assert not [sql for sql in seen if "count(" in sql.lower()]
    assert len([sql for sql in seen if sql.startswith("DELETE")]) <= 20
    assert len(seen) < 6 * 100


def lose(store, caplog, n=3):
    with caplog.at_level(logging.WARNING, logger="program.traces.store"):
        assert [store.record(trace(f"lost{i}")) for i in range(n)] == [None] * n
    told = [record for record in caplog.records if "being lost" in record.message]
    assert store.lost == n and len(told) == 1


def test_a_full_disk_is_counted_and_told_once(opened, caplog):
    store = opened()
    store.record(trace(1))
    pages = store._tables.rows("PRAGMA page_count")[0][0]
    store._tables.rows(f"PRAGMA max_page_count = {pages}")
    while store.lost == 0:
        store.record(trace(f"{random.random()}", answer="word " * 1500))
    store.lost, n = 0, store.count()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="program.traces.store"):
        for i in range(3):
            assert store.record(trace(f"big{i}", answer="word " * 1500)) is None
    assert [each.message.partition("(")[2][:24] for each in caplog.records] == ["database or disk is full"]
    assert store.lost == 3 and store.count() == n
    store._tables.rows("PRAGMA max_page_count = 1000000")
    assert store.record(trace(2)) is not None


def test_a_locked_file_fails_no_answer_and_is_waited_for_once(opened, caplog):
    store = opened()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    lose(store, caplog)
    assert store._tables.rows("PRAGMA busy_timeout")[0][0] == 0
    other.execute("ROLLBACK")
    other.close()
    assert store.record(trace(1)) is not None
    assert store._tables.rows("PRAGMA busy_timeout")[0][0] > 0 and store.count() == 1


def test_a_read_only_file_and_a_closed_one_fail_no_answer(opened, caplog):
    store = opened()
    store._tables.rows("PRAGMA query_only = ON")
    lose(store, caplog)
    caplog.clear()
    closed = opened()
    closed.close()
    lose(closed, caplog)


def test_what_is_no_trace_fails_no_answer(opened, caplog):
    lose_it = opened()
    with caplog.at_level(logging.WARNING, logger="program.traces.store"):
        assert lose_it.record(trace(1, confidence=float("nan"))) is None
        assert lose_it.record(trace(2, scores=(object(),))) is None
    assert lose_it.lost == 2 and lose_it.count() == 0


def test_another_file_is_refused(tmp_path):
    with FeedbackStore.open(tmp_path / "f.db"), pytest.raises(StoreError, match="no trace store"):
        TraceStore.open(tmp_path / "f.db")
    with pytest.raises(StoreError, match="no folder"):
        TraceStore.open(tmp_path / "none" / "t.db")
    TraceStore.open(tmp_path / "t.db").close()
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(StoreError, match="version 2"):
        TraceStore.open(tmp_path / "t.db")
