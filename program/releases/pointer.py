"""The pointer to the live release: `LIVE`, one line, replaced whole: a reader finds the old id or the new one."""

import os
import re
from pathlib import Path

from program.failpoints import reach
from program.releases.folders import sync
from program.releases.types import ReleaseError

POINTER = "LIVE"
BESIDE = f".{POINTER}.tmp"
RELEASE_ID = re.compile(r"(\d{4,})-[0-9a-f]{8}")


def read_pointer(root: Path) -> str | None:
    """The id of the live release, None where none is; ReleaseError for a pointer that says something else."""
    path = root / POINTER
    try:
        line = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{path} cannot be read ({error}); delete it, and promote a release") from error
    if not (line.endswith("\n") and RELEASE_ID.fullmatch(line[:-1])):
        raise ReleaseError(f"{path} says {line[:80]!r}, which is no release; delete it, and promote a release")
    return line[:-1]


def move_pointer(root: Path, release_id: str, event: str) -> None:
    """Make the pointer say `release_id`, on the disk when this returns; `event` is part of the failpoints' names."""
    beside = root / BESIDE
    try:
        with open(beside, "w", encoding="ascii") as file:
            file.write(release_id + "\n")
            file.flush()
            os.fsync(file.fileno())
        reach(f"release.{event}.beside")
        os.replace(beside, root / POINTER)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    reach(f"release.{event}.moved")
    sync(root)
    reach(f"release.{event}.synced")


def number_of(release_id: str) -> int:
    """The number that an id begins with."""
    return int(release_id.partition("-")[0])
