"""Two processes record at once and none loses a trace; one that is killed leaves a store that can be read."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time

import pytest

from program.traces.policy import TracePolicy
from program.traces.store import TraceStore
from program.traces.types import Trace

if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("these tests fork", allow_module_level=True)
FORK = multiprocessing.get_context("fork")


def write(path, name, n, pipe, policy):
    with TraceStore.open(path, policy) as store:
        for i in range(n):
            store.record(
                Trace(id=f"{name}{i}", at=store.now(), release=name, question=f"{name} {i}?", contract_id="one")
            )
            pipe.send(i)
        pipe.send(("lost", store.lost))


def started(path, name, n, policy=TracePolicy()):  # noqa: B008
    ours, its = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=write, args=(path, name, n, its, policy))
    writer.start()
    its.close()
    return writer, ours


def heard(pipe):
    said = []
    try:
        while pipe.poll(60):
            said.append(pipe.recv())
    except (EOFError, OSError):
        pass
    return said


def test_two_writers_lose_no_trace(tmp_path):
    path = tmp_path / "traces.db"
    writers = [started(path, name, 300) for name in ("ada", "ben")]
    said = [heard(pipe) for _, pipe in writers]
    for writer, _ in writers:
        writer.join()
    assert [each[-1] for each in said] == [("lost", 0)] * 2
    with TraceStore.open(path) as store:
        ids = [trace.id for trace in store.between()]
    assert sorted(ids) == sorted(f"{name}{i}" for name in ("ada", "ben") for i in range(300))


def test_two_writers_keep_within_the_bound(tmp_path):
    path, policy = tmp_path / "traces.db", TracePolicy(max_rows=40)
    writers = [started(path, name, 200, policy) for name in ("ada", "ben")]
    for writer, pipe in writers:
        assert heard(pipe)[-1] == ("lost", 0)
        writer.join()
    with TraceStore.open(path, policy) as store:
        assert 40 <= store.count() <= 40 + 2 * 4


def test_a_killed_writer_leaves_what_it_recorded(tmp_path):
    path, chance, told = tmp_path / "traces.db", random.Random(5), set()
    for life in range(12):
        writer, pipe = started(path, f"w{life}.", 100_000)
        for _ in range(chance.randrange(1, 40)):
            told.add(f"w{life}.{pipe.recv()}")
        time.sleep(chance.uniform(0, 0.004))
        os.kill(writer.pid, signal.SIGKILL)
        told |= {f"w{life}.{i}" for i in heard(pipe)}
        writer.join()
        with TraceStore.open(path) as store:
            assert told <= {trace.id for trace in store.between()}
            assert store.record(Trace(id=f"after{life}", at=store.now(), release="r", question="q", contract_id="one"))
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
