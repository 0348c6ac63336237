"""One writer at a time, who first puts right what one that was killed has left."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from program.failpoints import reach
from program.releases import folders, history
from program.releases.pointer import BESIDE, read_pointer
from program.releases.types import Event, ReleaseError

LOCK_TIMEOUT_S = 60.0
DRAFT, GONE = ".draft-", ".gone-"


@contextmanager
def writing(root: Path, what: str, now: Callable[[], datetime]) -> Iterator[None]:
    """Hold the root, made if it is not there, against other writers; ReleaseError where `what` cannot be done."""
    with _told(root, what):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock", timeout=LOCK_TIMEOUT_S)
        try:
            lock.acquire()
        except Timeout as error:
            raise ReleaseError(
                f"another process has been writing to {root} for {LOCK_TIMEOUT_S:.0f} s; wait for it to end"
            ) from error
        try:
            _put_right(root, now)
            yield
        finally:
            lock.release()


def note(root: Path, event: Event, now: Callable[[], datetime]) -> None:
    """Add `event` to the history, numbered and dated. Hold the root."""
    number = len(history.read_history(root)) + 1
    history.append(root, replace(event, number=number, at=now().isoformat(timespec="seconds")))


def _put_right(root: Path, now: Callable[[], datetime]) -> None:
    for path in root.iterdir():
        if path.name.startswith((DRAFT, GONE)):
            folders.remove(path)
    (root / BESIDE).unlink(missing_ok=True)
    moves, live = history.moves_of(history.read_history(root)), read_pointer(root)
    if history.is_pending(moves, live):
        why = f"the {moves[-1].event} was stopped before the pointer was moved"
        note(root, Event(0, "undone", moves[-1].id, live, why), now)
        reach("release.repair.undone")


@contextmanager
def _told(root: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        todo = "The disk is full: free some space" if full else "Check the folder and its permissions"
        raise ReleaseError(
            f"{root}: could not {what} ({error}); what is live is whole. {todo}, and do it again"
        ) from error
