"""What the loop keeps in a home folder: stores, releases, renewals, and the clock that dates them. Only read."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from corpora.labels.tables import Layout
from modules.index_files import StoreError
from program.failpoints import STAGES
from program.feedback.people import read_salt, salt_path
from program.feedback.tables import FEEDBACK
from program.forgetting.skills import SuiteStore
from program.history.findings import Finding, odd, well, wrong
from program.history.notices import CLOCK_SLACK_S
from program.releases import history
from program.releases.pointer import read_pointer
from program.releases.store import ReleaseStore
from program.releases.types import ReleaseError
from program.releases.writing import DRAFT, GONE
from program.renewal.home import Home
from program.traces.store import TRACES

# SQLite empties it at 4 MB, unless a reader is left open.
WAL_LARGE_BYTES = 64 * 2**20


def check_stores(home: Home) -> list[Finding]:
    """Feedback and traces: whole by SQLite's own check, the salt in place and its owner's alone, no log run wild."""
    # A salt is made for the first name in feedback, and with a new trace store.
    salted = {home.feedback: "SELECT 1 FROM log WHERE by != '' LIMIT 1", home.traces: "SELECT 1 FROM traces LIMIT 1"}
    found = []
    for path, layout in ((home.feedback, FEEDBACK), (home.traces, TRACES)):
        if path.is_file():
            found += _store(path, layout, salted[path])
        else:
            found.append(well(path.name, "not there yet"))
    try:
        n = len(SuiteStore(home.skills).skills())
        found.append(well("skills", f"{n} frozen, as they were written"))
    except (StoreError, ValueError, KeyError, TypeError) as error:
        found.append(wrong("skills", str(error), "take the skill's folder from a backup: the gate needs all of them"))
    return found


def _store(path: Path, layout: Layout, needs_salt: str) -> list[Finding]:
    remedy = f"stop whoever writes to it, keep the file, and put back a copy of {path.name}"
    try:
        with _reading(path) as db:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            damage = [row[0] for row in db.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
            salted = not damage and application == layout.application and bool(db.execute(needs_salt).fetchall())
    except sqlite3.Error as error:
        return [wrong(path.name, f"it cannot be read ({error})", remedy)]
    if damage:
        return [wrong(path.name, f"SQLite finds it damaged: {'; '.join(damage)}", remedy)]
    if application != layout.application:
        return [wrong(path.name, f"it is an SQLite file, but no {layout.noun}", remedy)]
    found = [well(path.name, f"whole, {path.stat().st_size / 1e6:.1f} MB")]
    if salted or salt_path(path).exists():
        try:
            read_salt(path, make=False)
        except StoreError as error:
            found.append(wrong(salt_path(path).name, str(error), "put it back from a backup, or set its mode to 600"))
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and wal.stat().st_size > WAL_LARGE_BYTES:
        why = f"{wal.stat().st_size / 1e6:.0f} MB wait in it, which is what a reader left open does"
        found.append(odd(wal.name, why, "end the processes that have had the store open for long"))
    return found


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, without a trace of having been read.

    Opening a store in WAL mode makes two files beside it, even read-only; where none is there nobody writes, and the
    file can be taken as it is ("immutable").
    """
    how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as db:
        yield db


def check_releases(home: Home) -> list[Finding]:
    """The live release byte by byte, the pointer and the history, and what a killed writer left."""
    store, found = ReleaseStore.open(home.releases), []
    names = store.names()
    left = [path.name for path in _inside(home.releases) if path.name.startswith((DRAFT, GONE))]
    if left and not _is_locked(home.releases / ".lock"):
        why = f"{len(left)} unfinished, {left[0]} first: their writer was killed"
        found.append(odd("drafts", why, "nothing to do: the next release, promotion or rollback removes them"))
    try:
        live = read_pointer(home.releases)
        if history.is_pending(history.moves_of(history.read_history(home.releases)), live):
            why = "the last promotion or rollback was noted and not carried out"
            found.append(odd("history", why, "promote or roll back again if it is still wanted"))
        if live is None:
            why = f"{len(names)} releases, and none is live"
            remedy = "evergreen releases promote ID --reason ..."
            return [*found, odd("live release", why, remedy) if names else well("live release", "no release yet")]
        store.verify(live)
        found.append(well("live release", f"{live}, every file as it was released"))
    except ReleaseError as error:
        remedy = "evergreen releases rollback --reason ...; until then the one before is served"
        found.append(wrong("live release", str(error), remedy))
    if broken := sorted(set(names) - {release.id for release in store.list()}):
        why = f"{len(broken)} of {len(names)} cannot be read: {', '.join(broken)}"
        found.append(odd("other releases", why, "put them back from a backup, if they may be rolled back to"))
    return found


def check_renewals(home: Home) -> list[Finding]:
    """Whether one runs, and whether one was left unfinished."""
    folders, found = sorted(home.renewals.glob("[0-9]*")), []
    running = _is_locked(home.lock)
    for folder in folders:
        try:
            if (folder / "outcome.json").is_file():
                json.loads((folder / "outcome.json").read_text(encoding="utf-8"))["outcome"]
                continue
        except (ValueError, KeyError, TypeError) as error:
            why = f"{folder.name}/outcome.json is damaged ({error!r})"
            found.append(wrong("renewals", why, "put it back from a backup; without it no renewal can begin"))
            continue
        done = [stage for stage in STAGES if (folder / "stages" / f"{stage}.json").is_file()]
        where = f"after the stage {done[-1]}" if done else "before its first stage"
        waits = done and done[-1] == "shadow"
        if waits:
            found.append(well("renewals", f"the candidate of {folder.name} is asked silently beside the live release"))
        elif running and folder == folders[-1]:
            found.append(well("renewals", f"{folder.name} is running, {where}"))
        else:
            found.append(odd("renewals", f"{folder.name} stopped {where}", "evergreen renew goes on with it"))
    return found or [well("renewals", f"{len(folders)} ended{', one begins' if running else ', none is running'}")]


def check_clock(home: Home, now: datetime) -> list[Finding]:
    """Whether anything in the folder is dated after now; what cannot be read is told by the other checks."""
    dated = {name: at for name, at in _newest(home) if at is not None}
    if not dated:
        return [well("clock", f"{now:%Y-%m-%d %H:%M} UTC, and nothing to hold it against yet")]
    name = max(dated, key=lambda each: dated[each])
    behind_s = (dated[name] - now).total_seconds()
    if behind_s <= CLOCK_SLACK_S:
        return [well("clock", f"{now:%Y-%m-%d %H:%M} UTC, after all that is dated here")]
    why = f"it says {now:%Y-%m-%d %H:%M} UTC, and {name} has {dated[name]:%Y-%m-%d %H:%M}: one of the two is wrong"
    return [wrong("clock", why, "set the clock; schedules and drift wait until it is past that time")]


def _newest(home: Home) -> Iterator[tuple[str, datetime | None]]:
    ends = [("watch.json", home.path / "watch.json", "looked")]
    ends += [(f"renewal {path.parent.name}", path, "ended") for path in home.renewals.glob("*/outcome.json")]
    for name, path, key in ends:
        yield name, _known(lambda path=path, key=key: json.loads(path.read_text(encoding="utf-8"))[key])
    for path, table in ((home.feedback, "log"), (home.traces, "traces")):
        yield path.name, _known(lambda path=path, table=table: _last_of(path, table))
    moves = _known(lambda: max(event.at for event in history.read_history(home.releases)))
    yield "the history of releases", moves
    for path in home.drift.glob("*/reports.jsonl"):
        yield f"drift of {path.parent.name}", _known(lambda path=path: _last_report(path))


def _known(read: Callable[[], Any]) -> datetime | None:
    """The time that `read` gives as ISO text or seconds since 1970, None where there is none."""
    try:
        at = read()
        if isinstance(at, int | float):
            return datetime.fromtimestamp(at, UTC)
        time = datetime.fromisoformat(at)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, sqlite3.Error, ReleaseError):
        return None


def _last_of(path: Path, table: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(path)
    with _reading(path) as db:
        return db.execute(f"SELECT max(at) FROM {table}").fetchone()[0]


def _last_report(path: Path) -> float:
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["at"]


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock; it is let go of at once, and no file is made."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
