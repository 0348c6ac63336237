"""The home folder of a live program: where everything that the loop keeps has its place.

home/  evergreen.toml  feedback.db  traces.db  judged.jsonl  judge/  shadow/  releases/  skills/  drift/
       renewals/<number>/  watch.json
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

FILE_NAME = "evergreen.toml"
_LOOK_TIMEOUT_S = 60.0


class RenewalError(RuntimeError):
    """A renewal cannot be begun or gone on with; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Home:
    """The places in a home folder; nothing is made until it is written to."""

    path: Path

    @property
    def feedback(self) -> Path:
        """What people said (`program/feedback`)."""
        return self.path / "feedback.db"

    @property
    def traces(self) -> Path:
        """What was answered (`program/traces`)."""
        return self.path / "traces.db"

    @property
    def judged(self) -> Path:
        """What a judge said of a sample of it (`program/traces/judged.py`)."""
        return self.path / "judged.jsonl"

    @property
    def releases(self) -> Path:
        """Releases and which of them is live (`program/releases`)."""
        return self.path / "releases"

    @property
    def skills(self) -> Path:
        """Frozen test sets of what releases have learnt (`program/forgetting`)."""
        return self.path / "skills"

    @property
    def shadow(self) -> Path:
        """What candidates answered silently, a file each (`program/gate/shadow_log.py`)."""
        return self.path / "shadow"

    @property
    def drift(self) -> Path:
        """Reference windows and the monitor's state (`program/drift`)."""
        return self.path / "drift"

    @property
    def lock(self) -> Path:
        """Held by the one process that renews."""
        return self.path / ".renewal.lock"

    @property
    def renewals(self) -> Path:
        """A numbered folder for each renewal."""
        return self.path / "renewals"


def is_home(path: Path) -> bool:
    """Whether a folder is a home folder: it has a config of the loop."""
    return (path / FILE_NAME).is_file()


@contextmanager
def renewing(home: Home) -> Iterator[None]:
    """One renewal at a time: RenewalError while another process holds the lock. A killed one's lock is free."""
    lock = FileLock(home.lock)
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RenewalError(
            f"{home.path} is being renewed by another process; wait for it, or stop it (what it has done is kept)"
        ) from error
    except OSError as error:
        raise RenewalError(
            f"{home.path} cannot be written to ({error.strerror}), and nothing was begun; what is live goes on being "
            "served. Give the folder its permissions back, or free some space, and renew again"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def looking(home: Home) -> Iterator[None]:
    """One look at drift at a time, so that none is noted twice: RenewalError where another takes over a minute."""
    try:
        with FileLock(home.path / ".watch.lock", timeout=_LOOK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise RenewalError(
            f"another process has been looking at {home.path} for {_LOOK_TIMEOUT_S:.0f} s; one watch is enough"
        ) from error


def renewals(home: Home) -> list[dict[str, Any]]:
    """What became of each renewal, the oldest first: its folder's name, and what its `outcome.json` holds, or {}."""
    told = []
    for folder in sorted(home.renewals.glob("[0-9]*")):
        path = folder / "outcome.json"
        outcome = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        told.append({"id": folder.name, **outcome})
    return told
