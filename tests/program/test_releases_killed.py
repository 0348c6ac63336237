"""Killed at every failpoint, and read while others write: the live release is always whole."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from program.failpoints import NAMES

ROOT = Path(__file__).parents[2]
POINTS = sorted(name for name in NAMES if name.startswith("release."))
# One process imports everything and forks: a fork is as good as a fresh process. Seals are left to test_releases.py: to
# check them, torch is imported, which takes longer than all that is done here.
FORKS = """
import json, os, shutil, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
sys.modules["optimizers.local_lm.sealed"] = SimpleNamespace(check_seal=lambda folder: None)
from program.failpoints import VARIABLE
from program.releases import ReleaseError, ReleaseStore
from tests.program.releases_fakes import write_run

folder = Path(sys.argv[1])

def forked(do, failpoint="", user=None):
    pid = os.fork()
    if pid == 0:
        try:
            if failpoint:
                os.environ[VARIABLE] = failpoint
            if user:
                os.setgid(user), os.setuid(user)
            do()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
KILLS = """
A, B, C, D = made = "0001 0002 0003 0004".split()
runs = [write_run(folder / f"run{n}", n) for n in range(5)]
base = ReleaseStore.open(folder / "base")
for n in range(4):
    base.add(runs[n], parents=made[n - 1 : n] if n < 2 else ())
base.promote(A, "first")

def opening(op, store):
    if op in ("rollback", "collect"):
        store.promote(B, "second")
    if op == "torn":
        with open(store.root / "history.jsonl", "ab") as file:
            file.write(b'{"number": 2, "ev')
    if op == "undone":
        assert wait(forked(lambda: store.promote(B, "second"), "release.promote.noted")) == -signal.SIGKILL

def operation(op, store):
    if op == "add":
        store.add(runs[4], parents=[A])
    elif op == "rollback":
        store.rollback(A, "worse")  # named, it is the same if it is done twice
    elif op == "collect":
        store.collect(1, younger_s=0.0)
    else:
        store.promote(B, "second")

def state(store):
    events = [(e.event, e.id[:4], (e.before or "")[:4], e.reason) for e in store.history() if e.event != "collect"]
    return [name[:4] for name in store.names()], store.live().id[:4], events

def check(store, allowed):
    live = store.live().id
    assert live[:4] in allowed, live
    assert store.servable() == (store.get(live), ()), "another than the live one would be served"
    for name in store.names():
        store.verify(name)
    assert store.history()[0].reason == "first"

results = {}
for point in sys.argv[2:]:
    _, op, step = point.split(".")
    op = step if op == "repair" else op
    store = ReleaseStore.open(folder / f"at-{point}")
    shutil.copytree(base.root, store.root)
    whole = ReleaseStore.open(folder / f"whole-{point}")
    shutil.copytree(base.root, whole.root)
    for each in (store, whole):
        opening(op, each)
    operation(op, whole)
    times = ":3" if step == "file" else ":2" if step in ("hidden", "removing", "removed") else ""
    killed = wait(forked(lambda: operation(op, store), point + times)) == -signal.SIGKILL
    check(store, (A, B))
    assert set(store.names()) <= {*whole.names(), *base.names()}
    assert wait(forked(lambda: operation(op, store))) == 0, f"after {point} the next run failed"
    check(store, (state(whole)[1],))
    hidden = {p.name for p in store.root.iterdir() if p.name.startswith(".")} - {".lock"}
    assert not hidden, hidden
    assert state(store) == state(whole), (point, state(store), state(whole))
    results[point] = killed
print(json.dumps(results))
"""
PROMOTIONS = """
A, B, C, D = names = [ReleaseStore.open(folder / "r").add(write_run(folder / f"run{n}", n)).id for n in range(4)]
ReleaseStore.open(folder / "r").promote(A, "first")
stop = folder / "stop"
each = int(sys.argv[2])

def write(pair):
    store = ReleaseStore.open(folder / "r")
    for n in range(each):
        store.promote(pair[n % 2], f"{n}")

def read(number):
    store, n = ReleaseStore.open(folder / "r"), 0
    while not stop.exists():
        live = store.live()
        assert live is not None and live.id in names
        events = store.history()
        assert [event.number for event in events] == list(range(1, len(events) + 1)), "a torn or lost row"
        served, refused = store.servable()
        assert not refused and served.id in names, refused
        n += 1
        time.sleep(0.002)
    (folder / f"reads{number}").write_text(str(n))

readers = [forked(lambda n=n: read(n)) for n in range(2)]
writers = [forked(lambda pair=pair: write(pair)) for pair in ((B, A), (C, D))]
failed = [pid for pid in writers if wait(pid)]
stop.touch()
torn = [pid for pid in readers if wait(pid)]
assert not failed and not torn, (failed, torn)
store = ReleaseStore.open(folder / "r")
events = store.history()
assert all(later.before == earlier.id for earlier, later in zip(events, events[1:])), "a promotion was lost"
assert store.live().id == events[-1].id
print(json.dumps({"events": len(events), "reads": [int((folder / f"reads{n}").read_text()) for n in range(2)]}))
"""
READ_ONLY = """
store = ReleaseStore.open(folder / "r")
one, two = (store.add(write_run(folder / f"run{n}", n)).id for n in range(2))
run = write_run(folder / "next", 3)
store.promote(one, "first")
for path in (folder / "r", folder / "r" / ".lock"):
    path.chmod(path.stat().st_mode & ~0o222)

def use():
    assert store.servable()[0].id == one and len(store.list()) == 2 and len(store.history()) == 1
    for write in (lambda: store.promote(two, "x"), lambda: store.add(run), lambda: store.rollback(two, "x"),
                  lambda: store.collect(1)):
        try:
            write()
        except ReleaseError as error:
            assert "check the folder and its permissions" in str(error).lower(), error
        else:
            raise AssertionError("it was written to")

assert wait(forked(use, user=65534 if os.getuid() == 0 else None)) == 0
print(json.dumps({"live": store.live().id == one}))
"""


def _run(script: str, *arguments: object) -> dict:
    env = {key: value for key, value in os.environ.items() if key != "EVERGREEN_FAILPOINT"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", FORKS + script, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes that it kills")


def test_killed_at_every_failpoint_the_live_release_is_whole_and_the_next_run_goes_on(tmp_path):
    assert _run(KILLS, tmp_path, *POINTS) == dict.fromkeys(POINTS, True)


def test_500_promotions_by_two_under_readers_tear_nothing(tmp_path):
    told = _run(PROMOTIONS, tmp_path, 250)
    assert told["events"] == 501 and min(told["reads"]) > 10, told


def test_a_read_only_folder_serves_and_says_that_it_cannot_be_written():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # as root it is read by another user, who must come so far
        assert _run(READ_ONLY, folder) == {"live": True}
