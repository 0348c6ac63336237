import errno
import hashlib
import json
import logging
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from program.failpoints import VARIABLE, reach
from program.releases import ReleaseError, ReleaseStore, resolve, view
from program.releases.draft import write_draft
from program.runs import ROW_KEYS
from tests.program.releases_fakes import write_run


@pytest.fixture
def store(tmp_path):
    return ReleaseStore.open(tmp_path / "releases")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A root of three releases, each compiled from the one before; to copy."""
    folder = tmp_path_factory.mktemp("made")
    store, ids = ReleaseStore.open(folder / "releases"), []
    for number in range(3):
        ids.append(store.add(write_run(folder / f"run{number}", number), parents=ids[-1:]).id)
    return folder, ids


@pytest.fixture
def three(store, made):
    """The ids of three releases; none is live."""
    shutil.copytree(made[0] / "releases", store.root)
    return list(made[1])


def _whole(store):
    """What every reader may rely on: the live release and all that are listed are as they were made."""
    for name in store.names():
        store.verify(name)
    left = [path.name for path in store.root.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert not left, left


def _flip(path: Path):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_becomes_a_release_that_says_what_it_is(store, tmp_path):
    run = write_run(tmp_path / "run", 1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    first = store.add(run, lineage={"feedback": {"ids": 12}}, scores={"kl": 0.01}, decision="d1")
    assert first.id == f"0001-{first.manifest['content'][:8]}"
    told = first.manifest
    assert told["files"]["STATUS"] == {"sha256": hashlib.sha256(b"complete\n").hexdigest(), "bytes": 9}
    assert told["lineage"]["files"]["corpus"]["bytes"] == 10 and told["lineage"]["feedback"] == {"ids": 12}
    assert told["lineage"]["labels"] == hashlib.sha256(b"labels").hexdigest()
    assert told["scores"]["kl"] == 0.01 and told["scores"]["scores"]["exact_match"]["low"] == 0.5
    assert told["program"]["predictors"] == {"reviewer.predict": "sft-1"} and told["decision"] == "d1"
    assert told["index"] == {"path": "index", "generation": "g1", "servers": []}
    taken = {path.relative_to(first.path).as_posix() for path in first.path.rglob("*") if path.is_file()}
    assert taken == {*told["files"], "manifest.json"}
    assert "index/chroma/chroma.sqlite3" in taken and "program/adapters/sft-1/adapter_config.json" in taken
    assert not {name for name in taken if "labels.db" in name or "unused" in name or ".lock" in name}
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    shutil.rmtree(run)
    assert store.verify("0001") == store.get(first.id) == first and store.live() is None


def test_nothing_in_a_release_can_be_written(three, store):
    modes = {path.stat().st_mode & 0o222 for path in [store.get(three[0]).path, *store.get(three[0]).path.rglob("*")]}
    assert modes == {0}


def test_the_same_run_twice_is_one_release_and_a_broken_one_is_made_anew(store, tmp_path):
    first = store.add(write_run(tmp_path / "run", 1))
    again = write_run(tmp_path / "again", 1)
    (again / "index/chroma/chroma.sqlite3").write_bytes(b"opened since")
    assert store.add(again).id == first.id and len(store.list()) == 1
    _flip(first.path / "program/program.json")
    second = store.add(again)
    assert second.id == f"0002-{first.id[5:]}" and store.verify(second.id)


def test_releases_share_files_but_never_the_program(made):
    one, two = (made[0] / "releases" / name for name in made[1][:2])
    assert (one / "index/contracts/c.json").samefile(two / "index/contracts/c.json")
    assert (one / "index/chroma/chroma.sqlite3").samefile(two / "index/chroma/chroma.sqlite3")
    same = "program/adapters/sft-shared/adapter_model.safetensors"
    assert (one / same).read_bytes() == (two / same).read_bytes() and not (one / same).samefile(two / same)


def test_a_damaged_file_is_not_shared_on(store, tmp_path):
    first = store.add(write_run(tmp_path / "one", 1))
    _flip(first.path / "index/contracts/c.json")
    assert store.verify(store.add(write_run(tmp_path / "two", 2)).id)


def test_where_links_cannot_be_made_files_are_copied(store, tmp_path, monkeypatch):
    store.add(write_run(tmp_path / "one", 1))
    monkeypatch.setattr(os, "link", _full)
    assert store.verify(store.add(write_run(tmp_path / "two", 2)).id)


def test_only_a_complete_and_whole_run_is_released(store, tmp_path):
    run = write_run(tmp_path / "run", 1)
    (run / "STATUS").write_text("partial\n")
    with pytest.raises(ReleaseError, match="it is partial"):
        store.add(run)
    with pytest.raises(ReleaseError, match="no run folder"):
        store.add(tmp_path / "none")
    broken = write_run(tmp_path / "broken", 2)
    _flip(broken / "program/adapters/sft-2/adapter_model.safetensors")
    with pytest.raises(ReleaseError, match="adapter_model.safetensors"):
        store.add(broken)
    with pytest.raises(ReleaseError, match="there is no release '0009'"):
        store.add(write_run(tmp_path / "orphan", 3), parents=["0009"])
    assert store.list() == []
    _whole(store)


def test_a_run_that_changes_while_it_is_copied_is_refused(store, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", 1)

    def late(draft, run, *given, **options):
        (run / "config.json").write_text("{}")
        write_draft(draft, run, *given, **options)

    monkeypatch.setattr("program.releases.store.write_draft", late)
    with pytest.raises(ReleaseError, match="config.json changed while it was copied"):
        store.add(run)
    _whole(store)


def test_promote_and_roll_back_with_reasons(three, store):
    a, b, c = three
    for name in three:
        store.promote(name, f"promote {name}", decision=f"d-{name}", by="ada")
    store.promote(c, "once more")  # is live already
    assert store.live().id == c
    assert store.rollback(reason="worse", by="bob").id == b and store.rollback(reason="worse").id == a
    with pytest.raises(ReleaseError, match="nothing whole was live before"):
        store.rollback(reason="worse")
    assert store.rollback(c, "a mistake").id == c
    told = [(event.event, event.before, event.id) for event in store.history()]
    assert told == [
        ("promote", None, a), ("promote", a, b), ("promote", b, c),
        ("rollback", c, b), ("rollback", b, a), ("rollback", a, c),
    ]  # fmt: skip
    first = store.history()[0]
    assert (first.reason, first.by, first.decision, first.number) == (f"promote {a}", "ada", f"d-{a}", 1)
    for call in (lambda: store.promote(a, " "), lambda: store.rollback(a)):
        with pytest.raises(ReleaseError, match="no reason"):
            call()
    with pytest.raises(ReleaseError, match="3 releases begin with '000'"):
        store.promote("000", "which?")
    with pytest.raises(ReleaseError, match="there is no release '../x'"):
        store.get("../x")


def test_what_allows_is_asked_under_the_lock_with_what_is_live_then(three, store):
    a, b, _ = three
    asked = []
    store.promote(a, "first", allow=lambda new, live: asked.append((new.id, live)) or True)
    with pytest.raises(ReleaseError, match="says no"):
        store.promote(b, "worse", allow=lambda new, live: live is None)  # decided when nothing was live
    assert asked == [(a, None)] and store.live().id == a and len(store.history()) == 1


def test_a_broken_release_is_never_promoted(three, store):
    a, b, _ = three
    store.promote(a, "first")
    _flip(store.get(b).path / "scores.jsonl")
    with pytest.raises(ReleaseError, match="scores.jsonl has another SHA-256"):
        store.promote(b, "better")
    assert store.live().id == a


@pytest.mark.parametrize(
    "file", ["program/adapters/sft-2/adapter_model.safetensors", "manifest.json", "index/chroma/chroma.sqlite3", "gone"]
)
def test_a_corrupt_live_release_is_refused_and_the_one_before_served(three, store, caplog, file):
    for name in three:
        store.promote(name, "better")
    last = store.get(three[2]).path
    if file == "gone":
        last.chmod(0o755)
        (last / "STATUS").unlink()
    else:
        _flip(last / file)
    with caplog.at_level(logging.WARNING):
        release, refused = store.servable()
    assert release.id == three[1] and len(refused) == 1
    assert three[2] in refused[0] and ("STATUS" if file == "gone" else file) in refused[0]
    assert three[1] in caplog.text and three[2] in caplog.text
    assert resolve(store.root) == release.path
    with pytest.raises(ReleaseError, match="is broken"):
        resolve(last) if file != "gone" else store.verify(three[2])


def test_a_manifest_that_was_edited_is_refused(three, store):
    path = store.get(three[0]).path / "manifest.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"mean": 0.5,', '"mean": 0.9,', 1))
    with pytest.raises(ReleaseError, match="is not as it was written"):
        store.promote(three[0], "better than it is")


def test_what_was_rolled_back_is_not_served_again_when_the_live_one_breaks(three, store):
    a, b, c = three
    for name in three:
        store.promote(name, "better")
    store.rollback(reason="c is bad")
    _flip(store.get(b).path / "program/program.json")
    assert store.servable()[0].id == a
    assert store.rollback(reason="b is broken").id == a


def test_a_pointer_that_is_damaged_or_gone_is_never_passed_over_in_silence(three, store, caplog):
    a, b, _ = three
    store.promote(a, "first")
    store.promote(b, "second")
    (store.root / "LIVE").write_text("0001")
    with pytest.raises(ReleaseError, match="says '0001'"):
        store.live()
    release, refused = store.servable()
    assert release.id == b and "LIVE" in refused[0] and "LIVE" in caplog.text
    (store.root / "LIVE").unlink()
    assert store.servable()[0].id == b and "is gone" in store.servable()[1][0]
    store.promote(b, "again")
    assert store.servable()[1] == ()


def test_nothing_whole_is_said_so(three, store):
    assert store.servable() is None
    with pytest.raises(ReleaseError, match="none of its releases is live"):
        resolve(store.root)
    store.promote(three[0], "first")
    _flip(store.get(three[0]).path / "config.json")
    with pytest.raises(ReleaseError, match="nothing that was live is whole"):
        store.servable()


def test_what_resolve_leaves_alone(three, store, made, tmp_path):
    run = made[0] / "run0"
    assert resolve(run) == run and resolve(tmp_path / "none") == tmp_path / "none"
    store.promote(three[1], "first")
    assert resolve(store.root) == store.get(three[1]).path == resolve(store.get(three[1]).path)


def test_a_view_can_be_written_to_and_the_release_stays(three, store, made):
    release = store.get(three[0])
    with view(release.path) as place:
        assert json.loads((place / "config.json").read_text()) == release.manifest["config"]
        (place / "index/chroma/chroma.sqlite3").write_bytes(b"opened")
        (place / "index/chroma/new.bin").write_bytes(b"journal")
        os.replace(shutil.copy(place / "config.json", place / "index/new.json"), place / "index/index.json")
    assert not place.exists() and store.verify(release.id)
    with view(made[0] / "run0") as place:
        assert place == made[0] / "run0"


def test_a_torn_last_line_is_not_read_and_cut_off(three, store):
    store.promote(three[0], "first")
    path = store.root / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 2, "event": "collect", "ids": [' + b'"0001-aaaaaaaa", ' * 99)
    assert len(store.history()) == 1
    store.promote(three[1], "second")
    assert path.read_bytes().startswith(whole) and [event.number for event in store.history()] == [1, 2]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(ReleaseError, match="line 1, is damaged"):
        store.history()


@pytest.mark.parametrize("broken", ["copyfile", "fsync", "rename"])
def test_a_full_disk_leaves_no_half_release(three, store, tmp_path, monkeypatch, broken):
    store.promote(three[0], "first")
    monkeypatch.setattr(shutil if broken == "copyfile" else os, broken, _full)
    run = write_run(tmp_path / "next", 9)
    with pytest.raises(ReleaseError, match="disk is full: free some space"):
        store.add(run)
    monkeypatch.undo()
    assert store.names() == three and store.live().id == three[0]
    _whole(store)
    assert store.add(run).id.startswith("0004-")


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_disk_that_fills_up_while_promoting_leaves_a_live_release(three, store, monkeypatch, nth):
    a, b, _ = three
    store.promote(a, "first")
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        return _full() if len(calls) == nth else real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ReleaseError, match="disk is full"):
        store.promote(b, "second")
    monkeypatch.undo()
    # The third is the folder's, after the pointer has moved.
    assert store.live().id == (b if nth == 3 else a) and store.servable()[1] == ()
    assert [event.id for event in store.history()] == ([a, b] if nth == 3 else [a])
    store.promote(b, "second, again")
    assert store.live().id == b and [event.id for event in store.history()] == [a, b]
    _whole(store)


def test_ids_and_order_do_not_hang_on_the_clock(tmp_path):
    times = iter(datetime(2031, 1, 1, tzinfo=UTC) - timedelta(days=n) for n in range(100))
    store = ReleaseStore.open(tmp_path / "releases", now=lambda: next(times))
    ids = [store.add(write_run(tmp_path / f"run{n}", n)).id for n in range(3)]
    for name in ids:
        store.promote(name, "better")
    assert store.names() == ids and [name[:4] for name in ids] == ["0001", "0002", "0003"]
    assert [event.id for event in store.history()] == ids
    assert store.history()[0].at > store.history()[-1].at
    assert store.rollback(reason="worse").id == ids[1]
    assert store.collect(1, younger_s=0.0) == []  # all are dated in the future by now


def test_collecting_keeps_the_live_its_ancestors_and_the_young(store, tmp_path):
    days = [0.0]
    store = ReleaseStore.open(store.root, now=lambda: datetime(2031, 1, 1, tzinfo=UTC) + timedelta(days=days[0]))
    ids = []
    for number, parents in enumerate([[], [0], [], [1], [], [], []]):
        days[0] = number * 10.0
        ids.append(store.add(write_run(tmp_path / f"r{number}", number), parents=[ids[p] for p in parents]).id)
    for number in (2, 5, 3):
        store.promote(ids[number], "better")
    days[0] = 65.0
    assert store.collect(1, younger_s=10 * 86_400.0) == [ids[2], ids[4]]
    assert store.names() == [ids[0], ids[1], ids[3], ids[5], ids[6]]
    days[0] = 200.0
    assert store.collect(1, younger_s=0) == [ids[6]]
    assert store.history()[-1].ids == (ids[6],)
    # Its number is not given again: the history means another by it.
    assert store.add(write_run(tmp_path / "r9", 9)).id.startswith("0008-")
    with pytest.raises(ReleaseError, match="keep 1 or more"):
        store.collect(0)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReleaseError, match="is a file"):
        ReleaseStore.open(tmp_path / "file")
    assert ReleaseStore.open(tmp_path / "none").list() == [] and not (tmp_path / "none").exists()


def test_a_second_writer_waits_and_then_is_refused(three, store, monkeypatch):
    from program.releases import writing

    monkeypatch.setattr(writing, "LOCK_TIMEOUT_S", 0.05)
    with writing.writing(store.root, "hold it", store._now):
        with pytest.raises(ReleaseError, match="another process has been writing"):
            store.promote(three[0], "first")
    store.promote(three[0], "first")


def test_a_failpoint_that_is_not_listed_raises(monkeypatch):
    reach("no such place")  # nothing is asked for
    monkeypatch.setenv(VARIABLE, "release.add.typo")
    with pytest.raises(ValueError, match="release.add.typo"):
        reach("release.add.copied")
    monkeypatch.setenv(VARIABLE, "release.add.copied")
    with pytest.raises(ValueError, match="no such place"):
        reach("no such place")
    reach("release.add.moved")


def test_rows_of_the_fakes_are_rows_of_runs(tmp_path):
    run = write_run(tmp_path / "run", 1)
    assert all(set(json.loads(line)) == set(ROW_KEYS) for line in (run / "scores.jsonl").read_text().splitlines())
