"""What was made live, by whom and why: `history.jsonl`, rows that are added and never changed.

    {"number": 12, "event": "promote", "id": "0007-3fa9c1d2", "before": "0006-9be01f44", "reason": "gain +2.1",
     "by": "ada", "at": "2031-05-04T09:13:02+00:00", "decision": "2031-05-04", "ids": []}

A promotion is written here before the pointer is moved, so that its reasons cannot be lost; if the writer is killed in
between, the next one adds "undone" of the same id. A last line without its end is what a killed writer left: it is not
read, and cut off before the next row. Does not handle: two writers at once (the store holds its lock).
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from program.failpoints import reach
from program.releases.folders import sync
from program.releases.types import Event, ReleaseError

FILE_NAME = "history.jsonl"


def read_history(root: Path) -> list[Event]:
    """All rows in their order; ReleaseError for a damaged one."""
    path = root / FILE_NAME
    try:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
    except FileNotFoundError:
        return []
    events = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            row = json.loads(line)
            events.append(Event(**row | {"ids": tuple(row["ids"])}))
        except (ValueError, KeyError, TypeError) as error:
            raise ReleaseError(f"{path}, line {number}, is damaged ({error!r}); restore the file") from error
    return events


def append(root: Path, event: Event) -> None:
    """Add a row, on the disk when this returns; whatever fails leaves the rows that were there."""
    path = root / FILE_NAME
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        size = _whole_bytes(path)
        if size < os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, size)
            reach("release.repair.torn")
        line = json.dumps(asdict(event), ensure_ascii=False).encode() + b"\n"
        try:
            written = os.pwrite(descriptor, line, size)
            if written < len(line):  # as a disk that is nearly full does
                os.pwrite(descriptor, line[written:], size + written)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        sync(root)


def moves_of(events: list[Event]) -> list[Event]:
    """The promotions and rollbacks, without those that the next writer wrote off."""
    moves: list[Event] = []
    for event in events:
        if event.event == "undone":
            moves = moves[:-1]
        elif event.event in ("promote", "rollback"):
            moves.append(event)
    return moves


def is_pending(moves: list[Event], live: str | None) -> bool:
    """Whether the last move was noted and not carried out: the pointer says what it said before."""
    return bool(moves) and moves[-1].id != live and moves[-1].before == live


def carried_out(events: list[Event], live: str | None) -> list[Event]:
    """The promotions and rollbacks that came to be, `live` being what the pointer says now."""
    moves = moves_of(events)
    return moves[:-1] if is_pending(moves, live) else moves


def lives(moves: list[Event]) -> list[str]:
    """What would be live after 0, 1, 2 ... rollbacks, the live one first: promotions not taken back, newest first."""
    stack: list[str] = []
    for move in moves:
        if move.event == "rollback" and move.id in stack:
            del stack[stack.index(move.id) + 1 :]
        else:
            stack = [each for each in stack if each != move.id] + [move.id]
    return stack[::-1]


def _whole_bytes(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
