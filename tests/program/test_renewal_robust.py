"""What may befall an unattended loop: a full disk, a read-only folder, a wrong clock, damaged weights, a second one."""

import errno
import json
import os
import tempfile
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from program.releases import folders
from program.releases.store import ReleaseStore
from program.releases.types import ReleaseError
from program.renewal import renew as renewing_module
from program.renewal import stages, watch
from program.renewal.drifting import reports
from program.renewal.home import Home, RenewalError, looking, renewals
from program.renewal.renew import renew
from tests.program.test_renewal import Scripted, files, killed_at, made_home, told, took  # noqa: F401
from tests.program.test_renewal import live as live_in
from tests.program.test_renewal_watch import BEGIN, SETTINGS, letters, live, looked  # noqa: F401

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def home(tmp_path, files, monkeypatch):  # noqa: F811
    monkeypatch.setattr(renewing_module, "side_by_side", took)
    return made_home(tmp_path, files)


def test_a_disk_that_fills_up_between_stages_or_in_a_release_costs_nothing_that_was_done(home, monkeypatch):
    def once(module, name, when):
        real = getattr(module, name)

        def full(*given, **options):
            if when(*given):
                monkeypatch.setattr(module, name, real)
                raise FULL
            return real(*given, **options)

        monkeypatch.setattr(module, name, full)

    script = Scripted(0.9)
    once(stages, "write_json", lambda path, _: path.stem == "gate")
    with pytest.raises(OSError, match="No space left"):
        told(home, script)
    once(folders.shutil, "copyfile", lambda source, target: "adapter_model" in str(source))
    with pytest.raises(ReleaseError, match="The disk is full: free some space"):
        told(home, script)
    assert live_in(home) is None and not (home / "renewals/0001/failures.json").exists(), (
        "that is no failure of its own"
    )
    assert told(home, script)["outcome"] == "promoted" and len(script.configs) == 1


def test_a_read_only_folder_is_told_before_anything_is_begun_and_is_served(files, monkeypatch):  # noqa: F811
    monkeypatch.setattr(renewing_module, "side_by_side", took)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # as root it is read by another user, who must come so far
        place = made_home(Path(folder), files)
        first = told(place, Scripted(0.9))["release"]
        for path in (place, place / ".renewal.lock"):
            path.chmod(path.stat().st_mode & ~0o222)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if os.getuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                try:
                    told(place, Scripted(0.9, 2), by_hand="to see")
                except RenewalError as error:
                    said = "cannot be written to" in str(error) and "Give the folder its permissions back" in str(error)
                    served_ = ReleaseStore.open(place / "releases").servable()[0].id
                    code = 0 if said and served_ == first else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        place.chmod(0o755)
        (place / ".renewal.lock").chmod(0o644)
        assert told(place, Scripted(0.9, 2), by_hand="to see")["id"] == "0002"


def test_a_clock_that_went_back_stops_neither_the_look_nor_a_renewal_that_was_begun(looked, live, monkeypatch):  # noqa: F811
    live(range(16))
    monkeypatch.setattr(watch, "check_drift", partial(watch.check_drift, settings=SETTINGS))
    looked.answer = {"id": "0001", "outcome": "kept"}
    said = []
    for day in (16, 8, 17):
        watch.look_once(looked.home, say=said.append, now=lambda day=day: BEGIN + timedelta(days=day))
    assert "nothing moved" in said[0] and "clock" in said[1] and len(looked) == 3
    assert json.loads((looked.home / "watch.json").read_text())["renewal"]["id"] == "0001"
    state = next(Home(looked.home).drift.glob("*/state.json"))
    assert json.loads(state.read_text())["checks"] == 2 and len(reports(Home(looked.home))) == 2


def corrupt(path):
    path.chmod(0o644)
    path.write_text("other weights")


def test_of_a_corrupt_live_adapter_nothing_is_made_and_after_a_rollback_it_goes_on(home):
    one = told(home, Scripted(0.9))["release"]
    two = told(home, Scripted(0.95, 2), by_hand="to see")["release"]
    corrupt(next((home / "releases" / two / "program").rglob("adapter_model.safetensors")))
    script = Scripted(0.95, 3)
    with pytest.raises(RenewalError, match="adapter_model.safetensors.*the one before is served.*rollback"):
        told(home, script, by_hand="to see")
    store = ReleaseStore.open(home / "releases")
    assert script.configs == [] and len(renewals(Home(home))) == 2 and store.servable()[0].id == one
    store.rollback(reason="it is damaged")
    assert told(home, script, by_hand="to see")["outcome"] == "promoted" and script.configs[0].start_from.endswith(one)


def test_a_candidate_whose_adapter_is_damaged_before_it_is_released_never_goes_live(home):
    killed_at("renew.gate.kept", lambda: told(home, Scripted(0.9)))
    corrupt(next((home / "renewals/0001/candidate/program").rglob("adapter_model.safetensors")))
    for _ in range(3):
        with pytest.raises(ReleaseError, match="cannot be released"):
            told(home, Scripted(0.9))
    assert live_in(home) is None and renewals(Home(home))[0]["outcome"] == "failed"
    assert told(home, Scripted(0.9, 2), by_hand="again")["outcome"] == "promoted"


def test_two_watchers_make_one_renewal_and_note_each_check_once(home, monkeypatch):
    monkeypatch.setattr(watch, "renew", partial(renew, compile=Scripted(0.9)))
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(2):
                    watch.look_once(home, say=str)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert [one["outcome"] for one in renewals(Home(home))] == ["promoted"] and live_in(home) is not None
    assert json.loads((home / "watch.json").read_text())["looked"]


def test_a_second_watcher_says_that_one_is_enough(looked, live, monkeypatch):  # noqa: F811
    monkeypatch.setattr("program.renewal.home._LOOK_TIMEOUT_S", 0.05)
    reached = []

    def meanwhile(home, *, cause, say, now):
        reached.append(cause)

    monkeypatch.setattr(watch, "renew", meanwhile)
    said = []
    with looking(Home(looked.home)), pytest.raises(RenewalError, match="one watch is enough"):
        watch.look_once(looked.home, say=said.append)
    assert "one watch is enough" in said[0] and reached == [None]
